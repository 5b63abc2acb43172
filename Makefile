# LoopServe's front door. Every target sets up what it needs; nothing else has to be typed.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# CUDA=1: with the backend for NVIDIA GPUs.
PRESET ?= $(if $(CUDA),cuda,release)
JOBS ?= $(shell nproc)
export NINJA_STATUS := [%f/%t %es]
BIN := build/bin
GPU_PYTHON ?= python3  # one that has PyTorch, the peer on a GPU
PYTEST := build/venv/bin/pytest -q -p no:cacheprovider

define ninja
cmake --preset $(PRESET) >build/cmake.log 2>&1 || { tail -30 build/cmake.log; exit 1; }; \
ninja -C build/$(PRESET) -j$(JOBS) $(1) && ln -sfn $(PRESET)/bin build/bin
endef

.PHONY: help setup build build-all model demo test test-unit test-py test-asan test-tsan lint \
        format bench bench-cpu bench-kernels profile-step reference check-reference clean \
        cuda test-cuda gpu-bundle gpu-check

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

setup:
	@.ci/setup && .ci/tools
	@$(if $(filter cuda,$(PRESET)),.ci/cuda)

cuda: setup
	@.ci/cuda

build: setup ## Build the four programs; they land in build/bin/ (CUDA=1: with the GPU backend)
	@$(call ninja,programs)

build-all: setup
	@$(call ninja,all)

model: setup ## Get SmolLM2-135M-Instruct (98 MB), cached in ~/.cache/loopserve
	@.ci/model

demo: build model ## Hold a conversation through router, workers and KV store (JSON=1: as JSON)
	@$(BIN)/loopserve demo $(if $(JSON),--json)

test: build-all model test-unit test-py test-cuda ## Run every test suite

test-unit:
	@LOOPSERVE_MODEL=$$(.ci/model) ctest --test-dir build/$(PRESET) --output-on-failure -j$(JOBS)
	@grep -h '^\*\*\* NOT RUN' build/$(PRESET)/Testing/Temporary/LastTest.log | sort -u || true

test-py:
	@LOOPSERVE_MODEL=$$(.ci/model) LOOPSERVE_BIN_DIR=$(CURDIR)/build/$(PRESET)/bin $(PYTEST) tests

define ninja_cuda
cmake --preset cuda >build/cmake.log 2>&1 || { tail -30 build/cmake.log; exit 1; }; \
ninja -C build/cuda -j$(JOBS) $(1)
endef

test-cuda: cuda ## Compile and link the GPU backend, and run what of its tests needs no GPU
	@$(call ninja_cuda,cuda_parts)
	@build/venv/bin/python .ci/ptxas_report.py
	@ctest --test-dir build/cuda --output-on-failure -j$(JOBS) -L 'cuda|gpu'

test-asan: ## Unit and conformance suites under address and undefined-behaviour sanitizers
	@$(MAKE) --no-print-directory sanitized PRESET=asan

test-tsan: ## Unit and conformance suites under the thread sanitizer
	@$(MAKE) --no-print-directory sanitized PRESET=tsan

sanitized: setup model
	@cmake --preset $(PRESET) >build/cmake.log 2>&1 || { tail -30 build/cmake.log; exit 1; }
	@ninja -C build/$(PRESET) -j$(JOBS)
	@LOOPSERVE_MODEL=$$(.ci/model) \
	  ASAN_OPTIONS=detect_leaks=1:strict_string_checks=1 UBSAN_OPTIONS=print_stacktrace=1 \
	  TSAN_OPTIONS="ignore_noninstrumented_modules=1 suppressions=$(CURDIR)/.ci/tsan.supp second_deadlock_stack=1" \
	  ctest --test-dir build/$(PRESET) --output-on-failure -j$(JOBS)

lint: setup ## Formatting, clang-tidy (with thread-safety analysis), protos, YAML
	@.ci/lint

format: setup ## Format all C++ sources
	@git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format-14 -i

reference:
	@.ci/reference

# ARGS goes to the script: make bench ARGS="--rows decode_b1_d0 --rounds 3".
bench: build-all model reference ## Prefill and decode beside llama.cpp, interleaved; writes bench/results/engine.json (ARGS=--help)
	@LOOPSERVE_MODEL=$$(.ci/model) LOOPSERVE_BIN_DIR=$(CURDIR)/build/$(PRESET)/bin \
	  build/reference-venv/bin/python bench/engine_bench.py $(ARGS)

bench-cpu: build-all model reference ## The CPU engine beside llama.cpp at length (100 min); writes bench/results/cpu.json (QUICK=1: a few rows)
	@LOOPSERVE_MODEL=$$(.ci/model) LOOPSERVE_BIN_DIR=$(CURDIR)/build/$(PRESET)/bin \
	  build/reference-venv/bin/python bench/cpu_bench.py $(if $(QUICK),--quick) $(ARGS)

bench-kernels: build-all ## Each CPU kernel against its roofline, per instruction set (10 min); writes bench/results/kernels.json
	@LOOPSERVE_BIN_DIR=$(CURDIR)/build/$(PRESET)/bin build/venv/bin/python bench/kernels.py $(ARGS)

profile-step: setup model ## Where a step's time goes; writes bench/results/step_profile.json and draws docs/images/step_profile.svg
	@$(call ninja,loopserve-step-profile)
	@mkdir -p bench/results
	@$(BIN)/loopserve-step-profile --model=$$(.ci/model) --rounds=5 >bench/results/step_profile.json
	@build/venv/bin/python bench/draw_profile.py bench/results/step_profile.json docs/images/step_profile.svg

gpu-check: ## On a machine with a GPU: checks and measures what needs one (8 min, QUICK=1: 4), from build/gpu-bundle; writes bench/results/gpu.json
	@$(GPU_PYTHON) bench/gpu_check.py --bundle build/gpu-bundle $(if $(QUICK),--quick) $(ARGS)

check-reference: build-all model reference ## Logits and tokens against llama.cpp and a float64 reference
	@LOOPSERVE_MODEL=$$(.ci/model) LOOPSERVE_BIN_DIR=$(CURDIR)/build/$(PRESET)/bin \
	  build/reference-venv/bin/python bench/reference/check.py

gpu-bundle: cuda ## Programs, GPU tests and their libraries as build/gpu-bundle.tar.xz, for a machine with a GPU
	@$(call ninja_cuda,programs cuda_parts loopserve-gpu-step)
	@.ci/gpu_bundle

clean: ## Remove everything that was built
	rm -rf build

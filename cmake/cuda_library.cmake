# Kernels of CUDA, compiled by the nvcc of build/cuda-toolkit (.ci/cuda makes it):
#
#   cuda_library(NAME worker_backend_cuda_kernels SRCS norm.cu rope.cu [DEPS kvstore_base]
#                [COPTS --maxrregcount=128] [SYSTEM_INCLUDES dir] [LENIENT])
#
# Commands instead of CMake's own CUDA language: its toolkit search does not know CUDA 13, and here
# ptxas's report of every kernel is kept, in <build>/ptxas/<file>.log (.ci/ptxas_report.py reads it).
# Warnings are errors, but with LENIENT, which is for code that includes headers of others.
#
#   cuda_headers   the headers of CUDA, cuBLASLt and NCCL, for sources that g++ compiles
#   cuda_runtime   the runtime, static; cuBLASLt and NCCL are opened at run time and never linked.
#                  A program whose property LOOPSERVE_FAKE_CUDA is ON brings its own (tests/support)
set(LOOPSERVE_CUDA_TOOLKIT ${PROJECT_SOURCE_DIR}/build/cuda-toolkit)
# FlashInfer needs a newer CCCL than CUDA 13.0's and brings it along.
set(LOOPSERVE_FLASHINFER_INCLUDES include cutlass/include
                                  cccl/libcudacxx/include cccl/cub cccl/thrust)
list(TRANSFORM LOOPSERVE_FLASHINFER_INCLUDES PREPEND ${LOOPSERVE_CUDA_TOOLKIT}/flashinfer/)
set(NVCC ${LOOPSERVE_CUDA_TOOLKIT}/cuda/bin/nvcc)
if(NOT EXISTS ${NVCC})
  message(FATAL_ERROR "LOOPSERVE_CUDA needs build/cuda-toolkit; run .ci/cuda (make does it by itself)")
endif()

add_library(cuda_headers INTERFACE)
target_include_directories(cuda_headers SYSTEM INTERFACE ${LOOPSERVE_CUDA_TOOLKIT}/cuda/include
                                                         ${LOOPSERVE_CUDA_TOOLKIT}/nccl/include)
add_library(cuda_runtime INTERFACE)
set(faked $<BOOL:$<TARGET_PROPERTY:LOOPSERVE_FAKE_CUDA>>)
target_link_libraries(cuda_runtime INTERFACE
  cuda_headers $<$<NOT:${faked}>:${LOOPSERVE_CUDA_TOOLKIT}/cuda/lib64/libcudart_static.a>
  Threads::Threads dl rt)

# Programs find libraries that travel with them (.ci/gpu_bundle); an RPATH, since a RUNPATH would not
# count for what those libraries need.
add_link_options(-Wl,--disable-new-dtags)
set(CMAKE_BUILD_RPATH $ORIGIN/../lib)

set(NVCC_FLAGS -std=c++20 -O3 --expt-relaxed-constexpr -lineinfo -Xptxas -v
    -ccbin ${CMAKE_CXX_COMPILER} -Xcompiler=-Wall,-Wextra -I${PROJECT_SOURCE_DIR})
set(NVCC_TARGETS -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a
    -gencode arch=compute_90,code=compute_90)
set(NVCC_LAUNCHER ${PROJECT_SOURCE_DIR}/.ci/nvcc_log)
if(CCACHE)
  set(NVCC_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${PROJECT_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_COMPILERCHECK=content LOOPSERVE_CCACHE=${CCACHE} ${NVCC_LAUNCHER})
endif()

function(cuda_library)
  cmake_parse_arguments(ARG "LENIENT" "NAME" "SRCS;DEPS;COPTS;SYSTEM_INCLUDES" ${ARGN})
  set(flags ${NVCC_FLAGS} ${ARG_COPTS})
  if(NOT ARG_LENIENT)
    list(APPEND flags -Werror all-warnings -Xcompiler=-Werror)
  endif()
  foreach(dir ${ARG_SYSTEM_INCLUDES})
    list(APPEND flags -isystem ${dir})
  endforeach()
  set(objects)
  foreach(source ${ARG_SRCS})
    cmake_path(ABSOLUTE_PATH source OUTPUT_VARIABLE path)
    cmake_path(RELATIVE_PATH path BASE_DIRECTORY ${PROJECT_SOURCE_DIR} OUTPUT_VARIABLE name)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/${ARG_NAME}.dir/${source}.o)
    cmake_path(GET object PARENT_PATH folder)
    file(MAKE_DIRECTORY ${folder})
    set(log ${CMAKE_BINARY_DIR}/ptxas/${name}.log)
    set(targets ${NVCC_TARGETS})
    if(source MATCHES "sm90_")  # made of instructions that no other device has
      set(targets -gencode arch=compute_90a,code=sm_90a)
    endif()
    add_custom_command(
      OUTPUT ${object} BYPRODUCTS ${log}
      COMMAND ${NVCC_LAUNCHER} ${log} ${NVCC} ${flags} ${targets} -MD -MF ${object}.d -c ${path} -o ${object}
      DEPENDS ${path} ${NVCC} ${PROJECT_SOURCE_DIR}/.ci/nvcc_log
      DEPFILE ${object}.d
      COMMENT "nvcc ${name}" VERBATIM)
    list(APPEND objects ${object})
  endforeach()
  add_library(${ARG_NAME} STATIC ${objects})
  set_target_properties(${ARG_NAME} PROPERTIES LINKER_LANGUAGE CXX)
  target_include_directories(${ARG_NAME} PUBLIC ${PROJECT_SOURCE_DIR})
  target_link_libraries(${ARG_NAME} PUBLIC cuda_runtime ${ARG_DEPS})
endfunction()

// The backend's own part: what it puts on its stream and what it refuses. What kernels compute is
// held to the reference where there is a GPU (tests/conformance).
#include "worker/backend/cuda/cuda_backend.h"

#include <numeric>

#include "common/status_macros.h"
#include "tests/support/sampling_rows.h"
#include "tests/support/status_matchers.h"
#include "tests/support/stub_communicator.h"
#include "tests/unit/worker/backend/cuda/kernels/serial_team.h"
#include "tests/unit/worker/backend/cuda/launch_test.h"
#include "tests/unit/worker/backend/cuda/use_fake_lt.h"
#include "worker/backend/row_sampler.h"

namespace loopserve::worker::cuda {
namespace {

using ::loopserve::testing::StatusIs;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using enum ActivationType;

constexpr int64_t kHidden = 128;  // two query heads of 64, one KV head
constexpr int64_t kVocabulary = 40;

class CudaBackendTest : public LaunchTest {
 protected:
  void SetUp() override {
    LaunchTest::SetUp();
    absl::StatusOr<std::unique_ptr<Backend>> backend = CreateCudaBackend({.threads = 1});
    ASSERT_OK(backend.status());
    backend_ = *std::move(backend);
    Take();  // how the device was tried
  }
  void TearDown() override {
    backend_.reset();
    LaunchTest::TearDown();
  }
  std::unique_ptr<Matrix> Load(int64_t rows, int64_t cols = kHidden) {
    const std::vector<float> values(static_cast<size_t>(rows * cols), 0.5F);
    auto matrix = backend_->LoadMatrix(
        {WeightType::kF32, rows, cols, std::as_bytes(std::span(values))}, {0, rows});
    EXPECT_OK(matrix.status());
    return *std::move(matrix);
  }
  std::unique_ptr<Buffer> Make(int64_t rows, int64_t cols, BufferUse use) {
    auto buffer = backend_->Allocate(rows, cols, use);
    EXPECT_OK(buffer.status());
    return *std::move(buffer);
  }

  FakeLt& library_ = UseFakeLt();
  std::unique_ptr<Backend> backend_;
};

TEST_F(CudaBackendTest, NamesItsDeviceAndItsMemory) {
  EXPECT_EQ(backend_->name(), "cuda/Pretended H100");
  EXPECT_FALSE(backend_->memory().host_addressable());
  EXPECT_TRUE(backend_->Supports(WeightType::kQ4_K));
  EXPECT_TRUE(backend_->prefers_input_sharding());
}

TEST_F(CudaBackendTest, WeightsArePackedOntoTheDevice) {
  const size_t before = fake::alive().device_bytes;
  const std::unique_ptr<Matrix> matrix = Load(10, 100);
  EXPECT_EQ(matrix->rows(), 10);
  EXPECT_EQ(matrix->cols(), 100);
  EXPECT_EQ(matrix->resident_bytes(), 10u * 104 * 2) << "bf16, rows on 16 bytes";
  EXPECT_EQ(fake::alive().device_bytes, before + matrix->resident_bytes());
  const std::vector<float> values(100);
  EXPECT_EQ(
      backend_->LoadMatrix({WeightType::kF32, 1, 100, std::as_bytes(std::span(values))}, {0, 2})
          .status()
          .code(),
      absl::StatusCode::kInvalidArgument);
}

TEST_F(CudaBackendTest, OperandsAreHalfAsWide) {
  const size_t before = fake::alive().device_bytes;
  const auto exact = Make(4, 64, BufferUse::kExact);
  EXPECT_EQ(exact->view().type, kF32);
  EXPECT_EQ(fake::alive().device_bytes, before + 4 * 64 * 4);
  const auto operand = Make(4, 64, BufferUse::kOperand);
  EXPECT_EQ(operand->view().type, kBf16);
  EXPECT_EQ(operand->view().stride, 64);
  EXPECT_EQ(fake::alive().device_bytes, before + 4 * 64 * 6);
  EXPECT_EQ(backend_->Allocate(-1, 64).status().code(), absl::StatusCode::kInvalidArgument);
  fake::SetDeviceMemory(fake::alive().device_bytes);
  EXPECT_THAT(backend_->Allocate(4, 64).status(),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("cannot give")));
}

TEST_F(CudaBackendTest, CopiesKeepStrides) {
  const auto buffer = Make(3, 8, BufferUse::kExact);
  std::vector<float> values(3 * 5);
  std::iota(values.begin(), values.end(), 1.0F);
  const TensorView part = buffer->view().Cols(2, 5);
  EXPECT_OK(backend_->CopyFromHost(values, part));
  std::vector<float> back(values.size());
  EXPECT_OK(backend_->CopyToHost(part, back));
  EXPECT_OK(backend_->Synchronize());
  EXPECT_EQ(back, values);
  ExpectNoLaunch();
  back.pop_back();
  EXPECT_EQ(backend_->CopyToHost(part, back).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(backend_->CopyFromHost(back, part).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(CudaBackendTest, CopiesOfOperandsAreConvertedOnTheDevice) {
  const auto operand = Make(3, 8, BufferUse::kOperand);
  std::vector<float> values(3 * 8);
  EXPECT_OK(backend_->CopyFromHost(values, operand->view()));
  EXPECT_OK(backend_->CopyToHost(operand->view(), values));
  const std::vector<fake::Launch> launches = Take();
  ASSERT_EQ(launches.size(), 2u);
  for (const fake::Launch& launch : launches) EXPECT_THAT(launch.kernel, HasSubstr("ZipKernel"));
}

TEST_F(CudaBackendTest, RefusesShapesThatDoNotFit) {
  const TensorView x = View(2, 64), short_x = View(1, 64), narrow = View(2, 32);
  const std::unique_ptr<Matrix> table = Load(4, 64);
  const auto angles = *backend_->MakeRopeTable({.inv_freq = {1.0, 0.5}, .max_positions = 8});
  const std::vector<int32_t> rows = {0, 1};
  const std::vector<int32_t> beyond = {0, 8};
  const Matrix* const weights[] = {table.get()};
  const TensorView outs[] = {x};
  for (const absl::Status& status : {
           backend_->EmbedRows(*table, 0, rows, narrow),
           backend_->EmbedRows(*table, 0, rows, short_x),
           backend_->RmsNorm(x, View(1, 32), 0, x),
           backend_->RmsNorm(x, View(1, 64), 0, short_x),
           backend_->AddRmsNorm(View(2, 64, kBf16), x, View(1, 64), 0, x),
           backend_->AddRmsNorm(x, narrow, View(1, 64), 0, x),
           backend_->MatMul(x, weights, outs),
           backend_->MatMul(x, weights, {}),
           backend_->AddBias(x, View(1, 32)),
           backend_->Rope(x, 3, rows, *angles),
           backend_->Rope(x, 32, rows, *angles),
           backend_->Rope(short_x, 1, rows, *angles),
           backend_->Rope(x, 1, beyond, *angles),
           backend_->SiluMul(x, narrow),
           backend_->Add(x, short_x),
           backend_->GatherRows(x, rows, short_x),
           backend_->GatherRows(x, beyond, x),
       }) {
    EXPECT_THAT(status,
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("shapes do not fit")));
  }
  ExpectNoLaunch();
}

TEST_F(CudaBackendTest, ErrorsOfLaunchesNameTheOp) {
  const TensorView x = View(2, 64);
  fake::FailCall("cudaLaunchKernel", 1, cudaErrorLaunchFailure);
  EXPECT_THAT(backend_->Add(x, x),
              StatusIs(absl::StatusCode::kInternal,
                       AllOf(HasSubstr("LaunchAdd"), HasSubstr("cudaErrorLaunchFailure"))));
  EXPECT_OK(backend_->Add(x, x));
}

TEST_F(CudaBackendTest, OneRankNeedsNoOther) {
  Backend* const group[] = {backend_.get()};
  const auto ranks = backend_->ConnectRanks(group, absl::Seconds(1), nullptr);
  ASSERT_OK(ranks.status());
  EXPECT_EQ(ranks->size(), 1u);
}

// What the kernel does, by one thread for each row.
void EmulateSampling(size_t rows) {
  fake::Emulate("SampleRowsKernel", [rows](void** arguments) {
    float* const logits = *static_cast<float**>(arguments[0]);
    const int64_t stride = *static_cast<int64_t*>(arguments[1]);
    const int32_t vocab = *static_cast<int32_t*>(arguments[2]);
    for (size_t r = 0; r < rows; ++r) {
      const RowSampling& how = (*static_cast<const RowSampling**>(arguments[3]))[r];
      float* const scores = logits + static_cast<int64_t>(r) * stride;
      for (uint32_t i = 0; i < how.adjustments; ++i) {
        const TokenAdjustment& adjustment =
            (*static_cast<const TokenAdjustment**>(arguments[4]))[how.first_adjustment + i];
        scores[adjustment.token] = Adjusted(scores[adjustment.token], adjustment);
      }
      SerialTeam team;
      RowChooser<SerialTeam>(team, scores, vocab, how)
          .Choose((*static_cast<RowChoice**>(arguments[5]))[r]);
    }
  });
}

class CudaSamplingTest : public CudaBackendTest {
 protected:
  static constexpr size_t kRows = 33;
  void SetUp() override {
    CudaBackendTest::SetUp();
    for (uint32_t r = 0; r < kRows; ++r) {
      RowSampling& how = plan_.rows.emplace_back(testing::AnySampling(r));
      how.first_adjustment = static_cast<uint32_t>(plan_.adjustments.size());
      how.adjustments = r % 3;
      for (uint32_t i = 0; i < how.adjustments; ++i) {
        plan_.adjustments.push_back(
            {.token = static_cast<common::TokenId>(10 * i + r), .bias = 1, .repetition = 1.5F});
      }
      const std::vector<float> row = testing::SampledLogits(kVocab, r);
      logits_.insert(logits_.end(), row.begin(), row.end());
    }
    region_ = *backend_->memory().AllocateHost(kRows * sizeof(RowChoice));
    out_ = {reinterpret_cast<RowChoice*>(region_->data()), kRows};
    buffer_ = Make(kRows, kVocab, BufferUse::kExact);
    EXPECT_OK(backend_->CopyFromHost(logits_, buffer_->view()));
  }
  void TearDown() override {
    buffer_.reset();
    region_.reset();
    CudaBackendTest::TearDown();
  }

  static constexpr int64_t kVocab = 500;
  SamplingPlan plan_;
  std::vector<float> logits_;
  std::unique_ptr<Buffer> buffer_;
  std::unique_ptr<kvstore::MemoryRegion> region_;
  std::span<RowChoice> out_;
};

TEST_F(CudaSamplingTest, ChoosesAsHostsDo) {
  EmulateSampling(kRows);
  ASSERT_OK(backend_->Sample(buffer_->view(), plan_.view(), out_));
  ASSERT_OK(backend_->Synchronize());
  std::vector<RowChoice> expected(kRows);
  ASSERT_OK(RowSampler().Sample({logits_.data(), kRows, kVocab, kVocab}, plan_.view(), expected));
  for (size_t r = 0; r < kRows; ++r) {
    EXPECT_EQ(testing::Difference(plan_.rows[r], out_[r], expected[r]), "") << r;
  }
}

TEST_F(CudaSamplingTest, RefusesWhatDoesNotFit) {
  std::vector<RowChoice> pageable(kRows);
  EXPECT_THAT(backend_->Sample(buffer_->view(), plan_.view(), pageable),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("pinned")));
  EXPECT_THAT(backend_->Sample(buffer_->view().Rows(0, 3), plan_.view(), out_),
              StatusIs(absl::StatusCode::kInvalidArgument));
  plan_.adjustments[0].token = kVocab;
  EXPECT_THAT(backend_->Sample(buffer_->view(), plan_.view(), out_),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_OK(backend_->Sample(buffer_->view().Rows(0, 0), {}, {}));
  EXPECT_THAT(fake::Launches("SampleRows"), ::testing::IsEmpty());
}

// One layer of a model, as a model calls it.
class CudaStepTest : public CudaBackendTest {
 protected:
  void SetUp() override {
    CudaBackendTest::SetUp();
    table_ = Load(kVocabulary);
    qkv_ = Load(4 * 64);
    out_ = Load(kHidden);
    x_ = Make(kRows, kHidden, BufferUse::kExact);
    norm_ = Make(1, kHidden, BufferUse::kExact);
    operand_ = Make(kRows, kHidden, BufferUse::kOperand);
    projected_ = Make(kRows, 4 * 64, BufferUse::kOperand);
    last_ = Make(kRows, kHidden, BufferUse::kOperand);
    logits_ = Make(kRows, kVocabulary, BufferUse::kExact);
    region_ = *backend_->memory().AllocateHost(kRows * sizeof(RowChoice));
    angles_ =
        *backend_->MakeRopeTable({.inv_freq = std::vector<double>(32, 0.1), .max_positions = 1024});
    arena_.shape = {.layers = 1, .kv_heads = 1, .head_dim = 64, .block_tokens = 16};
    arena_.base = Memory<std::byte>();
    for (uint32_t b = 0; b < 64; ++b) blocks_.emplace_back(b);
  }
  void TearDown() override {
    for (auto* matrix : {&table_, &qkv_, &out_}) matrix->reset();
    for (auto* buffer : {&x_, &norm_, &operand_, &projected_, &last_, &logits_}) buffer->reset();
    angles_.reset();
    region_.reset();
    CudaBackendTest::TearDown();
  }
  // A step of sequences of one length each.
  absl::Status Step(int64_t sequences, int64_t rows, int64_t kv_tokens) {
    sequences_.clear();
    logit_rows_.clear();
    for (int64_t i = 0; i < sequences; ++i) {
      sequences_.push_back(
          {.first_row = i * rows, .rows = rows, .kv_tokens = kv_tokens, .blocks = blocks_});
      logit_rows_.push_back(static_cast<int32_t>((i + 1) * rows - 1));
    }
    tokens_.assign(static_cast<size_t>(sequences * rows), 3);
    positions_.assign(tokens_.size(), 5);
    return backend_->RunStep(Inputs(), [&] { return ++calls_, Ops(); });
  }
  StepInputs Inputs() const {
    return {.tokens = tokens_,
            .positions = positions_,
            .sequences = sequences_,
            .logit_rows = logit_rows_,
            .sampling = plan_.view(),
            .kv = &arena_,
            .q_heads = 2,
            .ranks = ranks_};
  }
  absl::Status Ops() {
    const auto t = static_cast<int64_t>(tokens_.size());
    const auto l = static_cast<int64_t>(logit_rows_.size());
    const TensorView x = x_->view().Rows(0, t), operand = operand_->view().Rows(0, t);
    const TensorView qkv = projected_->view().Rows(0, t);
    const TensorView q = qkv.Cols(0, 128), k = qkv.Cols(128, 64), v = qkv.Cols(192, 64);
    RETURN_IF_ERROR(backend_->EmbedRows(*table_, 0, tokens_, x));
    RETURN_IF_ERROR(backend_->RmsNorm(x, norm_->view(), 1e-5F, operand));
    RETURN_IF_ERROR(Multiply(operand, *qkv_, qkv));
    RETURN_IF_ERROR(backend_->Rope(q, 2, positions_, *angles_));
    RETURN_IF_ERROR(backend_->Rope(k, 1, positions_, *angles_));
    RETURN_IF_ERROR(backend_->AppendKv(0, k, v, sequences_, arena_));
    RETURN_IF_ERROR(backend_->Attention({.layer = 0,
                                         .q_heads = 2,
                                         .scale = 0.125F,
                                         .q = q,
                                         .kv = &arena_,
                                         .sequences = sequences_,
                                         .out = operand}));
    RETURN_IF_ERROR(Multiply(operand, *out_, qkv.Cols(0, kHidden)));
    RETURN_IF_ERROR(backend_->AddRmsNorm(x, qkv.Cols(0, kHidden), norm_->view(), 1e-5F, operand));
    RETURN_IF_ERROR(backend_->GatherRows(
        operand, foreign_rows_.empty() ? logit_rows_ : foreign_rows_, last_->view().Rows(0, l)));
    RETURN_IF_ERROR(Multiply(last_->view().Rows(0, l), *table_, logits_->view().Rows(0, l)));
    if (plan_.rows.empty()) return absl::OkStatus();
    return backend_->Sample(
        logits_->view().Rows(0, l),
        foreign_plan_.rows.empty() ? plan_.view() : foreign_plan_.view(),
        {reinterpret_cast<RowChoice*>(region_->data()), static_cast<size_t>(l)});
  }
  // From now on steps of so many logit rows sample.
  void SampleIn(size_t rows) {
    plan_.rows.resize(rows);
    plan_.adjustments.resize(1);
    plan_.rows[0].adjustments = 1;
  }
  absl::Status Multiply(TensorView x, const Matrix& weight, TensorView out) {
    const Matrix* const weights[] = {&weight};
    return backend_->MatMul(x, weights, std::span(&out, 1));
  }
  std::vector<std::string> Kernels() {
    std::vector<std::string> kernels;
    for (const fake::Launch& launch : Take()) {
      if (!IsCopy(launch)) kernels.push_back(launch.kernel);
    }
    return kernels;
  }

  static constexpr int64_t kRows = 64;
  std::unique_ptr<Matrix> table_, qkv_, out_;
  std::unique_ptr<Buffer> x_, norm_, operand_, projected_, last_, logits_;
  std::unique_ptr<RopeTable> angles_;
  kvstore::KvArena arena_;
  std::vector<common::BlockId> blocks_;
  std::vector<AttentionSequence> sequences_;
  std::vector<common::TokenId> tokens_;
  std::vector<int32_t> positions_, logit_rows_;
  std::vector<int32_t> foreign_rows_;              // not empty: an op of the step uses these
  SamplingPlan plan_, foreign_plan_;               // of the step; not empty: used in place of it
  std::unique_ptr<kvstore::MemoryRegion> region_;  // of the choices
  Communicator* ranks_ = nullptr;
  int calls_ = 0;
};

TEST_F(CudaStepTest, ADecodeStepIsTheseKernelsAndOneCopy) {
  const size_t copies = fake::Launches("CopyKernel").size();
  ASSERT_OK(Step(2, 1, 100));
  EXPECT_THAT(Kernels(), ElementsAre(HasSubstr("EmbedRows"), HasSubstr("NormKernelILi8ELb0E"),
                                     HasSubstr("Gemv"), HasSubstr("Rope"), HasSubstr("Rope"),
                                     HasSubstr("AppendChunks"), HasSubstr("FewRows"),
                                     HasSubstr("Gemv"), HasSubstr("NormKernelILi8ELb1E"),
                                     HasSubstr("ZipKernel"), HasSubstr("Gemv")));
  EXPECT_EQ(fake::Launches("CopyKernel").size(), copies + 1);
}

TEST_F(CudaStepTest, ADecodeStepIsRecordedTheSecondTimeAndThenReplayed) {
  ASSERT_OK(Step(2, 1, 100));
  const size_t kernels = Kernels().size();
  ASSERT_OK(Step(2, 1, 101));
  EXPECT_EQ(Kernels().size(), 2 * kernels) << "recorded, and launched as a graph";
  EXPECT_EQ(fake::graph_launches(), 1u);
  const size_t launches = fake::calls("cudaLaunchKernel");
  const size_t copies = fake::Launches("CopyKernel").size();
  ASSERT_OK(Step(2, 1, 102));
  EXPECT_EQ(Kernels().size(), kernels);
  EXPECT_EQ(fake::graph_launches(), 2u);
  EXPECT_EQ(calls_, 2);
  EXPECT_EQ(fake::calls("cudaLaunchKernel"), launches + 1) << "the copy of its tables alone";
  EXPECT_EQ(fake::Launches("CopyKernel").size(), copies + 1);
}

// Ranks whose least is what this one says, or 0.
class AgreeingRanks final : public testing::StubCommunicator {
 public:
  AgreeingRanks() : StubCommunicator(0, 2) {}
  absl::StatusOr<int64_t> Least(int64_t value) override { return agree ? value : 0; }
  bool agree = true;
};

TEST_F(CudaStepTest, StepsOfSeveralRanksAreRecordedWhenAllCan) {
  AgreeingRanks ranks;
  ranks_ = &ranks;
  for (int i = 0; i < 3; ++i) ASSERT_OK(Step(2, 1, 100));
  EXPECT_EQ(calls_, 2);
  EXPECT_EQ(fake::graph_launches(), 2u);
  ranks.agree = false;
  ASSERT_OK(Step(2, 1, 100));
  EXPECT_EQ(calls_, 3);
  EXPECT_EQ(fake::graph_launches(), 2u);
}

TEST_F(CudaStepTest, RecordingsAreForgottenWhenRanksJoinAnew) {
  for (int i = 0; i < 2; ++i) ASSERT_OK(Step(1, 1, 100));
  EXPECT_EQ(fake::alive().graph_execs, 1u);
  fake::SetDeviceCount(2);
  ASSERT_OK_AND_ASSIGN(const auto second, CreateCudaBackend({.device = 1, .threads = 1}));
  Backend* const group[] = {backend_.get(), second.get()};
  // Whether there is an NCCL to join them is another matter.
  static_cast<void>(backend_->ConnectRanks(group, absl::Milliseconds(1), nullptr));
  EXPECT_EQ(fake::alive().graph_execs, 0u);
}

TEST_F(CudaStepTest, AStepOfAnotherShapeIsAnotherRecording) {
  for (int i = 0; i < 2; ++i) {
    ASSERT_OK(Step(2, 1, 100));
    ASSERT_OK(Step(3, 1, 100));
  }
  EXPECT_EQ(calls_, 4);
  EXPECT_EQ(fake::alive().graph_execs, 2u);
}

TEST_F(CudaStepTest, APrefillIsNotRecorded) {
  for (int i = 0; i < 3; ++i) {
    ASSERT_OK(Step(1, 40, 100));
    EXPECT_THAT(Kernels(), ::testing::Contains(HasSubstr("BatchPrefillWithPaged")));
  }
  EXPECT_EQ(calls_, 3);
  EXPECT_EQ(fake::graph_launches(), 0u);
  EXPECT_GT(library_.matmuls, 0u);
}

TEST_F(CudaStepTest, RecordingsAreForgottenWhenTheWorkspaceMoves) {
  for (int i = 0; i < 2; ++i) ASSERT_OK(Step(1, 1, 100));
  EXPECT_EQ(fake::alive().graph_execs, 1u);
  ASSERT_OK(Step(1, 1, 1000));  // keys that are split need one
  EXPECT_EQ(fake::alive().graph_execs, 0u);
  const int calls = calls_;
  ASSERT_OK(Step(1, 1, 100));
  EXPECT_EQ(calls_, calls + 1);
}

TEST_F(CudaStepTest, RecordingsAreForgottenWhenALargerMatrixIsLoaded) {
  for (int i = 0; i < 2; ++i) ASSERT_OK(Step(1, 1, 100));
  Load(1);
  EXPECT_EQ(fake::alive().graph_execs, 1u) << "the workspace will do";
  Load(1, 4096);
  EXPECT_EQ(fake::alive().graph_execs, 0u);
  for (int i = 0; i < 3; ++i) ASSERT_OK(Step(1, 1, 100));
  EXPECT_EQ(calls_, 4);
}

TEST_F(CudaStepTest, SamplingIsPartOfTheRecording) {
  SampleIn(2);
  ASSERT_OK(Step(2, 1, 100));
  EXPECT_THAT(Kernels().back(), HasSubstr("SampleRows"));
  ASSERT_OK(Step(2, 1, 101));
  Take();
  const size_t launches = fake::calls("cudaLaunchKernel");
  // More to send, of another kind, for as many rows.
  plan_.adjustments.resize(5);
  plan_.rows[1] = {.inverse_temperature = 1, .top_k = 3, .first_adjustment = 1, .adjustments = 4};
  ASSERT_OK(Step(2, 1, 102));
  EXPECT_EQ(fake::graph_launches(), 2u);
  EXPECT_THAT(Kernels().back(), HasSubstr("SampleRows"));
  EXPECT_EQ(fake::calls("cudaLaunchKernel"), launches + 1) << "the copy of its tables alone";
  plan_.Clear();
  ASSERT_OK(Step(2, 1, 103));
  EXPECT_EQ(fake::graph_launches(), 2u) << "a step that gives its logits has another shape";
}

TEST_F(CudaStepTest, AStepThatSamplesForeignRowsIsNotRecorded) {
  SampleIn(2);
  foreign_plan_ = plan_;
  for (int i = 0; i < 3; ++i) ASSERT_OK(Step(2, 1, 100));
  EXPECT_EQ(fake::graph_launches(), 0u);
}

TEST_F(CudaStepTest, AStepThatUsesForeignIndicesIsNotRecorded) {
  foreign_rows_ = {0, 1};
  for (int i = 0; i < 3; ++i) ASSERT_OK(Step(2, 1, 100));
  EXPECT_EQ(fake::graph_launches(), 0u);
  EXPECT_EQ(fake::alive().graph_execs, 0u);
}

TEST_F(CudaStepTest, OpsOutsideOfAStepSendTheirOwnTables) {
  ASSERT_OK(Step(1, 1, 100));
  Take();
  EXPECT_OK(Ops());
  EXPECT_THAT(Kernels(), ::testing::Contains(HasSubstr("FewRows")));
}

TEST_F(CudaStepTest, SparsePlansAreRefused) {
  ASSERT_OK(Step(1, 1, 100));
  Take();
  const LinePlan lines;
  const WorkingSet set;
  AttentionSequence sparse = sequences_[0], chosen = sequences_[0];
  sparse.lines = &lines;
  chosen.working_set = &set;
  const TensorView q = operand_->view().Rows(0, 1);
  for (const AttentionSequence& sequence : {sparse, chosen}) {
    EXPECT_THAT(backend_->Attention({.layer = 0,
                                     .q_heads = 2,
                                     .scale = 1,
                                     .q = q,
                                     .kv = &arena_,
                                     .sequences = std::span(&sequence, 1),
                                     .out = q}),
                StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("dense")));
  }
  ExpectNoLaunch();
}

TEST_F(CudaStepTest, NorDoesARecordedStepOfThatShapeServeThem) {
  ASSERT_OK(Step(1, 1, 100));
  ASSERT_OK(Step(1, 1, 101));
  const size_t replayed = fake::graph_launches();
  const WorkingSet set;
  sequences_[0].working_set = &set;
  EXPECT_THAT(backend_->RunStep(Inputs(), [&] { return Ops(); }),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("dense")));
  EXPECT_EQ(fake::graph_launches(), replayed);
}

TEST_F(CudaStepTest, AStepThatDoesNotFitRunsNoOps) {
  blocks_.clear();
  EXPECT_EQ(Step(1, 1, 100).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(calls_, 0);
}

}  // namespace
}  // namespace loopserve::worker::cuda

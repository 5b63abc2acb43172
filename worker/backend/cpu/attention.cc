#include "worker/backend/cpu/attention.h"

#include <algorithm>
#include <limits>
#include <span>

namespace loopserve::worker::cpu {
namespace {

using kvstore::KvDtype;
using kvstore::KvSide;

// Query rows that share one pass over the keys: enough to make loading a chunk cheap beside using
// it, few enough for their sums to stay in the second-level cache.
constexpr int64_t kQueryRows = 96;

int PaddedDim(int head_dim) { return (head_dim + kHeadAlign - 1) / kHeadAlign * kHeadAlign; }

// The keys that the row at `position` reads under a plan, ascending, each once.
void PlannedKeys(const AttentionSequence& seq, int32_t q_head, int32_t kv_head, int64_t position,
                 std::vector<int64_t>& keys) {
  keys.clear();
  if (seq.lines != nullptr) {
    const LinePlan::Head& head = seq.lines->heads[static_cast<size_t>(q_head)];
    for (const int32_t j : head.verticals) {
      if (j <= position) keys.push_back(j);
    }
    for (const int32_t d : head.slashes) {
      if (d <= position) keys.push_back(position - d);
    }
  } else {
    for (const int32_t j : seq.working_set->keys[static_cast<size_t>(kv_head)]) {
      if (j <= position) keys.push_back(j);
    }
    for (int64_t j = seq.working_set->dense_from; j <= position; ++j) keys.push_back(j);
  }
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
}

}  // namespace

struct AttentionRunner::Part {
  const AttentionSequence* seq = nullptr;
  int32_t kv_head = 0;
  int64_t row_begin = 0;  // of the sequence's new rows
  int64_t row_end = 0;
  // Parts of one range: which, of how many, and where in partials_ the state goes.
  int64_t range = -1;
  int64_t ranges = 0;
  size_t partial = 0;
};

struct AttentionRunner::State {
  float* highest = nullptr;  // [query rows]
  float* total = nullptr;    // [query rows]
  float* sum = nullptr;      // [query rows, padded_dim]

  static size_t Floats(size_t rows, int padded_dim) {
    return rows * (2 + static_cast<size_t>(padded_dim));
  }
  static State At(float* data, size_t rows) { return {data, data + rows, data + 2 * rows}; }
};

struct AttentionRunner::Scratch {
  int rows = 0;                   // query rows: [rows of the part][heads of the group]
  std::vector<int64_t> counts;    // [rows]: keys that each reads, ascending
  const int64_t* list = nullptr;  // positions of the keys; null: key i is position i
  std::vector<int64_t> planned;   // what list points to
  std::vector<int> visible;       // [rows]
  std::vector<float> q;           // [rows, padded_dim], scaled
  std::vector<float> keys;        // [head_dim, kKeyChunk]
  std::vector<float> values;      // [kKeyChunk, padded_dim]
  std::vector<float> whole;       // states
  std::vector<float> range;
  const std::byte* key_at[kKeyChunk];
  const std::byte* value_at[kKeyChunk];

  void Resize(int64_t query_rows, int head_dim) {
    const auto n = static_cast<size_t>(query_rows);
    const auto padded = static_cast<size_t>(PaddedDim(head_dim));
    rows = static_cast<int>(query_rows);
    counts.resize(n);
    visible.resize(n);
    q.resize(n * padded);
    keys.resize(static_cast<size_t>(head_dim) * kKeyChunk);
    values.resize(kKeyChunk * padded);
    whole.resize(State::Floats(n, static_cast<int>(padded)));
    range.resize(whole.size());
  }

  // Query rows of heads [first_head, first_head + heads) of rows [begin, end) of the sequence.
  void LoadQueries(const AttentionArgs& args, const AttentionSequence& seq, int64_t begin,
                   int64_t end, int32_t first_head, int32_t heads) {
    const int head_dim = args.kv->shape.head_dim;
    const int padded = PaddedDim(head_dim);
    Resize((end - begin) * heads, head_dim);
    float* to = q.data();
    size_t row = 0;
    for (int64_t r = begin; r < end; ++r) {
      const float* from = args.q.row(seq.first_row + r) + first_head * head_dim;
      for (int32_t h = 0; h < heads; ++h, from += head_dim, to += padded) {
        for (int i = 0; i < head_dim; ++i) to[i] = from[i] * args.scale;
        std::fill(to + head_dim, to + padded, 0.0f);
        counts[row++] = seq.kv_tokens - seq.rows + r + 1;
      }
    }
    list = nullptr;
  }

  // Where keys [begin, begin + count) of the walk lie in the arena.
  void LocateKeys(const AttentionArgs& args, const Part& part, int64_t begin, int count) {
    const kvstore::KvShape& shape = args.kv->shape;
    const size_t vector_bytes = static_cast<size_t>(shape.head_dim) * DtypeBytes(shape.dtype);
    const size_t key_offset = shape.offset(args.layer, KvSide::kKey, part.kv_head);
    const size_t value_offset = shape.offset(args.layer, KvSide::kValue, part.kv_head);
    int64_t slot = shape.block_tokens;
    int64_t block_index = begin / shape.block_tokens - 1;
    const std::byte* block = nullptr;
    for (int j = 0; j < count; ++j, ++slot) {
      if (list != nullptr || j == 0 || slot == shape.block_tokens) {
        const int64_t position = list != nullptr ? list[begin + j] : begin + j;
        block_index = position / shape.block_tokens;
        slot = position % shape.block_tokens;
        block = args.kv->block(part.seq->blocks[static_cast<size_t>(block_index)]);
      }
      key_at[j] = block + key_offset + static_cast<size_t>(slot) * vector_bytes;
      value_at[j] = block + value_offset + static_cast<size_t>(slot) * vector_bytes;
    }
  }

  void WriteOut(const AttentionArgs& args, const Part& part, int32_t first_head, int32_t heads,
                int64_t row_begin, const State& state) const {
    const int head_dim = args.kv->shape.head_dim;
    const int padded = PaddedDim(head_dim);
    for (int n = 0; n < rows; ++n) {
      const int64_t row = part.seq->first_row + row_begin + n / heads;
      float* out = args.out.row(row) + (first_head + n % heads) * head_dim;
      const float inverse = counts[static_cast<size_t>(n)] > 0 ? 1.0f / state.total[n] : 0.0f;
      const float* sum = state.sum + static_cast<size_t>(n) * static_cast<size_t>(padded);
      for (int i = 0; i < head_dim; ++i) out[i] = sum[i] * inverse;
    }
  }
};

AttentionRunner::AttentionRunner(const Kernels& kernels, WorkCrew& crew)
    : kernels_(kernels), crew_(crew), scratch_(static_cast<size_t>(crew.threads())) {}

AttentionRunner::~AttentionRunner() = default;

void AttentionRunner::Run(const AttentionArgs& args) {
  parts_.clear();
  partials_.clear();
  for (const AttentionSequence& seq : args.sequences) AddParts(args, seq);
  crew_.For(static_cast<int64_t>(parts_.size()), 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t p = begin; p < end; ++p) {
      RunPart(args, parts_[static_cast<size_t>(p)], scratch_[static_cast<size_t>(thread)]);
    }
  });
  if (partials_.empty()) return;
  crew_.For(static_cast<int64_t>(parts_.size()), 8, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t p = begin; p < end; ++p) {
      const Part& part = parts_[static_cast<size_t>(p)];
      if (part.range == 0) MergeRanges(args, part, scratch_[static_cast<size_t>(thread)]);
    }
  });
}

void AttentionRunner::AddParts(const AttentionArgs& args, const AttentionSequence& seq) {
  const kvstore::KvShape& shape = args.kv->shape;
  const int64_t group = args.q_heads / shape.kv_heads;
  const int64_t wanted = crew_.threads() > 1 ? int64_t{3} * crew_.threads() : 1;
  const auto others = static_cast<int64_t>(args.sequences.size()) * shape.kv_heads;
  int64_t tile = std::max<int64_t>(1, kQueryRows / group);
  const auto tiles = [&] { return (seq.rows + tile - 1) / tile; };
  while (tile > 4 && tiles() * others < wanted) tile /= 2;
  const bool dense = seq.lines == nullptr && seq.working_set == nullptr;
  const bool by_range = dense && tiles() * others < wanted && seq.kv_tokens > 2 * kKeyRange;
  // Later rows read more keys: the largest parts come first.
  for (int64_t t = tiles() - 1; t >= 0; --t) {
    for (int32_t h = 0; h < shape.kv_heads; ++h) {
      Part part{&seq, h, t * tile, std::min((t + 1) * tile, seq.rows)};
      if (!by_range) {
        parts_.push_back(part);
        continue;
      }
      const int64_t keys = seq.kv_tokens - seq.rows + part.row_end;
      part.ranges = (keys + kKeyRange - 1) / kKeyRange;
      const auto rows = static_cast<size_t>((part.row_end - part.row_begin) * group);
      for (part.range = 0; part.range < part.ranges; ++part.range) {
        part.partial = partials_.size();
        partials_.resize(partials_.size() + State::Floats(rows, PaddedDim(shape.head_dim)));
        parts_.push_back(part);
      }
    }
  }
}

void AttentionRunner::WalkRange(const AttentionArgs& args, const Part& part, int64_t begin,
                                int64_t end, Scratch& scratch, State& state) {
  const kvstore::KvShape& shape = args.kv->shape;
  const int padded = PaddedDim(shape.head_dim);
  const bool bf16 = shape.dtype == KvDtype::kBf16;
  int row = 0;
  const auto skip_to = [&](int64_t key) {
    while (row < scratch.rows && scratch.counts[static_cast<size_t>(row)] <= key) ++row;
  };
  skip_to(begin);
  std::fill(state.highest + row, state.highest + scratch.rows,
            -std::numeric_limits<float>::infinity());
  std::fill(state.total + row, state.total + scratch.rows, 0.0f);
  std::fill(state.sum + row * padded, state.sum + scratch.rows * padded, 0.0f);
  for (int64_t key = begin; key < end; key += kKeyChunk) {
    skip_to(key);
    const int count = static_cast<int>(std::min<int64_t>(kKeyChunk, end - key));
    scratch.LocateKeys(args, part, key, count);
    kernels_.load_keys(scratch.key_at, count, bf16, shape.head_dim, scratch.keys.data());
    kernels_.load_values(scratch.value_at, count, bf16, shape.head_dim, padded,
                         scratch.values.data());
    for (int n = row; n < scratch.rows; ++n) {
      scratch.visible[static_cast<size_t>(n)] = static_cast<int>(
          std::min<int64_t>(kKeyChunk, scratch.counts[static_cast<size_t>(n)] - key));
    }
    kernels_.attend({.rows = scratch.rows - row,
                     .head_dim = shape.head_dim,
                     .padded_dim = padded,
                     .q = scratch.q.data() + row * padded,
                     .visible = scratch.visible.data() + row,
                     .keys = scratch.keys.data(),
                     .values = scratch.values.data(),
                     .highest = state.highest + row,
                     .total = state.total + row,
                     .sum = state.sum + row * padded});
  }
}

// Leaves the result in scratch.whole.
void AttentionRunner::WalkAll(const AttentionArgs& args, const Part& part, Scratch& scratch) {
  const int padded = PaddedDim(args.kv->shape.head_dim);
  const auto n = static_cast<size_t>(scratch.rows);
  State whole = State::At(scratch.whole.data(), n);
  State range = State::At(scratch.range.data(), n);
  const int64_t keys = n == 0 ? 0 : scratch.counts[n - 1];
  if (keys == 0) std::fill(scratch.whole.begin(), scratch.whole.end(), 0.0f);
  for (int64_t begin = 0; begin < keys; begin += kKeyRange) {
    const int64_t end = std::min(begin + kKeyRange, keys);
    WalkRange(args, part, begin, end, scratch, begin == 0 ? whole : range);
    if (begin == 0) continue;
    for (int r = 0; r < scratch.rows; ++r) {
      if (scratch.counts[static_cast<size_t>(r)] <= begin) continue;
      kernels_.merge(padded, whole.highest + r, whole.total + r, whole.sum + r * padded,
                     range.highest[r], range.total[r], range.sum + r * padded);
    }
  }
}

void AttentionRunner::RunPart(const AttentionArgs& args, const Part& part, Scratch& scratch) {
  const AttentionSequence& seq = *part.seq;
  if (seq.lines != nullptr || seq.working_set != nullptr) return RunSparse(args, part, scratch);
  const int32_t group = args.q_heads / args.kv->shape.kv_heads;
  const int32_t first_head = part.kv_head * group;
  scratch.LoadQueries(args, seq, part.row_begin, part.row_end, first_head, group);
  const auto n = static_cast<size_t>(scratch.rows);
  if (part.range < 0) {
    WalkAll(args, part, scratch);
    scratch.WriteOut(args, part, first_head, group, part.row_begin,
                     State::At(scratch.whole.data(), n));
    return;
  }
  State state = State::At(partials_.data() + part.partial, n);
  const int64_t begin = part.range * kKeyRange;
  const int64_t end = std::min(begin + kKeyRange, scratch.counts[n - 1]);
  WalkRange(args, part, begin, end, scratch, state);
}

void AttentionRunner::MergeRanges(const AttentionArgs& args, const Part& first, Scratch& scratch) {
  const int32_t group = args.q_heads / args.kv->shape.kv_heads;
  const int padded = PaddedDim(args.kv->shape.head_dim);
  const AttentionSequence& seq = *first.seq;
  scratch.LoadQueries(args, seq, first.row_begin, first.row_end, first.kv_head * group, group);
  const auto n = static_cast<size_t>(scratch.rows);
  const size_t step = State::Floats(n, padded);
  const State whole = State::At(partials_.data() + first.partial, n);
  for (int64_t i = 1; i < first.ranges; ++i) {
    const State range =
        State::At(partials_.data() + first.partial + static_cast<size_t>(i) * step, n);
    for (int r = 0; r < scratch.rows; ++r) {
      if (scratch.counts[static_cast<size_t>(r)] <= i * kKeyRange) continue;
      kernels_.merge(padded, whole.highest + r, whole.total + r, whole.sum + r * padded,
                     range.highest[r], range.total[r], range.sum + r * padded);
    }
  }
  scratch.WriteOut(args, first, first.kv_head * group, group, first.row_begin, whole);
}

void AttentionRunner::RunSparse(const AttentionArgs& args, const Part& part, Scratch& scratch) {
  const AttentionSequence& seq = *part.seq;
  const int32_t group = args.q_heads / args.kv->shape.kv_heads;
  // The heads of a group share a working set, but each has lines of its own.
  const int32_t together = seq.lines != nullptr ? 1 : group;
  for (int64_t r = part.row_begin; r < part.row_end; ++r) {
    for (int32_t g = 0; g < group; g += together) {
      const int32_t head = part.kv_head * group + g;
      scratch.LoadQueries(args, seq, r, r + 1, head, together);
      PlannedKeys(seq, head, part.kv_head, seq.kv_tokens - seq.rows + r, scratch.planned);
      scratch.list = scratch.planned.data();
      std::fill(scratch.counts.begin(), scratch.counts.end(),
                static_cast<int64_t>(scratch.planned.size()));
      WalkAll(args, part, scratch);
      scratch.WriteOut(args, part, head, together, r,
                       State::At(scratch.whole.data(), static_cast<size_t>(scratch.rows)));
    }
  }
}

}  // namespace loopserve::worker::cpu

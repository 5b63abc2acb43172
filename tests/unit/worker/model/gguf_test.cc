#include "worker/model/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <limits>

#include "absl/strings/match.h"
#include "tests/support/gguf_writer.h"

namespace loopserve::worker {
namespace {

using ::loopserve::testing::GgufBytes;
using ::loopserve::testing::GgufWriter;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint32_t kF32Tensor = 0;
constexpr uint32_t kQ8Tensor = 8;

using Bytes = std::vector<std::byte>;

// Bytes in a heap block of exactly their size, so that asan sees a read past the end.
struct Parsed {
  explicit Parsed(const Bytes& file)
      : bytes(file.begin(), file.end()), file(GgufFile::Parse(bytes)) {}
  const Bytes bytes;
  absl::StatusOr<std::unique_ptr<GgufFile>> file;
};

absl::Status StatusOf(const Bytes& bytes) { return Parsed(bytes).file.status(); }

void ExpectRefused(const Bytes& bytes, absl::string_view why) {
  const absl::Status status = StatusOf(bytes);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(why)));
}

void AddF32Tensor(GgufWriter& writer, absl::string_view name, std::vector<int64_t> dims,
                  std::optional<uint64_t> offset = std::nullopt) {
  int64_t values = 1;
  for (const int64_t dim : dims) values *= dim;
  std::vector<float> data(static_cast<size_t>(values));
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(i);
  writer.AddTensor(name, dims, kF32Tensor, std::as_bytes(std::span(data)), offset);
}

TEST(GgufTest, ReadsEveryKindOfValue) {
  GgufWriter writer;
  writer.AddNumber<uint8_t>("u8", GgufWriter::kU8, 200);
  writer.AddNumber<int8_t>("i8", GgufWriter::kI8, -7);
  writer.AddNumber<uint16_t>("u16", GgufWriter::kU16, 60000);
  writer.AddNumber<int16_t>("i16", GgufWriter::kI16, -300);
  writer.AddU32("u32", 4'000'000'000);
  writer.AddNumber<int32_t>("i32", GgufWriter::kI32, -5);
  writer.AddNumber<uint64_t>("u64", GgufWriter::kU64, 1ULL << 40);
  writer.AddNumber<int64_t>("i64", GgufWriter::kI64, -(1LL << 40));
  writer.AddNumber<uint64_t>("huge", GgufWriter::kU64, ~0ULL);
  writer.AddF32("f32", 0.5F);
  writer.AddNumber<double>("f64", GgufWriter::kF64, 0.25);
  writer.AddBool("yes", true);
  writer.AddString("text", "h\xC3\xA9");
  writer.AddStrings("texts", std::vector<std::string>{"a", "", "bc"});
  writer.AddInts("ints", std::vector<int32_t>{3, -1});
  writer.Key("floats", GgufWriter::kArray)
      .Put<uint32_t>(GgufWriter::kF32)
      .Put<uint64_t>(2)
      .Put(1.5F)
      .Put(-2.0F);
  const Parsed parsed(writer.Build());
  ASSERT_TRUE(parsed.file.ok()) << parsed.file.status();
  const GgufFile& file = **parsed.file;

  EXPECT_EQ(*file.GetInt("u8"), 200);
  EXPECT_EQ(*file.GetInt("i8"), -7);
  EXPECT_EQ(*file.GetInt("u16"), 60000);
  EXPECT_EQ(*file.GetInt("i16"), -300);
  EXPECT_EQ(*file.GetInt("u32"), 4'000'000'000);
  EXPECT_EQ(*file.GetInt("i32"), -5);
  EXPECT_EQ(*file.GetInt("u64"), 1LL << 40);
  EXPECT_EQ(*file.GetInt("i64"), -(1LL << 40));
  EXPECT_EQ(file.GetInt("huge").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(*file.GetFloat("f32"), 0.5);
  EXPECT_EQ(*file.GetFloat("f64"), 0.25);
  EXPECT_TRUE(*file.GetBool("yes"));
  EXPECT_EQ(*file.GetString("text"), "h\xC3\xA9");
  EXPECT_THAT(*file.GetStrings("texts"), ElementsAre("a", "", "bc"));
  EXPECT_EQ(*file.GetArraySize("texts"), 3);
  EXPECT_THAT(*file.GetInts("ints"), ElementsAre(3, -1));
  EXPECT_THAT(*file.GetFloats("floats"), ElementsAre(1.5F, -2.0F));
  EXPECT_TRUE(file.Has("u8"));
  EXPECT_FALSE(file.Has("u9"));
}

TEST(GgufTest, SaysWhichKeyIsMissingOrOfAnotherType) {
  GgufWriter writer;
  writer.AddString("text", "x");
  writer.AddF32("number", 1);
  writer.AddStrings("texts", std::vector<std::string>{"a"});
  writer.AddInts("ints", std::vector<int32_t>{1});
  const Parsed parsed(writer.Build());
  ASSERT_TRUE(parsed.file.ok());
  const GgufFile& file = **parsed.file;
  EXPECT_EQ(file.GetInt("none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(file.GetInt("none").status().message()), HasSubstr("none"));
  const auto wrong = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(file.GetInt("text").status().code(), wrong);
  EXPECT_EQ(file.GetInt("number").status().code(), wrong);
  EXPECT_EQ(file.GetInt("ints").status().code(), wrong);
  EXPECT_EQ(file.GetFloat("text").status().code(), wrong);
  EXPECT_EQ(file.GetBool("number").status().code(), wrong);
  EXPECT_EQ(file.GetString("number").status().code(), wrong);
  EXPECT_EQ(file.GetStrings("text").status().code(), wrong);
  EXPECT_EQ(file.GetStrings("ints").status().code(), wrong);
  EXPECT_EQ(file.GetInts("texts").status().code(), wrong);
  EXPECT_EQ(file.GetFloats("ints").status().code(), wrong);
  EXPECT_EQ(file.GetArraySize("text").status().code(), wrong);
}

TEST(GgufTest, GivesTensorsAsViewsOfTheBytes) {
  GgufWriter writer;
  AddF32Tensor(writer, "a", {3});
  AddF32Tensor(writer, "b", {4, 2, 3});
  writer.AddTensor("c", std::vector<int64_t>{32, 2}, kQ8Tensor, Bytes(68));
  const Parsed parsed(writer.Build());
  ASSERT_TRUE(parsed.file.ok()) << parsed.file.status();
  const GgufFile& file = **parsed.file;
  ASSERT_EQ(file.tensors().size(), 3U);
  EXPECT_EQ(file.file_bytes(), parsed.bytes.size());
  const GgufFile::Tensor* const b = file.FindTensor("b");
  ASSERT_NE(b, nullptr);
  EXPECT_THAT(b->dims, ElementsAre(4, 2, 3));
  EXPECT_EQ(b->view.cols, 4);
  EXPECT_EQ(b->view.rows, 6);
  ASSERT_EQ(b->view.data.size(), 24 * sizeof(float));
  float last = 0;
  std::memcpy(&last, &b->view.data[23 * sizeof(float)], sizeof(last));
  EXPECT_EQ(last, 23);
  EXPECT_EQ(file.FindTensor("c")->view.data.size(), 68U);
  EXPECT_EQ(file.FindTensor("c")->view.type, WeightType::kQ8_0);
  EXPECT_EQ(file.FindTensor("d"), nullptr);
}

TEST(GgufTest, HonoursTheAlignmentThatTheFileStates) {
  GgufWriter writer(64);
  writer.AddU32("general.alignment", 64);
  AddF32Tensor(writer, "a", {1});
  AddF32Tensor(writer, "b", {2});
  const Parsed parsed(writer.Build());
  ASSERT_TRUE(parsed.file.ok()) << parsed.file.status();
  const auto& tensors = (*parsed.file)->tensors();
  EXPECT_EQ(tensors[1].view.data.data() - tensors[0].view.data.data(), 64);
  EXPECT_EQ((tensors[0].view.data.data() - parsed.bytes.data()) % 64, 0);

  for (const uint32_t bad : {0U, 4U, 24U, 1U << 30}) {
    GgufWriter other;
    other.AddU32("general.alignment", bad);
    ExpectRefused(other.Build(), "general.alignment");
  }
  GgufWriter text;
  text.AddString("general.alignment", "32");
  ExpectRefused(text.Build(), "general.alignment");
}

TEST(GgufTest, RefusesOtherFilesVersionsAndByteOrders) {
  ExpectRefused({}, "magic");
  ExpectRefused(Bytes(100), "magic");
  Bytes file = GgufWriter().Build();
  for (const uint8_t version : {0, 1, 4, 255}) {
    file[4] = std::byte{version};
    EXPECT_EQ(StatusOf(file).code(), absl::StatusCode::kUnimplemented);
  }
  file[4] = std::byte{2};
  EXPECT_TRUE(StatusOf(file).ok());
  file[4] = std::byte{0};
  file[7] = std::byte{3};
  EXPECT_THAT(std::string(StatusOf(file).message()), HasSubstr("big-endian"));
}

TEST(GgufTest, RefusesEveryTruncation) {
  GgufWriter writer;
  writer.AddU32("number", 1);
  writer.AddStrings("texts", std::vector<std::string>{"a", "bc"});
  AddF32Tensor(writer, "weights", {5});
  const Bytes file = writer.Build();
  ASSERT_TRUE(StatusOf(file).ok());
  for (size_t size = 0; size < file.size(); ++size) {
    EXPECT_FALSE(StatusOf(Bytes(file.begin(), file.begin() + static_cast<ptrdiff_t>(size))).ok())
        << "cut to " << size;
  }
}

TEST(GgufTest, RefusesCountsThatTheFileCannotHold) {
  for (const uint64_t count : {uint64_t{3}, uint64_t{1} << 20, uint64_t{1} << 61, ~uint64_t{0}}) {
    GgufWriter tensors;
    tensors.OverrideCounts(count, 0);
    ExpectRefused(tensors.Build(), "tensor count");
    GgufWriter keys;
    keys.OverrideCounts(0, count);
    ExpectRefused(keys.Build(), "key count");
  }
}

TEST(GgufTest, RefusesMoreKeysAndTensorsThanAnyModelHas) {
  Bytes file = GgufWriter().Build();
  file.resize(4 << 20);  // room for the counts, so that only the limit speaks
  GgufWriter writer;
  writer.OverrideCounts(0, (1 << 16) + 1);
  Bytes header = writer.Build();
  std::copy(header.begin(), header.end(), file.begin());
  ExpectRefused(file, "key count 65537");
}

TEST(GgufTest, RefusesStringsAndArraysLongerThanTheFile) {
  for (const uint64_t size : {uint64_t{65}, uint64_t{1} << 32, uint64_t{1} << 62, ~uint64_t{0}}) {
    GgufWriter text;
    text.Key("text", GgufWriter::kString).Put(size).Put<uint64_t>(0);
    ExpectRefused(text.Build(), "longer than the file");

    GgufWriter key;
    key.AddU32("k", 1);
    Bytes file = key.Build();
    std::memcpy(&file[24], &size, sizeof(size));  // the first key's length
    if (size > file.size()) ExpectRefused(file, "longer than the file");

    for (const uint32_t type : {GgufWriter::kU8, GgufWriter::kU64, GgufWriter::kString}) {
      GgufWriter array;
      array.Key("array", GgufWriter::kArray).Put(type).Put(size);
      ExpectRefused(array.Build(), "longer than the file");
    }
  }
}

TEST(GgufTest, RefusesKeysAndNamesOutsideTheFormatsLimits) {
  GgufWriter empty;
  empty.AddU32("", 1);
  ExpectRefused(empty.Build(), "empty key");
  GgufWriter longest;
  longest.AddU32(std::string(65535, 'k'), 1);
  EXPECT_TRUE(StatusOf(longest.Build()).ok());
  GgufWriter longer;
  longer.AddU32(std::string(65536, 'k'), 1);
  ExpectRefused(longer.Build(), "longer than 65535");
  GgufWriter nameless;
  AddF32Tensor(nameless, "", {1});
  AddF32Tensor(nameless, "b", {1});
  ExpectRefused(nameless.Build(), "empty tensor name");
  GgufWriter named;
  AddF32Tensor(named, std::string(65, 'n'), {1});
  ExpectRefused(named.Build(), "longer than 64");
}

TEST(GgufTest, RefusesUnknownTypesNestedArraysAndOddBooleans) {
  for (const uint32_t type : {13U, 255U, ~0U}) {
    GgufWriter writer;
    writer.Key("k", type).Put<uint64_t>(0).Put<uint64_t>(0);
    ExpectRefused(writer.Build(), "unknown type");
    GgufWriter array;
    array.Key("k", GgufWriter::kArray).Put(type).Put<uint64_t>(1).Put<uint64_t>(0);
    ExpectRefused(array.Build(), "unknown type");
  }
  GgufWriter nested;
  nested.Key("k", GgufWriter::kArray)
      .Put<uint32_t>(GgufWriter::kArray)
      .Put<uint64_t>(1)
      .Put<uint32_t>(GgufWriter::kU8)
      .Put<uint64_t>(0);
  ExpectRefused(nested.Build(), "nested array");
  GgufWriter boolean;
  boolean.AddNumber<uint8_t>("k", GgufWriter::kBool, 2);
  ExpectRefused(boolean.Build(), "neither 0 nor 1");
}

TEST(GgufTest, RefusesDuplicates) {
  GgufWriter keys;
  keys.AddU32("same", 1);
  keys.AddF32("same", 1);
  ExpectRefused(keys.Build(), "duplicate key 'same'");
  GgufWriter tensors;
  AddF32Tensor(tensors, "same", {1});
  AddF32Tensor(tensors, "same", {1});
  ExpectRefused(tensors.Build(), "duplicate tensor 'same'");
}

TEST(GgufTest, RefusesImpossibleDimensions) {
  const int64_t big = int64_t{1} << 32;
  for (const std::vector<int64_t>& dims : {std::vector<int64_t>{},
                                           {1, 1, 1, 1, 1},
                                           {0},
                                           {4, 0},
                                           {-1},
                                           {big, big},
                                           {big, big, big, big},
                                           {1 << 20, 1 << 20}}) {
    GgufWriter writer;
    writer.AddTensor("t", dims, kF32Tensor, Bytes(64));
    ExpectRefused(writer.Build(), "dimension");
  }
}

TEST(GgufTest, RefusesUnknownFormatsAndBrokenBlocks) {
  GgufWriter unknown;
  unknown.AddTensor("t", std::vector<int64_t>{32}, 4, Bytes(64));
  EXPECT_EQ(StatusOf(unknown.Build()).code(), absl::StatusCode::kUnimplemented);
  GgufWriter broken;
  broken.AddTensor("t", std::vector<int64_t>{33}, kQ8Tensor, Bytes(68));
  ExpectRefused(broken.Build(), "whole number of Q8_0 blocks");
}

TEST(GgufTest, RefusesTensorsMisalignedOutsideOrOverlapping) {
  GgufWriter misaligned;
  AddF32Tensor(misaligned, "t", {16}, 4);
  ExpectRefused(misaligned.Build(), "misaligned");
  for (const uint64_t offset : {uint64_t{32}, uint64_t{1} << 40, ~uint64_t{31}}) {
    GgufWriter outside;
    AddF32Tensor(outside, "t", {16}, offset);
    ExpectRefused(outside.Build(), "exceeds the file");
  }
  GgufWriter overlapping;
  AddF32Tensor(overlapping, "a", {16});
  AddF32Tensor(overlapping, "b", {16}, 32);
  ExpectRefused(overlapping.Build(), "overlaps");
  GgufWriter same;
  AddF32Tensor(same, "a", {8});
  AddF32Tensor(same, "b", {8}, 0);
  ExpectRefused(same.Build(), "overlaps");
}

TEST(GgufTest, OpensFilesAndNamesWhatFails) {
  const std::string path = ::testing::TempDir() + "/gguf_test.gguf";
  GgufWriter writer;
  writer.AddString("general.architecture", "llama");
  AddF32Tensor(writer, "weights", {4});
  const Bytes bytes = writer.Build();
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
  const auto file = GgufFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(*(*file)->GetString("general.architecture"), "llama");
  EXPECT_EQ((*file)->file_bytes(), bytes.size());

  EXPECT_EQ(GgufFile::Open(path + ".none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(GgufFile::Open(::testing::TempDir()).status().code(),
            absl::StatusCode::kInvalidArgument);
  std::ofstream(path, std::ios::binary | std::ios::trunc).flush();
  EXPECT_EQ(GgufFile::Open(path).status().code(), absl::StatusCode::kInvalidArgument);
  std::remove(path.c_str());
}

}  // namespace
}  // namespace loopserve::worker

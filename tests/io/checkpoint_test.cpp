// Checkpoints of parts and an index: what is written is read, cut into any strips, no damage goes unseen, and
// a failed write leaves the old one.
#include "io/checkpoint.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>

#include "core/error.hpp"
#include "io/checkpoint_writer.hpp"
#include "io/hdf5.hpp"
#include "scratch.hpp"
#include "tables.hpp"

namespace sl {
namespace {

using test::message_of;
using test::ScratchFolder;
using testing::AllOf;
using testing::HasSubstr;

constexpr double long_enough = 60.0;  // seconds; a part here is written in milliseconds

// A tensor by name, and its numbers.
struct Named {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<float> values;
};

std::vector<Named> some_tensors() {
  std::vector<float> big(1500 * 900);  // of two pieces
  for (size_t i = 0; i < big.size(); ++i) big[i] = static_cast<float>(i) * 0.25F;
  return {{"parameter/layers.0.q", {1500, 900}, big},
          {"first_moment/layers.0.q", {2, 2, 3}, std::vector<float>(12, -0.5F)},
          {"vector", {3}, {1.F, std::numeric_limits<float>::infinity(), 5e-45F}}};
}

class Checkpoint : public testing::Test {
 protected:
  // One rank's part with these strips of a tensor, the last of which is written first.
  std::vector<CheckpointPiece> write_part(const Named& tensor, const std::vector<Strip>& strips, int rank,
                                          int64_t tag = 1) {
    std::vector<CheckpointPiece> pieces;
    std::vector<float> numbers;
    for (const Strip& strip : strips) {
      const auto at = static_cast<int64_t>(numbers.size());
      for (int64_t i = strip.begin; i < strip.begin + strip.count; ++i) {
        const int64_t place = i / strip.width * tensor.shape.back() + strip.column + i % strip.width;
        numbers.push_back(tensor.values[static_cast<size_t>(place)]);
      }
      pieces.insert(pieces.begin(), {tensor.name, tensor.shape, strip, at, "", 0});
    }
    CheckpointWriter writer(Device::cpu, static_cast<int64_t>(numbers.size()), pieces);
    std::memcpy(writer.copy(), numbers.data(), numbers.size() * sizeof(float));
    writer.drain(folder_ / checkpoint_part(path_, tag, rank));
    EXPECT_TRUE(writer.drained(long_enough));
    return writer.pieces();
  }
  // All of each tensor, in a part of its own.
  CheckpointIndex write_parts(const std::vector<Named>& tensors, int64_t tag = 1) {
    CheckpointIndex index{
        .kind = "test", .integers = {{"step", 42}, {"negative", -(int64_t{1} << 60)}}, .pieces = {}};
    int rank = 0;
    for (const Named& tensor : tensors) {
      const auto count = static_cast<int64_t>(tensor.values.size());
      for (const CheckpointPiece& piece : write_part(tensor, {{0, tensor.shape.back(), 0, count}}, rank, tag))
        index.pieces.push_back(piece);
      ++rank;
    }
    return index;
  }
  void write(const std::vector<Named>& tensors, int64_t tag = 1) {
    write_checkpoint_index(path_, write_parts(tensors, tag));
  }
  void expect_holds(const std::vector<Named>& tensors) {
    const CheckpointFile file(path_);
    EXPECT_EQ(file.shapes().size(), tensors.size());
    for (const Named& tensor : tensors) {
      EXPECT_EQ(file.shapes().at(tensor.name), tensor.shape);
      EXPECT_TRUE(file.read(tensor.name) == tensor.values) << tensor.name;
    }
    EXPECT_TRUE(holds_checkpoint(path_));
  }
  std::string part(int rank, int64_t tag = 1) { return folder_ / checkpoint_part(path_, tag, rank); }

  ScratchFolder folder_;
  std::string path_ = folder_ / "generator.h5";
};

TEST_F(Checkpoint, WhatIsWrittenIsRead) {
  write_checkpoint_index(path_, {});
  EXPECT_TRUE(CheckpointFile(path_).shapes().empty());
  write(some_tensors());
  expect_holds(some_tensors());
  EXPECT_EQ(CheckpointFile(path_).index().kind, "test");
  EXPECT_EQ(CheckpointFile(path_).index().integers.at("step"), 42);
  EXPECT_EQ(CheckpointFile(path_).index().integers.at("negative"), -(int64_t{1} << 60));
}

TEST_F(Checkpoint, TheNewOneTakesThePlaceOfTheOld) {
  write(some_tensors(), 1);
  std::vector<Named> next = some_tensors();
  for (float& value : next[0].values) value += 1.0F;
  const CheckpointIndex index = write_parts(next, 2);
  expect_holds(some_tensors());  // until the index is there
  test::write_bytes(part(7, 2) + ".partial", "left by a process that was killed");
  test::write_bytes(folder_ / "other.h5.2.00000.part", "not of this checkpoint");
  const std::set<std::string> before = checkpoint_parts(path_);
  test::write_bytes(part(1, 3) + ".partial", "of a rank that is already at the next one");
  write_checkpoint_index(path_, index, before);
  expect_holds(next);
  EXPECT_EQ(folder_.names(),
            (std::set<std::string>{"generator.h5", "generator.h5.2.00000.part", "generator.h5.2.00001.part",
                                   "generator.h5.2.00002.part", "generator.h5.3.00001.part.partial",
                                   "other.h5.2.00000.part"}));
  remove_checkpoint(path_);
  EXPECT_EQ(folder_.names(), std::set<std::string>{"other.h5.2.00000.part"});
  EXPECT_FALSE(holds_checkpoint(path_));
}

// Whatever strips ranks wrote, any others are read from them.
TEST_F(Checkpoint, StripsAreReadAsOtherStrips) {
  std::mt19937 generator(20261129);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(generator() % static_cast<uint64_t>(n)); };
  for (int trial = 0; trial < 40; ++trial) {
    Named tensor{"w", {1 + below(9), 1 + below(9)}, {}};
    const int64_t rows = tensor.shape[0], columns = tensor.shape[1];
    for (int64_t i = 0; i < rows * columns; ++i) tensor.values.push_back(static_cast<float>(i) + 0.5F);
    // Columns shared out among ranks, each rank's numbers cut anywhere, as ZeRO-1 cuts them.
    CheckpointIndex index{.kind = "test", .integers = {}, .pieces = {}};
    int rank = 0;
    for (int64_t column = 0; column < columns;) {
      const int64_t width = 1 + below(columns - column);
      std::vector<Strip> strips;
      for (int64_t begin = 0; begin < rows * width;) {
        const int64_t count = 1 + below(rows * width - begin);
        strips.push_back({column, width, begin, count});
        begin += count;
      }
      for (const CheckpointPiece& piece : write_part(tensor, strips, rank, trial))
        index.pieces.push_back(piece);
      ++rank;
      column += width;
    }
    write_checkpoint_index(path_, index);
    const CheckpointFile file(path_);
    EXPECT_EQ(file.read("w"), tensor.values);
    for (int i = 0; i < 20; ++i) {
      Strip wanted;
      wanted.column = below(columns);
      wanted.width = 1 + below(columns - wanted.column);
      wanted.begin = below(rows * wanted.width);
      wanted.count = 1 + below(rows * wanted.width - wanted.begin);
      std::vector<float> found(static_cast<size_t>(wanted.count) + 2, -1.0F);  // a guard on each side
      file.read("w", wanted, found.data() + 1);
      for (int64_t n = 0; n < wanted.count; ++n) {
        const int64_t at = wanted.begin + n;
        const int64_t place = at / wanted.width * columns + wanted.column + at % wanted.width;
        ASSERT_EQ(found[static_cast<size_t>(n) + 1], tensor.values[static_cast<size_t>(place)]);
      }
      EXPECT_EQ(found.front(), -1.0F);
      EXPECT_EQ(found.back(), -1.0F);
    }
    index.pieces.pop_back();
    write_checkpoint_index(path_, index);
    const auto read = [&] { CheckpointFile(path_).read("w"); };
    EXPECT_THAT(message_of<InputError>(read), AllOf(HasSubstr(path_), HasSubstr("'w'")));
  }
}

TEST_F(Checkpoint, DamageIsFound) {
  write(some_tensors());
  const auto message = [&] { return message_of<InputError>([&] { CheckpointFile(path_).check(); }); };
  const std::string whole = test::read_bytes(part(0));
  ASSERT_EQ(whole.size(), 1500U * 900 * sizeof(float));
  std::mt19937 generator(20261130);
  for (int i = 0; i < 10; ++i) {
    std::string changed = whole;
    changed[generator() % changed.size()] ^= static_cast<char>(1U << (generator() % 8));
    test::write_bytes(part(0), changed);
    EXPECT_THAT(message(), AllOf(HasSubstr(part(0)), HasSubstr("parameter/layers.0.q")));
    EXPECT_FALSE(holds_checkpoint(path_));
  }
  for (const size_t cut : {size_t{0}, size_t{100}, whole.size() / 2, whole.size() - 1}) {
    test::write_bytes(part(0), whole.substr(0, cut));
    EXPECT_THAT(message(), AllOf(HasSubstr(part(0)), HasSubstr("parameter/layers.0.q")));
  }
  test::write_bytes(part(0), whole);
  EXPECT_TRUE(holds_checkpoint(path_));
  std::filesystem::remove(part(2));
  EXPECT_THAT(message(), AllOf(HasSubstr(part(2)), HasSubstr("'vector'"), HasSubstr("No such file")));
  // The index is a dataset, with the checksums of one.
  const std::string index = test::read_bytes(path_);
  for (const size_t cut : {size_t{0}, size_t{100}, index.size() / 2, index.size() - 1}) {
    test::write_bytes(path_, index.substr(0, cut));
    EXPECT_THAT(message(), HasSubstr(path_));
  }
}

// Sound HDF5, with checksums that hold, that says what cannot be.
TEST_F(Checkpoint, AnIndexThatMakesNoSenseIsRefused) {
  write(some_tensors());
  const Table sound = read_table(path_);
  const auto refused_with = [&](const std::string& column, const Column& values) {
    Table table;
    for (const auto& [name, old] : sound.columns()) table.add(name, name == column ? values : old);
    table.attributes = sound.attributes;
    write_table(path_, table, MPI_COMM_NULL);
    EXPECT_THAT(message_of<InputError>([&] { CheckpointFile(path_).check(); }), HasSubstr(folder_.path()))
        << column;
  };
  const auto rows = static_cast<size_t>(sound.rows());
  const std::vector<int64_t> wrong = {-1, std::numeric_limits<int64_t>::max(),
                                      std::numeric_limits<int64_t>::min(), int64_t{1} << 40};
  for (const char* column : {"column", "width", "begin", "count", "at"}) {
    for (const int64_t value : wrong) refused_with(column, std::vector<int64_t>(rows, value));
  }
  refused_with("width", std::vector<int64_t>(rows, 0));
  refused_with("count", std::vector<int64_t>(rows, 0));
  refused_with("begin", std::vector<std::string>(rows, "0"));
  for (const char* shape : {"", "x", "3x", "0x3", "-1x3", "99999999999x99999999999", "3 x 4"})
    refused_with("shape", std::vector<std::string>(rows, shape));
  refused_with("part", std::vector<std::string>(rows, "../" + checkpoint_part(path_, 1, 0)));
  refused_with("tensor", std::vector<std::string>(rows, "one name, several shapes"));
  write_table(path_, test::some_table(1, 1), MPI_COMM_NULL);
  EXPECT_THAT(message_of<InputError>([&] { CheckpointFile{path_}; }), HasSubstr("no checkpoint"));
}

TEST_F(Checkpoint, AFailedWriteLeavesTheOldFile) {
  write({some_tensors()[2]});
  const Named big = some_tensors()[0];
  CheckpointWriter writer(Device::cpu, static_cast<int64_t>(big.values.size()),
                          {{big.name, big.shape, {0, 900, 0, 1500 * 900}, 0, "", 0}});
  {
    const test::FileSizeLimit limit(1000000);
    writer.drain(part(0, 2));
    EXPECT_THAT(message_of<SystemError>([&] { (void)writer.drained(long_enough); }), HasSubstr(part(0, 2)));
  }
  EXPECT_EQ(folder_.names(), (std::set<std::string>{"generator.h5", "generator.h5.1.00000.part"}));
  expect_holds({some_tensors()[2]});
  // There is room again: the same writer writes.
  std::memcpy(writer.copy(), big.values.data(), big.values.size() * sizeof(float));
  writer.drain(part(0, 2));
  EXPECT_TRUE(writer.drained(long_enough));
  write_checkpoint_index(path_, {.kind = "test", .integers = {}, .pieces = writer.pieces()});
  expect_holds({big});
}

TEST_F(Checkpoint, WhatIsGivenUpLeavesNothing) {
  const int64_t numbers = int64_t{1} << 24;
  {
    CheckpointWriter writer(Device::cpu, numbers, {{"w", {numbers}, {0, numbers, 0, numbers}, 0, "", 0}});
    writer.drain(part(0));
    writer.give_up();
    EXPECT_FALSE(writer.draining());
    std::filesystem::remove(part(0));  // where it was quicker
    writer.drain(part(1));
  }
  std::filesystem::remove(part(1));
  EXPECT_EQ(folder_.names(), std::set<std::string>{});
}

}  // namespace
}  // namespace sl

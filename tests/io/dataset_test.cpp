// Datasets in HDF5, written and read by one process: what is written is read, no damage goes
// unseen, and a failed write leaves the old file.
#include "io/dataset.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>

#include "core/error.hpp"
#include "io/hdf5.hpp"
#include "scratch.hpp"
#include "tables.hpp"

namespace sl {
namespace {

using test::message_of;
using test::ScratchFolder;
using test::some_table;
using testing::AllOf;
using testing::HasSubstr;

class Dataset : public testing::Test {
 protected:
  void write(const Table& table) { write_table(path_, table, MPI_COMM_NULL); }  // MPI was not started here
  void expect_equal(const Table& actual, const Table& expected) {
    EXPECT_TRUE(actual.columns() == expected.columns());  // too long to print
    EXPECT_EQ(actual.attributes, expected.attributes);
    EXPECT_EQ(actual.rows(), expected.rows());
  }
  ScratchFolder folder_;
  std::string path_ = folder_ / "initial.h5";
};

TEST_F(Dataset, WhatIsWrittenIsRead) {
  for (int64_t rows : {1, 7, 5000}) {  // the last has texts of several chunks
    const Table table = some_table(rows, 11);
    write(table);
    expect_equal(read_table(path_), table);
    EXPECT_EQ(folder_.names(), std::set<std::string>{"initial.h5"});
  }
}

// Where the chunks of a dataset of the file begin, and what they take.
std::vector<std::pair<haddr_t, hsize_t>> chunks_of(const std::string& path, const char* dataset) {
  const H5Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT), H5Fclose);
  const H5Handle data(H5Dopen2(file, dataset, H5P_DEFAULT), H5Dclose);
  const H5Handle space(H5Dget_space(data), H5Sclose);
  hsize_t count = 0;
  EXPECT_GE(H5Dget_num_chunks(data, space, &count), 0);
  std::vector<std::pair<haddr_t, hsize_t>> chunks(count);
  for (hsize_t i = 0; i < count; ++i) {
    hsize_t offset = 0;
    unsigned filters = 0;
    EXPECT_GE(H5Dget_chunk_info(data, space, i, &offset, &filters, &chunks[i].first, &chunks[i].second), 0);
  }
  return chunks;
}

TEST_F(Dataset, ChunksLieAsTheLayoutSays) {
  const Table table = some_table(5000, 11);
  write(table);
  const auto usual = chunks_of(path_, "response/bytes");
  for (const TableLayout& layout : {TableLayout{64, 0}, TableLayout{64, 64}, TableLayout{32, 256}}) {
    write_table(path_, table, MPI_COMM_NULL, layout);
    expect_equal(read_table(path_), table);
    const auto chunks = chunks_of(path_, "response/bytes");
    EXPECT_GT(chunks.size(), 2 * usual.size());
    const bool aligned = layout.alignment_kib > 0 && layout.alignment_kib <= 2 * layout.chunk_kib;
    bool gaps = false, begins = true;
    for (const auto& [address, bytes] : chunks) {
      EXPECT_LE(bytes, static_cast<hsize_t>(layout.chunk_kib) << 10);
      begins = begins && address % (hsize_t{64} << 10) == 0;
    }
    for (size_t i = 1; i < chunks.size(); ++i)
      gaps = gaps || chunks[i].first != chunks[i - 1].first + chunks[i - 1].second;
    EXPECT_EQ(begins, aligned) << layout.chunk_kib << " " << layout.alignment_kib;
    EXPECT_FALSE(gaps);  // whole stripes follow each other
  }
}

TEST_F(Dataset, EmptyTablesKeepTheirColumns) {
  const Table empty = some_table(0, 1);
  write(empty);
  expect_equal(read_table(path_), empty);
  EXPECT_EQ(read_table(path_).columns().size(), 5U);
  write(Table());
  EXPECT_TRUE(read_table(path_).columns().empty());
  Table hollow;  // rows without a byte
  hollow.add("text", std::vector<std::string>(3));
  hollow.add("tokens", std::vector<std::vector<int32_t>>(3));
  write(hollow);
  expect_equal(read_table(path_), hollow);
}

TEST_F(Dataset, NumbersAreKeptToTheBit) {
  Table table;
  table.add("integer", std::vector<int64_t>{std::numeric_limits<int64_t>::min(), -1, 0,
                                            std::numeric_limits<int64_t>::max()});
  table.add("number", std::vector<double>{-0.0, 5e-324, -std::numeric_limits<double>::infinity(), 1.0 / 3.0});
  write(table);
  const Table read = read_table(path_);
  expect_equal(read, table);
  EXPECT_TRUE(std::signbit(read.column<double>("number")[0]));
}

TEST_F(Dataset, LongAttributesAreKept) {
  Table table = some_table(2, 3);
  table.attributes["configuration"] = std::string(200000, 'c') + "长";
  write(table);
  expect_equal(read_table(path_), table);
}

TEST_F(Dataset, TablesAreConsistent) {
  Table table = some_table(4, 2);
  EXPECT_THROW(table.add("sample", std::vector<int64_t>(4)), BugError);
  EXPECT_THROW(table.add("short", std::vector<int64_t>(3)), BugError);
  EXPECT_THROW(table.column<double>("absent"), BugError);
  EXPECT_THROW(table.column<double>("sample"), BugError);
  const Table part = table.slice(1, 3);
  EXPECT_EQ(part.texts("instruction"), (std::vector<std::string>{"row 1", "row 2"}));
  EXPECT_EQ(part.attributes, table.attributes);
  EXPECT_EQ(table.slice(4, 4).rows(), 0);
  EXPECT_THROW(table.slice(3, 5), BugError);
}

// A flipped bit in the data of any column is found, and the message names the file and the column.
TEST_F(Dataset, AFlippedBitInTheDataIsFound) {
  Table table;
  table.add("text", std::vector<std::string>{"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "text"});
  table.add("tokens", std::vector<std::vector<int32_t>>{{0x11223344, 0x55667788}, {0x0A0B0C0D}});
  table.add("integer", std::vector<int64_t>{0x1122334455667788, 0x0102030405060708});
  table.add("number", std::vector<double>{1.2345678, 9.8765432});
  write(table);
  const std::string whole = test::read_bytes(path_);
  const double number = 9.8765432;
  const std::pair<std::string, std::string> marks[] = {
      {"GHIJKL", "text"},
      {std::string("\x88\x77\x66\x55", 4) + "\x0D\x0C\x0B\x0A", "tokens"},
      {"\x08\x07\x06\x05\x04\x03\x02\x01", "integer"},
      {std::string(reinterpret_cast<const char*>(&number), sizeof(number)), "number"}};
  for (const auto& [mark, column] : marks) {
    const size_t at = whole.find(mark);
    ASSERT_NE(at, std::string::npos) << column;
    for (int bit = 0; bit < 8; ++bit) {
      std::string changed = whole;
      changed[at + 2] = static_cast<char>(changed[at + 2] ^ (1 << bit));
      test::write_bytes(path_, changed);
      EXPECT_THAT(message_of<InputError>([&] { read_table(path_); }),
                  AllOf(HasSubstr(path_), HasSubstr(column)));
    }
  }
}

// Wherever in the file a bit flips, the table is refused or it is the right one.
TEST_F(Dataset, NoFlippedBitGoesUnseen) {
  const Table table = some_table(20, 5);
  write(table);
  const std::string whole = test::read_bytes(path_);
  std::mt19937 random(3);
  int refused = 0;
  for (int round = 0; round < 1500; ++round) {
    std::string changed = whole;
    const size_t at = random() % whole.size();
    changed[at] = static_cast<char>(changed[at] ^ (1U << (random() % 8)));
    test::write_bytes(path_, changed);
    try {
      const Table read = read_table(path_);
      ASSERT_TRUE(read.columns() == table.columns()) << "byte " << at;
    } catch (const InputError& error) {
      ++refused;
      EXPECT_THAT(error.what(), HasSubstr(path_));
    }
  }
  EXPECT_GT(refused, 500);
}

TEST_F(Dataset, AFileCutAnywhereIsRefused) {
  write(some_table(20, 5));
  const std::string whole = test::read_bytes(path_);
  for (size_t cut = 0; cut < whole.size(); cut += 211) {
    test::write_bytes(path_, whole.substr(0, cut));
    EXPECT_THAT(message_of<InputError>([&] { read_table(path_); }), HasSubstr(path_)) << "cut at " << cut;
  }
}

TEST_F(Dataset, ForeignFilesAreRefused) {
  EXPECT_THAT(message_of<InputError>([&] { read_table(folder_ / "absent.h5"); }), HasSubstr("absent.h5"));
  H5File::create(path_, MPI_COMM_SELF).close();
  EXPECT_THAT(message_of<InputError>([&] { read_table(path_); }), HasSubstr("no dataset"));
}

// A file that HDF5 finds sound, but whose columns are no table.
TEST_F(Dataset, ColumnsThatDisagreeAreRefused) {
  const auto refusal = [&](const std::string& columns) {
    const int64_t values[] = {1, 2, 3};
    H5File file = H5File::create(path_, MPI_COMM_NULL);
    file.write_attribute("format", 1);
    file.write_attribute("rows", 3);
    file.write_attribute("columns", columns);
    file.write("long", H5T_NATIVE_INT64, {3}, 0, 3, values);
    file.write("short", H5T_NATIVE_INT64, {2}, 0, 2, values);
    file.close();
    return message_of<InputError>([&] { read_table(path_); });
  };
  EXPECT_THAT(refusal("long,long"), AllOf(HasSubstr(path_), HasSubstr("'long' is named twice")));
  EXPECT_THAT(refusal("long,short"), AllOf(HasSubstr("'short' has 2 rows"), HasSubstr("3")));
}

TEST_F(Dataset, AFailedWriteLeavesTheOldFile) {
  const Table table = some_table(5, 1);
  write(table);
  const std::string before = test::read_bytes(path_);
  for (rlim_t limit : {100, 20000}) {
    const std::string message = message_of<LibraryError>([&] {
      const test::FileSizeLimit full(limit);
      write(some_table(2000, 2));
    });
    EXPECT_THAT(message, AllOf(HasSubstr("HDF5"), HasSubstr(path_)));
    EXPECT_EQ(folder_.names(), std::set<std::string>{"initial.h5"});
  }
  EXPECT_EQ(test::read_bytes(path_), before);
  path_ = folder_ / "no/initial.h5";
  EXPECT_THAT(message_of<LibraryError>([&] { write(table); }), HasSubstr("no/initial.h5"));
}

// The library must not turn the end of a process that has reported a full disk into a crash.
TEST_F(Dataset, AProcessThatCouldNotWriteEndsAsItWants) {
  const auto fail_and_exit = [&] {
    int code = 0;
    try {
      const test::FileSizeLimit full(20000);
      write(some_table(2000, 2));
    } catch (const LibraryError&) {
      code = 7;
    }
    std::exit(code);
  };
  EXPECT_EXIT(fail_and_exit(), testing::ExitedWithCode(7), "");
}

TEST_F(Dataset, NothingIsPrinted) {
  testing::internal::CaptureStderr();
  EXPECT_THROW(read_table(folder_ / "absent.h5"), InputError);
  test::write_bytes(path_, "no HDF5");
  EXPECT_THROW(read_table(path_), InputError);
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace sl

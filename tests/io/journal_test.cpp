// The journal: killed at any byte it loses the torn record alone, and damage is found.
#include "io/journal.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>

#include "core/error.hpp"
#include "io/checksum.hpp"
#include "scratch.hpp"

namespace sl {
namespace {

using nlohmann::json;
using test::message_of;
using test::ScratchFolder;
using testing::AllOf;
using testing::HasSubstr;

json record_of(int i) { return {{"sample", i}, {"text", "长 \"text\"\n" + std::string(20, 'x')}}; }

class JournalFile : public testing::Test {
 protected:
  void append(int begin, int end) {
    Journal journal(path_);
    for (int i = begin; i < end; ++i) journal.append(record_of(i));
    journal.sync();
  }
  void expect_records(int count, int64_t damaged = 0) {
    const JournalContent content = read_journal(path_);
    EXPECT_EQ(content.damaged, damaged);
    ASSERT_EQ(content.records.size(), static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) EXPECT_EQ(content.records[static_cast<size_t>(i)], record_of(i));
  }
  ScratchFolder folder_;
  std::string path_ = folder_ / "initial.00000.log";
};

TEST_F(JournalFile, RecordsComeBackInOrderAlsoAfterReopening) {
  append(0, 3);
  append(3, 5);
  expect_records(5);
}

TEST_F(JournalFile, ALineIsAChecksumAndTheText) {
  Journal(path_).append({{"a", 1}});
  EXPECT_EQ(test::read_bytes(path_), "561bacaf {\"a\":1}\n");
}

TEST_F(JournalFile, AbsentAndEmptyAreEmpty) {
  EXPECT_TRUE(read_journal(folder_ / "absent").records.empty());
  append(0, 0);
  expect_records(0);
  EXPECT_THAT(message_of<SystemError>([&] { read_journal(folder_.path()); }), HasSubstr(folder_.path()));
  EXPECT_THAT(message_of<SystemError>([&] { Journal journal(folder_ / "no/x.log"); }), HasSubstr("no/x.log"));
}

TEST_F(JournalFile, CutAtAnyByteItLosesTheTornRecordAlone) {
  append(0, 3);
  const std::string whole = test::read_bytes(path_);
  for (size_t cut = 0; cut <= whole.size(); ++cut) {
    test::write_bytes(path_, whole.substr(0, cut));
    const auto kept =
        static_cast<int>(std::count(whole.begin(), whole.begin() + static_cast<long>(cut), '\n'));
    expect_records(kept);
    append(kept, 4);  // goes on where it was
    expect_records(4);
  }
}

TEST_F(JournalFile, ATornLineLongerThanABlockIsCut) {
  append(0, 2);
  const std::string whole = test::read_bytes(path_);
  test::write_bytes(path_, whole + "12345678 {" + std::string(200000, 'y'));
  append(2, 3);
  expect_records(3);
}

TEST_F(JournalFile, AFlippedBitIsFoundAndCostsOneRecord) {
  append(0, 3);
  const std::string whole = test::read_bytes(path_);
  const size_t line = whole.size() / 3;  // all three are equally long
  for (size_t at = line; at < 2 * line - 1; ++at) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 0x04);
    if (changed[at] == '\n') continue;  // makes two lines of one
    test::write_bytes(path_, changed);
    const JournalContent content = read_journal(path_);
    EXPECT_EQ(content.damaged, 1) << "byte " << at;
    EXPECT_EQ(content.records, (std::vector<json>{record_of(0), record_of(2)}));
  }
}

TEST_F(JournalFile, LinesThatAreNoRecordsAreDamage) {
  append(0, 1);
  const std::string whole = test::read_bytes(path_);
  test::write_bytes(path_, "\n" + whole + "short\n" + "00000000 \n" + "zzzzzzzz {}\n");
  expect_records(1, 4);
  const std::string deep = "{\"a\":" + std::string(1000000, '[') + std::string(1000000, ']') + "}";
  test::write_bytes(path_, whole + checksum_digits(deep) + " " + deep + "\n");
  expect_records(1, 1);
}

TEST_F(JournalFile, AFullDiskSpoilsNothing) {
  append(0, 2);
  Journal journal(path_);
  {
    const test::FileSizeLimit limit(test::read_bytes(path_).size() + 10);
    EXPECT_THAT(message_of<SystemError>([&] { journal.append(record_of(2)); }),
                AllOf(HasSubstr(path_), HasSubstr("File too large")));
  }
  expect_records(2);
  journal.append(record_of(2));
  journal.sync();
  expect_records(3);
}

// A process that is killed has written every record that append() returned from.
TEST_F(JournalFile, AKilledProcessLosesNothingThatWasAppended) {
  int acknowledged[2];
  ASSERT_EQ(::pipe(acknowledged), 0);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    Journal journal(path_);
    for (int i = 0;; ++i) {
      journal.append(record_of(i));
      if (::write(acknowledged[1], &i, sizeof(i)) != sizeof(i)) ::_exit(1);
    }
  }
  int last = -1;
  while (last < 200)
    ASSERT_EQ(::read(acknowledged[0], &last, sizeof(last)), static_cast<ssize_t>(sizeof(last)));
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  ::close(acknowledged[1]);
  while (::read(acknowledged[0], &last, sizeof(last)) == static_cast<ssize_t>(sizeof(last))) {
  }
  ::close(acknowledged[0]);
  EXPECT_TRUE(WIFSIGNALED(status));
  const JournalContent content = read_journal(path_);
  EXPECT_EQ(content.damaged, 0);
  EXPECT_GE(static_cast<int>(content.records.size()), last + 1);
}

}  // namespace
}  // namespace sl

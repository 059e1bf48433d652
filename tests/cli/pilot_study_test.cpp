// tools/pilot_study.py over a small model: every text asked for is in the rows, and what it cannot use is
// refused.
#include <map>

#include "tests/cli/program.hpp"

namespace sl::test {
namespace {

class PilotStudy : public Program {
 protected:
  Outcome study(const std::string& arguments) const {
    const std::string command = "OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1 timeout 100 python3 '" +
                                std::string(SELFLENGTHEN_SOURCE_DIR) + "/tools/pilot_study.py' " + arguments +
                                " >'" + at("stdout") + "' 2>'" + at("stderr") + "'";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text(at("stdout")), read_text(at("stderr"))};
  }
};

TEST_F(PilotStudy, AsksForEveryLengthInEveryWay) {
  const Outcome outcome =
      study("'" + at("rows.jsonl") + "' --model '" + reference("models/tied") + "' --program '" +
            SELFLENGTHEN_BINARY +
            "' --count 2 --lengths 10 20 --strategy-length 15 --max-tokens 12 --min-tokens 6 "
            "--beams 2 --length-penalties 0.5 2 -- --kv-memory 64");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  int of_lengths = 0;
  std::map<std::string, int> of_ways;
  for (const nlohmann::json& row : rows("rows.jsonl")) {
    EXPECT_GE(row["words"].get<int>(), 0);
    EXPECT_TRUE(row["response"].is_string());
    const std::string words = std::to_string(row["requested"].get<int>()) + " words";
    EXPECT_NE(row["prompt"].get<std::string>().find(words), std::string::npos) << row;
    const std::string way = row["strategy"];
    if (row["part"] == "length") {
      ++of_lengths;
    } else {
      EXPECT_EQ(row["requested"], 15);
      ++of_ways[way];
    }
    EXPECT_EQ(row.contains("score"), way.find("2 beams") != std::string::npos) << row;
    if (way.find("at least 6 tokens") != std::string::npos) {
      EXPECT_GT(row["tokens"].size(), 6U);
    }
  }
  EXPECT_EQ(of_lengths, 4);
  EXPECT_EQ(of_ways.size(), 7U);
  for (const auto& [way, count] : of_ways) {
    EXPECT_EQ(count, 2) << way;
    EXPECT_NE(outcome.out.find(way), std::string::npos) << outcome.out;
  }
  EXPECT_EQ(study("'" + at("rows.jsonl") + "'").out, outcome.out) << "the table again";
}

TEST_F(PilotStudy, RefusesWhatItCannotUse) {
  const auto refused = [&](const std::string& arguments, const std::string& words) {
    const Outcome outcome = study(arguments);
    EXPECT_EQ(outcome.code, 2);
    EXPECT_NE(outcome.err.find(words), std::string::npos) << outcome.err;
    EXPECT_EQ(outcome.out, "");
  };
  refused("'" + at("none.jsonl") + "'", "give --model");
  refused("'" + write("there.jsonl", "{\"part\":\"length\"}\n") + "'", "there.jsonl:1");
  refused("'" + at("there.jsonl") + "' --model m", "is there already");
  refused("'" + at("new.jsonl") + "' --model m --count 0", "1 or more");
  refused("'" + at("new.jsonl") + "' --model m --program '" + at("nothing") + "'", "--program");
  refused(
      "'" + at("newer.jsonl") + "' --model '" + at("nothing") + "' --program '" + SELFLENGTHEN_BINARY + "'",
      "ended with exit code 2");
}

}  // namespace
}  // namespace sl::test

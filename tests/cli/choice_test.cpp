// evaluate choice: on SmolLM2 against Transformers' figures, on several ranks, and what it refuses.
#include <cmath>

#include "tests/cli/program.hpp"
#include "tests/model/reference.hpp"

namespace sl::test {
namespace {

using nlohmann::json;

class EvaluateChoice : public Program {
 protected:
  std::vector<std::string> command(const std::string& model, const std::string& data,
                                   const std::vector<std::string>& more = {}) const {
    std::vector<std::string> words = {"evaluate", "choice", "--model",  model,       "--data",
                                      data,       "--rows", at("rows"), "--threads", "1"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
};

TEST_F(EvaluateChoice, GivesTransformersFigures) {
  if (!std::filesystem::exists(smollm2_path())) GTEST_SKIP() << smollm2_path() << " is not there";
  const std::string recorded = reference("smollm2/choices.jsonl");
  const std::vector<json> expected = parse_rows(read_text(recorded));
  ASSERT_GE(expected.size(), 10U);
  for (const std::string kind : {"", "raw_"}) {
    std::vector<std::string> words = command(smollm2_path(), recorded);
    if (!kind.empty()) words.push_back("--raw");
    const Outcome outcome = run(words);
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const std::vector<json> got = rows("rows");
    ASSERT_EQ(got.size(), expected.size());
    int64_t right = 0, right_normalized = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const std::vector<double> want = expected[i][kind + "logprobs"], have = got[i]["logprobs"];
      const std::vector<int64_t> counts = expected[i][kind + "token_counts"];
      EXPECT_EQ(got[i]["token_counts"], counts);
      ASSERT_EQ(have.size(), want.size());
      std::vector<double> means;
      for (size_t c = 0; c < want.size(); ++c) {
        EXPECT_LE(std::abs(have[c] - want[c]), 1e-4 * static_cast<double>(counts[c])) << "row " << i;
        means.push_back(want[c] / static_cast<double>(counts[c]));
      }
      const auto best = [](const std::vector<double>& values) {
        return static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin());
      };
      const json& answer = expected[i]["answer"];
      const auto is_right = [&](size_t chosen) {
        return answer.is_string() ? expected[i]["choices"][chosen] == answer : answer == chosen;
      };
      EXPECT_EQ(got[i]["chosen"], best(want));
      EXPECT_EQ(got[i]["chosen_normalized"], best(means));
      EXPECT_EQ(got[i]["correct"], is_right(best(want)));
      right += is_right(best(want)) ? 1 : 0;
      right_normalized += is_right(best(means)) ? 1 : 0;
    }
    const json report = json::parse(outcome.out);
    const auto count = static_cast<double>(got.size());
    EXPECT_EQ(report["rows"], got.size());
    EXPECT_DOUBLE_EQ(report["accuracy"].get<double>(), static_cast<double>(right) / count);
    EXPECT_DOUBLE_EQ(report["accuracy_normalized"].get<double>(),
                     static_cast<double>(right_normalized) / count);
  }
}

TEST_F(EvaluateChoice, GivesTheSameOnSeveralRanks) {
  const std::string data = write("d.jsonl",
                                 "{\"question\":\"q\",\"choices\":[\"a\",\"bc\"],\"answer\":0}\n"
                                 "{\"question\":\"r\",\"choices\":[\"a\",\"bc\",\"d\"],\"answer\":\"d\"}\n");
  const Outcome one = run(command(reference("models/tied"), data, {"--deterministic"}));
  ASSERT_EQ(one.code, 0) << one.err;
  const std::vector<json> alone = rows("rows");
  const Outcome two =
      run(command(reference("models/tied"), data, {"--deterministic", "--pass-tokens", "8"}), 2);
  ASSERT_EQ(two.code, 0) << two.err;
  EXPECT_EQ(rows("rows"), alone);
  EXPECT_EQ(two.out, one.out);
  EXPECT_NEAR(json::parse(one.out)["chance"].get<double>(), (1.0 / 2 + 1.0 / 3) / 2, 1e-12);
}

TEST_F(EvaluateChoice, RefusesBadRows) {
  const auto refused = [&](const std::string& line, const std::vector<std::string>& words) {
    const std::string good = "{\"question\":\"q\",\"choices\":[\"a\",\"b\"],\"answer\":1}\n";
    expect_refused(command(reference("models/tied"), write("bad.jsonl", good + line + "\n")), words);
    expect_no_file("rows");
  };
  const std::string question = "{\"question\":\"q\",\"choices\":";
  refused("{\"choices\":[\"a\",\"b\"],\"answer\":0}", {"bad.jsonl:2", "question"});
  refused("{\"question\":\"q\",\"answer\":0}", {"bad.jsonl:2", "choices"});
  refused(question + "[\"a\"],\"answer\":0}", {"bad.jsonl:2", "2 to 26"});
  std::string many;
  for (int i = 0; i < 27; ++i) many += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\"";
  refused(question + "[" + many + "],\"answer\":0}", {"bad.jsonl:2", "2 to 26"});
  refused(question + "[\"a\",3],\"answer\":0}", {"bad.jsonl:2", "3"});
  refused(question + "[\"a\",\"\"],\"answer\":0}", {"bad.jsonl:2", "empty"});
  refused(question + "[\"a\",\"a\"],\"answer\":0}", {"bad.jsonl:2", "twice"});
  for (const std::string answer : {"2", "-1", "0.0", "\"c\"", "null", "18446744073709551615", "true"})
    refused(question + "[\"a\",\"b\"],\"answer\":" + answer + "}", {"bad.jsonl:2", answer});
  refused(question + "[\"a\",\"b\"]}", {"bad.jsonl:2", "answer"});
}

}  // namespace
}  // namespace sl::test

// evaluate longen: responses of a model, kept and judged; on one rank and on several.
#include "tests/cli/program.hpp"

namespace sl::test {
namespace {

using nlohmann::json;

const char* const dimensions[] = {"relevance", "coherence",  "accuracy",  "consistency",
                                  "clarity",   "creativity", "engagement"};

std::string judgement_of(int score) {
  json object;
  for (const char* dimension : dimensions) object[dimension] = score;
  return object.dump();
}

class EvaluateLonGen : public Program {
 protected:
  using Words = std::vector<std::string>;

  // Six queries, of every type and both languages.
  std::string data() const {
    std::string text;
    const char* const types[] = {"about", "range", "above", "below", "about", "below"};
    for (int i = 0; i < 6; ++i) {
      const std::string type = types[i];
      text += json{{"language", i % 2 == 0 ? "en" : "zh"},
                   {"range", "2-4k"},
                   {"type", type},
                   {"constraint", type == "range" ? "4-8 words" : "10 words"},
                   {"query", "Write of harbour number " + std::to_string(i)}}
                  .dump() +
              "\n";
    }
    return write("data.jsonl", text);
  }
  static Words command(const std::string& data, const Words& more) {
    Words words = {"evaluate", "longen", "--data", data};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  static Words answering(const Words& more) {
    Words words = {"--model", reference("models/tied"), "--max-tokens", "12", "--kv-memory",
                   "64",      "--deterministic"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  // Rows with six responses that are already there.
  std::string answered() const {
    std::string text;
    for (json row : parse_rows(read_text(data()))) {
      row["response"] = "a b c d e f g h i";
      text += row.dump() + "\n";
    }
    return write("answered.jsonl", text);
  }
};

TEST_F(EvaluateLonGen, AnswersAsGenerateDoes) {
  const Outcome outcome = run(command(data(), answering({"--rows", at("rows.jsonl"), "--seed", "5"})));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("language  range"), std::string::npos) << outcome.err;
  std::string prompts;
  for (const json& row : rows("data.jsonl")) prompts += json{{"prompt", row["query"]}}.dump() + "\n";
  const Outcome generated =
      run({"generate", "--model", reference("models/tied"), "--input", write("p.jsonl", prompts), "--output",
           "-", "--max-tokens", "12", "--seed", "5", "--kv-memory", "64", "--deterministic"});
  ASSERT_EQ(generated.code, 0) << generated.err;
  const std::vector<json> have = rows("rows.jsonl"), want = parse_rows(generated.out);
  ASSERT_EQ(have.size(), 6U);
  ASSERT_EQ(want.size(), 6U);
  double sum = 0.0;
  int64_t cut = 0;
  std::string given;
  for (size_t i = 0; i < have.size(); ++i) {
    EXPECT_EQ(have[i]["response"], want[i]["response"]);
    EXPECT_EQ(have[i]["finish_reason"], want[i]["finish_reason"]);
    EXPECT_EQ(have[i]["query"], rows("data.jsonl")[i]["query"]);
    sum += have[i]["score"].get<double>();
    cut += have[i]["finish_reason"] == "length" ? 1 : 0;
    json row = rows("data.jsonl")[i];
    row["response"] = have[i]["response"];
    given += row.dump() + "\n";
  }
  const json report = json::parse(outcome.out);
  EXPECT_DOUBLE_EQ(report["overall"].get<double>(), sum / 6.0);
  EXPECT_EQ(report["finish_reasons"].value("length", 0), cut);
  // The same scores as of responses that are given.
  const Outcome scored = run(command(write("given.jsonl", given), {"--table", at("table.txt")}));
  ASSERT_EQ(scored.code, 0) << scored.err;
  EXPECT_EQ(scored.err, "");
  json without = report;
  without.erase("finish_reasons");
  EXPECT_EQ(json::parse(scored.out), without);
  EXPECT_NE(outcome.err.find(read_text(at("table.txt"))), std::string::npos);
}

TEST_F(EvaluateLonGen, GivesTheSameOnSeveralRanks) {
  ASSERT_EQ(run(command(data(), answering({"--rows", at("one.jsonl"), "--judge"}))).code, 0);
  ASSERT_EQ(run(command(data(), answering({"--rows", at("two.jsonl"), "--judge"})), 2).code, 0);
  ASSERT_EQ(run(command(data(), answering({"--rows", at("tp.jsonl"), "--judge", "--tp", "2"})), 2).code, 0);
  EXPECT_EQ(rows("one.jsonl"), rows("two.jsonl"));
  EXPECT_EQ(rows("one.jsonl"), rows("tp.jsonl"));
}

// The model that answered judges without its adapter, and its weights are read once; another path to the same
// weights is another judge, and says the same.
TEST_F(EvaluateLonGen, JudgesWithTheWeightsThatAnswered) {
  const auto times_loaded = [](const Outcome& outcome) {
    int times = 0;
    const std::string line = " layers, ";
    for (size_t at = outcome.err.find(line); at != std::string::npos; at = outcome.err.find(line, at + 1))
      ++times;
    return times;
  };
  for (const bool adapted : {false, true}) {
    Words words = answering({"--judge", "--judge-attempts", "2", "--judge-tokens", "8", "--log-level",
                             "debug", "--rows", at("own.jsonl")});
    if (adapted) words.insert(words.end(), {"--adapter", reference("peft/tied/final")});
    const Outcome own = run(command(data(), words));
    ASSERT_EQ(own.code, 0) << own.err;
    EXPECT_EQ(times_loaded(own), 1) << own.err;
    std::replace(words.begin(), words.end(), at("own.jsonl"), at("other.jsonl"));
    words.insert(words.end(), {"--judge-model", reference("models/tied/")});
    const Outcome other = run(command(data(), words));
    ASSERT_EQ(other.code, 0) << other.err;
    EXPECT_EQ(times_loaded(other), 2) << other.err;
    EXPECT_EQ(rows("own.jsonl"), rows("other.jsonl"));
    for (const char* name : {"own.jsonl", "other.jsonl"}) std::filesystem::remove(at(name));
  }
}

// A random model answers no JSON: every row and every answer is counted, and nothing else is lost.
TEST_F(EvaluateLonGen, AJudgeThatNeverAnswersIsCounted) {
  const Words judged = answering({"--rows", at("rows.jsonl"), "--judge", "--judge-attempts", "3",
                                  "--judge-tokens", "8", "--output", at("report.json")});
  const Outcome outcome = run(command(data(), judged));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json judge = json::parse(read_text(at("report.json"))).at("judge");
  EXPECT_EQ(judge["rows"], 6);
  EXPECT_EQ(judge["judged"], 0);
  EXPECT_EQ(judge["not_judged"]["refused"], 6);
  EXPECT_EQ(judge["attempts"], 18);
  EXPECT_TRUE(judge["overall"].is_null());
  int64_t faults = 0;
  for (const auto& [name, count] : judge["faults"].items()) faults += count.get<int64_t>();
  EXPECT_EQ(faults, 18);
  for (const char* dimension : dimensions)
    EXPECT_EQ(judge["dimensions"][dimension], (json{{"mean", nullptr}, {"judged", 0}, {"not_judged", 6}}));
  for (const json& row : rows("rows.jsonl")) {
    EXPECT_TRUE(row["score"].is_number());
    EXPECT_TRUE(row["judge"]["scores"].is_null());
    EXPECT_EQ(row["judge"]["why"], "refused");
    EXPECT_EQ(row["judge"]["attempts"], 3);
    EXPECT_TRUE(row["judge"]["answer"].is_string());
  }
  // Each attempt draws anew: with one less, the last answer is another.
  const std::vector<json> first = rows("rows.jsonl");
  Words fewer = judged;
  *(std::find(fewer.begin(), fewer.end(), "--judge-attempts") + 1) = "2";
  ASSERT_EQ(run(command(data(), fewer)).code, 0);
  int64_t differ = 0;
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_EQ(rows("rows.jsonl")[i]["response"], first[i]["response"]);
    differ += rows("rows.jsonl")[i]["judge"]["answer"] != first[i]["judge"]["answer"] ? 1 : 0;
  }
  EXPECT_GT(differ, 0);
}

TEST_F(EvaluateLonGen, AResponseThatTheJudgeCannotHoldIsCounted) {
  json row = {{"type", "above"}, {"constraint", "more than 10 words"}, {"query", "q"}};
  std::string far;
  for (int i = 0; i < 3000; ++i) far += "word ";
  row["response"] = far;
  const Outcome outcome = run(command(write("d.jsonl", row.dump() + "\n"),
                                      {"--judge-model", reference("models/tied"), "--kv-memory", "64"}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json judge = json::parse(outcome.out).at("judge");
  EXPECT_EQ(judge["not_judged"], (json{{"refused", 0}, {"too_long", 1}, {"missing", 0}}));
  EXPECT_EQ(judge["attempts"], 0);
}

TEST_F(EvaluateLonGen, GoesOnWhereItWasKilled) {
  const Words words = {"evaluate",
                       "longen",
                       "--data",
                       data(),
                       "--model",
                       reference("models/tied"),
                       "--max-tokens",
                       "200",
                       "--stop",
                       "",
                       "--kv-memory",
                       "64",
                       "--judge",
                       "--judge-tokens",
                       "4",
                       "--max-sequences",
                       "1",
                       "--deterministic",
                       "--rows",
                       at("rows.jsonl")};
  ASSERT_EQ(run(words).code, 0);
  const std::vector<json> whole = rows("rows.jsonl");
  expect_no_file("rows.jsonl.journal");

  // Killed as soon as a row is in the journal.
  std::filesystem::remove(at("rows.jsonl"));
  const std::string journal = at("rows.jsonl.journal.0");
  std::string killed = "OMP_NUM_THREADS=1 '" SELFLENGTHEN_BINARY "'";
  for (const std::string& word : words) killed += " '" + word + "'";
  killed += " >'" + at("o") + "' 2>&1 & while kill -0 $! && ! [ -s '" + journal +
            "' ]; do sleep 0.01; done 2>/dev/null; kill -9 $!; wait $! 2>/dev/null; test $? = 137";
  ASSERT_EQ(std::system(killed.c_str()), 0) << read_text(at("o"));
  ASSERT_TRUE(std::filesystem::exists(journal)) << read_text(at("o"));
  std::ofstream(journal, std::ios::app) << "12345678 {\"torn";
  const std::string left = read_text(journal);
  const auto kept = std::count(left.begin(), left.end(), '\n');
  EXPECT_GT(kept, 0);
  EXPECT_LT(kept, 12);
  const Outcome again = run(words, 2);
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(rows("rows.jsonl"), whole);
  expect_no_file("rows.jsonl.journal");

  // Finished rows are not made again, nor thrown away for others.
  const Outcome third = run(words);
  ASSERT_EQ(third.code, 0) << third.err;
  EXPECT_EQ(third.err.find("tokens/s"), std::string::npos) << third.err;
  EXPECT_EQ(rows("rows.jsonl"), whole);
  Words other = words;
  other.insert(other.end(), {"--seed", "9"});
  expect_refused(other, {"rows.jsonl", "other options", "another --rows"});
  EXPECT_EQ(rows("rows.jsonl"), whole);
  Words onto_data = command(data(), answering({"--rows", write("mine.jsonl", "{\"mine\":1}\n")}));
  expect_refused(onto_data, {"mine.jsonl:1", "another --rows"});
  EXPECT_EQ(read_text(at("mine.jsonl")), "{\"mine\":1}\n");
}

TEST_F(EvaluateLonGen, AsksAJudgeElsewhere) {
  const Outcome asked = run(command(answered(), {"--judge-export", at("ask.jsonl"), "--table", at("t")}));
  ASSERT_EQ(asked.code, 0) << asked.err;
  EXPECT_FALSE(json::parse(asked.out).contains("judge"));
  const std::vector<json> requests = rows("ask.jsonl");
  ASSERT_EQ(requests.size(), 6U);
  std::string answers;
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(requests[i]["id"], i);
    ASSERT_EQ(requests[i]["messages"].size(), 1U);
    const std::string content = requests[i]["messages"][0]["content"];
    EXPECT_NE(content.find("harbour number " + std::to_string(i)), std::string::npos);
    EXPECT_NE(content.find("a b c d e f g h i"), std::string::npos);
    EXPECT_EQ(content.find("写作指令") != std::string::npos, i % 2 == 1);
    if (i == 5) continue;
    answers += json{{"id", i}, {"answer", i == 4 ? "Very good." : judgement_of(i < 2 ? 9 : 3)}}.dump() + "\n";
  }
  const Outcome outcome = run(command(answered(), {"--judge-answers", write("a.jsonl", answers), "--rows",
                                                   at("rows.jsonl"), "--table", at("t")}));
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json judge = json::parse(outcome.out).at("judge");
  EXPECT_EQ(judge["judged"], 4);
  EXPECT_EQ(judge["not_judged"], (json{{"refused", 1}, {"too_long", 0}, {"missing", 1}}));
  EXPECT_DOUBLE_EQ(judge["overall"].get<double>(), 6.0);
  EXPECT_NE(read_text(at("t")).find("quality"), std::string::npos);
  EXPECT_EQ(rows("rows.jsonl")[0]["judge"]["scores"]["clarity"], 9);
  EXPECT_EQ(rows("rows.jsonl")[5]["judge"]["why"], "missing");

  const auto refused = [&](const std::string& line, const Words& words) {
    expect_refused(command(answered(), {"--judge-answers", write("bad.jsonl", line)}), words);
  };
  refused("{\"id\":77,\"answer\":\"\"}\n", {"bad.jsonl:1", "77"});
  refused("{\"answer\":\"\"}\n", {"bad.jsonl:1", "null"});
  refused("{\"id\":1}\n", {"bad.jsonl:1", "answer"});
  refused("{\"id\":1,\"answer\":\"a\"}\n{\"id\":1,\"answer\":\"a\"}\n", {"bad.jsonl:2", "second time"});
}

// A folder of prompts that was made for runs need not have the judge's; one that it has is used, or refused.
TEST_F(EvaluateLonGen, TakesTheBuiltInPromptOfTheJudgeWhereAFolderLacksIt) {
  const auto asked_with = [&](const Words& prompts) {
    Words words = command(answered(), {"--judge-export", at("ask.jsonl"), "--table", at("t")});
    words.insert(words.end(), prompts.begin(), prompts.end());
    const Outcome outcome = run(words);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return rows("ask.jsonl");
  };
  const std::vector<json> built_in = asked_with({});
  std::filesystem::create_directories(at("mine/en"));
  EXPECT_EQ(asked_with({"--prompts", at("mine")}), built_in);
  write("mine/en/judge_response.txt", "How good is {text} for {instruction}?\n");
  const std::vector<json> own = asked_with({"--prompts", at("mine")});
  EXPECT_EQ(own[0]["messages"][0]["content"], "How good is a b c d e f g h i for Write of harbour number 0?");
  EXPECT_EQ(own[1], built_in[1]);  // in the other language
  write("mine/en/judge_response.txt", "How good is {text}?\n");
  expect_refused(command(answered(), {"--judge-export", at("ask.jsonl"), "--prompts", at("mine")}),
                 {"mine/en/judge_response.txt", "lacks {instruction}"});
}

TEST_F(EvaluateLonGen, RefusesWhatCannotBe) {
  const std::string begin = "{\"type\":\"about\",\"constraint\":\"10 words\"";
  const auto refused = [&](const std::string& line, const Words& more, const Words& words) {
    expect_refused(
        command(write("bad.jsonl", begin + ",\"query\":\"q\",\"response\":\"a\"}\n" + line + "\n"), more),
        words);
  };
  refused(begin + "}", answering({}), {"bad.jsonl:2", "query"});
  refused(begin + ",\"query\":7}", answering({}), {"bad.jsonl:2", "query"});
  refused(begin + ",\"query\":\"q\"}", {}, {"bad.jsonl:2", "response"});
  refused(begin + ",\"response\":\"r\"}", {"--judge-export", at("e")}, {"bad.jsonl:2", "query"});
  refused("{\"type\":\"near\",\"constraint\":\"10 words\",\"query\":\"q\"}", answering({}),
          {"bad.jsonl:2", "near"});
  refused("{\"type\":\"range\",\"constraint\":\"ten words\",\"query\":\"q\"}", answering({}),
          {"bad.jsonl:2", "ten words"});
  const std::string twice = begin + ",\"id\":3,\"query\":\"q\",\"response\":\"r\"}";
  refused(twice + "\n" + twice, {"--judge-export", at("e")}, {"bad.jsonl:3", "id 3", "line 2"});
  expect_refused(command(answered(), {"--judge"}), {"--judge", "--judge-model"});
  expect_refused(command(answered(), {"--adapter", "a"}), {"--adapter", "--model"});
  expect_refused(command(answered(), {"--judge-model", "m", "--judge-answers", "a"}), {"--judge-answers"});
  expect_refused(command(answered(), {"--rows", at("answered.jsonl")}), {"answered.jsonl", "twice"});
  expect_refused(command(answered(), {"--rows", at("none/r")}), {"none/r", "folder"});
  expect_refused(command(answered(), {"--judge-export", at("e"), "--prompts", at("nowhere")}), {"nowhere"});
  expect_refused(command(data(), {"--model", at("nowhere")}), {"nowhere", "does not exist"});
}

}  // namespace
}  // namespace sl::test

// tools/report.py on the folder of a tiny run, on runs that are not whole, and on what is no run.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "launch.hpp"

namespace sl::test {
namespace {

using nlohmann::json;

Ended run_tool(const std::string& arguments) {
  const ScratchFolder files;
  const std::string command =
      fmt::format("PYTHONDONTWRITEBYTECODE=1 python3 '{}/tools/report.py' {} >'{}' 2>'{}'", source_dir,
                  arguments, files / "out", files / "err");
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_bytes(files / "out"), read_bytes(files / "err")};
}

Ended report_on(const std::string& run, const std::string& program = SELFLENGTHEN_BINARY) {
  return run_tool(fmt::format("'{}' --program '{}'", run, program));
}

std::string cells(const std::vector<std::string>& values) {
  return fmt::format("<tr><td>{}</td>", fmt::join(values, "</td><td>"));
}

bool holds(const std::string& page, const std::string& part) { return page.find(part) != std::string::npos; }

// "12345" -> "12,345", as the page has it.
std::string with_commas(std::string number) {
  for (auto at = std::ssize(number) - 3; at > 0; at -= 3) number.insert(static_cast<size_t>(at), ",");
  return number;
}

json last_row(const std::vector<json>& metrics, int iteration, const std::string& stage) {
  json found;
  for (const json& row : metrics) {
    if (row.at("iteration") == iteration && row.at("stage") == stage) found = row;
  }
  return found;
}

// A run folder by hand, with one finished stage.
void write_run(const std::string& folder, const std::vector<std::string>& responses) {
  std::filesystem::create_directories(folder + "/iter_01");
  const json run = {{"model", "models/<b>small</b> & old"},
                    {"state", "running"},
                    {"why", ""},
                    {"options", {{"iterations", 3}, {"seed", 5}, {"stop", {"\n\n---"}}}}};
  write_bytes(folder + "/run.json", run.dump());
  const size_t rows = responses.size();
  std::vector<int64_t> numbers(rows);
  std::iota(numbers.begin(), numbers.end(), 1);
  Table table;
  table.add("sample", numbers);
  table.add("response", responses);
  for (const char* name : {"words", "characters", "attempts", "tokens"}) table.add(name, numbers);
  table.add("kept", std::vector<int64_t>(rows, 1));
  table.add("instruction", std::vector<std::string>(rows, "Write <i>at length</i>."));
  write_table(RunFolder(folder).stage_file(1, "initial"), table, MPI_COMM_NULL);
}

TEST(Report, ShowsTheNumbersOfTheDatasetsAndMetrics) {
  const ScratchFolder scratch;
  const std::string out = scratch / "run";
  ASSERT_EQ(run_job(1, tiny_run(out)).status, 0);
  const Ended ended = report_on(out);
  ASSERT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(ended.err, "");
  const std::string page = read_bytes(out + "/report.html");
  EXPECT_FALSE(holds(page, "<script")) << "the page is to work without any";
  EXPECT_FALSE(holds(page, "href=\"http"));
  EXPECT_FALSE(std::filesystem::exists(out + "/report.html.partial"));

  std::vector<json> metrics;
  std::ifstream lines(RunFolder(out).metrics());
  for (std::string line; std::getline(lines, line);) metrics.push_back(json::parse(line));
  for (int iteration : {1, 2}) {
    for (const std::string stage : {"initial", "extended"}) {
      const Table table = read_table(RunFolder(out).stage_file(iteration, stage));
      std::vector<int64_t> words = table.integers("words");
      std::sort(words.begin(), words.end());
      const auto& kept = table.integers("kept");
      const auto count = static_cast<double>(words.size());
      const std::string lengths = cells(
          {std::to_string(iteration), stage, std::to_string(words.size()),
           fmt::format("{:.1f}",
                       static_cast<double>(std::accumulate(words.begin(), words.end(), int64_t{0})) / count),
           std::to_string(words[words.size() / 2]),
           std::to_string(words[static_cast<size_t>(0.9 * (count - 1))]), std::to_string(words.back()),
           std::to_string(std::accumulate(kept.begin(), kept.end(), int64_t{0}))});
      EXPECT_TRUE(holds(page, lengths)) << lengths;
    }
    for (const std::string stage : {"instructions", "initial", "extended"}) {
      const json row = last_row(metrics, iteration, stage);
      const auto number = [&](const char* key) {
        return with_commas(std::to_string(row.at(key).get<int64_t>()));
      };
      const std::string attempts =
          cells({std::to_string(iteration), stage, number("samples"), number("accepted"), number("given_up"),
                 number("abandoned"), number("attempts"), number("tokens"),
                 fmt::format("{:.1f}%",
                             100 * row.at("accepted").get<double>() / row.at("attempts").get<double>())});
      EXPECT_TRUE(holds(page, attempts)) << attempts;
      EXPECT_GT(row.at("seconds").get<double>(), 0.0);
      EXPECT_EQ(row.at("tokens_before"), 0) << "nothing was interrupted";
      const json& replicas = row.at("replicas");
      ASSERT_EQ(replicas.at("samples").size(), 1U);
      EXPECT_EQ(replicas.at("samples")[0], row.at("samples"));
      EXPECT_EQ(replicas.at("tokens")[0], row.at("tokens"));
      EXPECT_GT(replicas.at("steps")[0], 0);
      EXPECT_EQ(replicas.at("busy_seconds")[0], replicas.at("seconds"));
      const auto of_replica = [&](const char* key) { return replicas.at(key)[0].get<double>(); };
      const std::string rate = fmt::format("{:.0f}", of_replica("tokens") / of_replica("busy_seconds"));
      const std::string shared =
          fmt::format("<tr><td>{}</td><td>{}</td><td>1</td><td>0.0 %</td><td>0.0 %</td>", iteration, stage) +
          fmt::format("<td>{}</td>", with_commas(rate) + " to " + with_commas(rate)) +
          fmt::format("<td>{:.2f}</td><td>{:.1f}</td>",
                      1e3 * of_replica("busy_seconds") / of_replica("steps"),
                      of_replica("tokens") / of_replica("steps"));
      EXPECT_TRUE(holds(page, shared)) << shared;
    }
  }
  std::map<std::string, std::vector<double>> losses;  // steps of these tiny runs are single digits, in order
  for (const auto& [step, loss] : losses_of(out)) losses[step.substr(0, step.rfind('/'))].push_back(loss);
  ASSERT_EQ(losses.size(), 4U);
  for (const auto& [role, values] : losses) {
    ASSERT_LT(values.size(), 10U);
    const size_t slash = role.find('/');
    const std::string row =
        cells({role.substr(0, slash), role.substr(slash + 1), std::to_string(values.size()), "0",
               fmt::format("{:.4f}", values.front()), fmt::format("{:.4f}", values.back())});
    EXPECT_TRUE(holds(page, row)) << row;
  }
}

TEST(Report, ShowsTheCollection) {
  const ScratchFolder scratch;
  const std::string run = scratch / "run";
  write_run(run, {"One.", "Two."});
  const RunFolder collected = RunFolder(run).collected();
  std::filesystem::create_directories(collected.path());
  ASSERT_EQ(report_on(run).status, 0);
  EXPECT_TRUE(holds(read_bytes(run + "/report.html"), "The collection is not finished"));

  write_bytes(
      collected.metrics(),
      "{\"batch\":1,\"stage\":\"initial\",\"samples\":4,\"accepted\":3,\"attempts\":1200}\n"
      "{\"batch\":0,\"stage\":\"length_control\",\"samples\":3,\"accepted\":1,\"attempts\":5}\n{\"ba");
  Table final;
  const std::vector<std::string> texts(4, "a text");
  for (const char* name : {"instruction", "response", "language", "original_instruction"})
    final.add(name, texts);
  final.add("source", std::vector<std::string>{"iter_01/initial", "iter_01/initial",
                                               "collected/batch_01/initial", "collected/batch_01/initial"});
  final.add("words", std::vector<int64_t>{10, 20, 30, 41});
  final.add("demand", std::vector<std::string>{"about", "none", "about", "below"});
  final.add("woven", std::vector<int64_t>{1, 0, 0, 0});
  write_table(collected.stage_file(0, "final"), final, MPI_COMM_NULL);
  const Ended ended = report_on(run);
  ASSERT_EQ(ended.status, 0) << ended.err;
  EXPECT_EQ(ended.err, "");
  const std::string page = read_bytes(run + "/report.html");
  for (const std::vector<std::string>& row : std::vector<std::vector<std::string>>{
           {"iter_01/initial", "2", "15.0", "1", "1", "0", "100.0%"},
           {"collected/batch_01/initial", "2", "35.5", "2", "0", "2", "0.0%"},
           {"all", "4", "25.2", "3", "1", "2", "33.3%"},
           {"about", "2", "66.7%"},
           {"below", "1", "33.3%"},
           {"range", "0", "0.0%"},
           {"1", "initial", "4", "3", "0", "0", "1,200", "0", "0.2%"},
           {"all", "length control", "3", "1", "0", "0", "5", "0", "20.0%"}}) {
    EXPECT_TRUE(holds(page, cells(row))) << cells(row);
  }
}

TEST(Report, EscapesTextsAndFindsWhatIsNearlyTheSame) {
  const ScratchFolder scratch;
  std::string same = "<script>alert('x')</script> & more \x01";
  for (int i = 0; i < 60; ++i) same += fmt::format(" word{}", i);
  std::string changed = same;
  changed.replace(changed.find("word59"), 6, "another");
  write_run(scratch / "run", {same, changed, "Something else altogether."});
  const std::string output = scratch / "page.html";
  const Ended ended = run_tool(
      fmt::format("'{}' --program '{}' --output '{}'", scratch / "run", SELFLENGTHEN_BINARY, output));
  ASSERT_EQ(ended.status, 0) << ended.err;
  const std::string page = read_bytes(output);
  EXPECT_TRUE(holds(page, "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; more \u2401 word0"));
  EXPECT_FALSE(holds(page, "<script"));
  EXPECT_TRUE(holds(page, "Write &lt;i&gt;at length&lt;/i&gt;."));
  EXPECT_TRUE(holds(page, "models/&lt;b&gt;small&lt;/b&gt; &amp; old"));
  EXPECT_TRUE(holds(page, "<td>3</td><td>1.000</td><td>66.7%</td>"))
      << "texts, distinct 4-grams, near-duplicates";
  EXPECT_TRUE(holds(page, "running"));
  EXPECT_FALSE(std::filesystem::exists(scratch / "run/report.html"));
}

TEST(Report, GoesAsFarAsARunIsThere) {
  const ScratchFolder scratch;
  const std::string run = scratch / "run";
  write_run(run, {"One.", "Two."});
  write_bytes(run + "/metrics.jsonl",
              "{\"iteration\": 1, \"stage\": \"rollouts begin\", \"seconds\": 2.5}\n{\"iter");
  std::filesystem::create_directories(run + "/iter_01/journal");
  write_bytes(run + "/iter_01/journal/extended.00000.log", "00000000 {}\n00000000 {}\n0000");
  ASSERT_EQ(report_on(run).status, 0);
  EXPECT_TRUE(holds(read_bytes(run + "/report.html"), "2 samples so far"));

  const std::string dataset = RunFolder(run).stage_file(1, "initial");
  std::string bytes = read_bytes(dataset);
  bytes.resize(bytes.size() / 2);
  write_bytes(dataset, bytes);
  const Ended damaged = report_on(run);
  EXPECT_EQ(damaged.status, 0);
  EXPECT_TRUE(damaged.err.starts_with("warning: iteration 1, initial: left out: ")) << damaged.err;
  EXPECT_EQ(std::count(damaged.err.begin(), damaged.err.end(), '\n'), 1) << damaged.err;
  EXPECT_TRUE(holds(read_bytes(run + "/report.html"), "Not read: iteration 1, initial"));

  std::filesystem::remove_all(run + "/iter_01");
  EXPECT_EQ(report_on(run).status, 0) << "a run that was only begun";
}

TEST(Report, RefusesInOneLine) {
  const ScratchFolder scratch;
  std::filesystem::create_directories(scratch / "empty");
  std::filesystem::create_directories(scratch / "damaged");
  write_bytes(scratch / "damaged/run.json", "{\"options\"");
  std::filesystem::create_directories(scratch / "foreign");
  write_bytes(scratch / "foreign/run.json", "[1, 2]");
  write_run(scratch / "run", {"One."});
  const std::map<std::string, Ended> refusals = {
      {"does not exist", report_on(scratch / "nowhere")},
      {"is not a folder", report_on(scratch / "run/run.json")},
      {"is not the folder of a run", report_on(scratch / "empty")},
      {"is not JSON", report_on(scratch / "damaged")},
      {"has no options of a run", report_on(scratch / "foreign")},
      {"is no program", report_on(scratch / "run", scratch / "empty")},
      {"cannot be written", run_tool(fmt::format("'{}' --program '{}' --output '{}'", scratch / "run",
                                                 SELFLENGTHEN_BINARY, scratch / "no/page.html"))},
  };
  for (const auto& [words, ended] : refusals) {
    EXPECT_EQ(ended.status, 2) << words;
    EXPECT_TRUE(holds(ended.err, words)) << ended.err;
    EXPECT_EQ(std::count(ended.err.begin(), ended.err.end(), '\n'), 1) << ended.err;
  }
}

}  // namespace
}  // namespace sl::test

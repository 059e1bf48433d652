// The text files of a run. The first letter says which: a journal (J), run.json (R), rows of metrics (M),
// pages of .beats (B). Of small letters the checksums are put right first, so that what they guard is reached
// too.
#include <cctype>

#include "dist/stall.hpp"
#include "fuzz.hpp"
#include "io/checksum.hpp"
#include "io/journal.hpp"
#include "io/json_lines.hpp"
#include "io/run_folder.hpp"

namespace sl {
namespace {

std::string with_checksums(std::string_view lines) {
  std::string journal;
  while (!lines.empty()) {
    const std::string_view line = lines.substr(0, lines.find('\n'));
    lines.remove_prefix(std::min(line.size() + 1, lines.size()));
    journal += checksum_digits(line) + " " + std::string(line) + "\n";
  }
  return journal;
}

void read_and_continue_journal(const std::string& path) {
  const JournalContent before = read_journal(path);
  {
    Journal journal(path);
    journal.append({{"sample", 1}});
  }
  const JournalContent after = read_journal(path);
  require(after.records.size() == before.records.size() + 1 && after.damaged == before.damaged,
          "a record that was appended is not all that is new");
}

void read_and_write_run(const RunFolder& run) {
  const nlohmann::json content = run.read_run();
  run.write_run(content);
  require(run.read_run() == content, "run.json changes when it is written");
}

}  // namespace
}  // namespace sl

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sl;
  if (size == 0) return 0;
  const std::string_view input = fuzz::text_of(data + 1, size - 1);
  const RunFolder run(fuzz::folder());
  const bool sealed_again = std::islower(data[0]) != 0;
  switch (std::toupper(data[0])) {
    case 'J': {
      const std::string path = fuzz::put("stage.log", sealed_again ? with_checksums(input) : input);
      fuzz::accepted([&] { read_and_continue_journal(path); });
      break;
    }
    case 'R': {
      std::string text(input);
      const auto content = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
      if (sealed_again && content.is_object()) text = to_line(sealed(content));
      fuzz::put("run.json", text);
      fuzz::accepted([&] { read_and_write_run(run); });
      break;
    }
    case 'M':
      fuzz::put("metrics.jsonl", input);
      fuzz::accepted([&] { run.append_metrics({{"step", 1}}); });
      break;
    case 'B': {
      const auto beat = Beat::from_line(std::string(input));
      StallJudge judge(0, 2, 1.0);
      for (int look = 0; look < 30; ++look) (void)judge.look({Beat{.alive = look}, beat}, 0.1);
      break;
    }
    default:
      break;
  }
  return 0;
}

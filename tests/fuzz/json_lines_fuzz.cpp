// Rows of JSON: read, looked at as the commands do, written and read again; and the same bytes as seed
// instructions.
#include "cli/rows.hpp"
#include "fuzz.hpp"
#include "io/json_lines.hpp"
#include "text/prompts.hpp"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sl;
  const std::string path = fuzz::put("en.jsonl", fuzz::text_of(data, size));
  fuzz::accepted([&] {
    for (const JsonRow& row : read_json_lines(path)) {
      fuzz::accepted([&] { (void)required_string(row, "text", path); });
      fuzz::accepted([&] { (void)token_ids(row, "tokens", 1000, path); });
      require(nlohmann::json::parse(to_line(row.value)) == row.value, "a row changes when it is written");
    }
  });
  fuzz::accepted([&] { (void)load_seeds(fuzz::folder(), Language::en); });
  return 0;
}

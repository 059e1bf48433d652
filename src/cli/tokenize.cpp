// tokenize, detokenize: texts <-> token ids, with the tokenizer of a model.
#include "cli/commands.hpp"
#include "cli/options.hpp"
#include "cli/rows.hpp"
#include "cli/tokenizer_of.hpp"

namespace sl {

int tokenize_command(const Arguments& arguments) {
  FileChoice files;
  std::string model;
  bool add_special = false;
  CommandLine line("tokenize", "Adds to each row the token ids of its text.");
  line.group("Model");
  line.add("model", model, "Hugging Face folder, or .gguf file; only its tokenizer is read")
      .value_name("PATH")
      .required();
  line.add("add-special", add_special, "with the start token that the model's own tokenizer adds");
  add_file_options(line, files, "rows {\"text\"}", "the row plus \"tokens\"");
  line.note("Control tokens written in a text become their ids.");
  line.example("selflengthen tokenize --model MODEL --input texts.jsonl --output tokens.jsonl");
  if (!line.parse(arguments)) return 0;

  RowOutput::check(files.output);
  std::vector<JsonRow> rows = read_json_lines(files.input);
  const auto tokenizer = tokenizer_of(model);
  RowOutput output(files.output);
  for (JsonRow& row : rows) {
    row.value["tokens"] = tokenizer->encode(required_string(row, "text", files.input), add_special);
    output.write(row.value);
  }
  output.close();
  return 0;
}

int detokenize_command(const Arguments& arguments) {
  FileChoice files;
  std::string model;
  bool skip_special = false;
  CommandLine line("detokenize", "Adds to each row the text of its tokens.");
  line.group("Model");
  line.add("model", model, "Hugging Face folder, or .gguf file; only its tokenizer is read")
      .value_name("PATH")
      .required();
  line.add("skip-special", skip_special, "leave control tokens out of the text");
  add_file_options(line, files, "rows {\"tokens\"}", "the row plus \"text\"");
  line.note("Bytes that are not UTF-8, because the tokens end inside a character, become U+FFFD.");
  line.example("selflengthen detokenize --model MODEL --input tokens.jsonl --output texts.jsonl");
  if (!line.parse(arguments)) return 0;

  RowOutput::check(files.output);
  std::vector<JsonRow> rows = read_json_lines(files.input);
  const auto tokenizer = tokenizer_of(model);
  RowOutput output(files.output);
  for (JsonRow& row : rows) {
    const std::vector<int32_t> tokens = token_ids(row, "tokens", tokenizer->vocabulary_size(), files.input);
    row.value["text"] = tokenizer->decode(tokens, skip_special);
    output.write(row.value);
  }
  output.close();
  return 0;
}

}  // namespace sl

// tokenizer.json, then tokenizer_config.json, then a text that is tokenized with what they make.
#include "fuzz.hpp"
#include "text/chat.hpp"
#include "text/detokenizer.hpp"
#include "text/tokenizer.hpp"

namespace sl {
namespace {

void tokenize(const Tokenizer& tokenizer, std::string_view text) {
  for (const bool special : {false, true}) {
    const std::vector<int32_t> tokens = tokenizer.encode(text, special, special);
    IncrementalDetokenizer incremental(tokenizer);
    std::string pieces;
    for (const int32_t token : tokens) {
      require(token >= 0 && token < tokenizer.vocabulary_size(), "a token outside the vocabulary");
      pieces += incremental.push(token);
    }
    pieces += incremental.flush();
    require(pieces == replace_malformed(tokenizer.decode(tokens)), "token by token another text comes out");
  }
}

}  // namespace
}  // namespace sl

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sl;
  const auto parts = fuzz::parts_of(fuzz::text_of(data, size));
  fuzz::put("tokenizer.json", parts[0]);
  fuzz::put("tokenizer_config.json", parts.size() > 1 ? parts[1] : "{}");
  fuzz::accepted([&] {
    const Tokenizer tokenizer = Tokenizer::from_huggingface(fuzz::folder());
    if (parts.size() > 2) tokenize(tokenizer, parts[2]);
    (void)Chat(tokenizer).stop_tokens();
  });
  return 0;
}

#include "text/tokenizer.hpp"

#include "core/error.hpp"
#include "text/detokenizer.hpp"
#include "toy_tokenizer.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <fstream>
#include <functional>
#include <random>
#include <thread>

namespace sl {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

std::vector<std::string> spelled(const Tokenizer& tokenizer, const std::vector<int32_t>& tokens) {
  std::vector<std::string> result;
  for (const int32_t id : tokens) result.emplace_back(tokenizer.token_bytes(id));
  return result;
}

std::vector<std::string> spelled(const Tokenizer& tokenizer, std::string_view text,
                                 bool parse_special = true) {
  return spelled(tokenizer, tokenizer.encode(text, false, parse_special));
}

using Strings = std::vector<std::string>;

TEST(Tokenizer, MergesInTheOrderTheyWereLearnt) {
  const Tokenizer tokenizer = Tokenizer::from_parts(toy_parts());
  EXPECT_EQ(spelled(tokenizer, "hello hello"), (Strings{"hello", " hello"}));
  EXPECT_EQ(spelled(tokenizer, "hellhe"), (Strings{"hell", "he"}));
  EXPECT_EQ(spelled(tokenizer, "aaaaaaa"), (Strings{"aaaa", "aa", "a"}));
  EXPECT_EQ(spelled(tokenizer, "x12"), (Strings{"x", "1", "2"}));
  EXPECT_TRUE(tokenizer.encode("").empty());
  EXPECT_EQ(tokenizer.id_of(" hello"), tokenizer.encode(" hello").front());
  EXPECT_EQ(tokenizer.id_of("no such token"), std::nullopt);
}

TEST(Tokenizer, ControlTokensAreFoundOrNotAsAsked) {
  const Tokenizer tokenizer = Tokenizer::from_parts(toy_parts());
  EXPECT_EQ(spelled(tokenizer, "hello<|im_end|>hello"), (Strings{"hello", "<|im_end|>", "hello"}));
  const auto plain = tokenizer.encode("<|im_end|>", false, false);
  EXPECT_EQ(plain.size(), 10U);
  EXPECT_EQ(tokenizer.decode(plain), "<|im_end|>");
  const auto control = tokenizer.encode("hello<|im_end|>");
  EXPECT_TRUE(tokenizer.is_special(control.back()));
  EXPECT_FALSE(tokenizer.is_special(control.front()));
  EXPECT_EQ(tokenizer.decode(control, true), "hello");
  EXPECT_EQ(tokenizer.decode(control, false), "hello<|im_end|>");
}

TEST(Tokenizer, BeginningOfTextIsAddedWhereTheModelWantsIt) {
  TokenizerParts parts = toy_parts();
  EXPECT_EQ(Tokenizer::from_parts(parts).encode("he", true).size(), 1U);
  parts.add_bos = true;
  const Tokenizer adding = Tokenizer::from_parts(parts);
  EXPECT_EQ(spelled(adding, adding.encode("he", true)), (Strings{"<|begin_of_text|>", "he"}));
  EXPECT_EQ(adding.encode("he", false).size(), 1U);
  parts.add_bos.reset();
  parts.pre = "llama-bpe";
  EXPECT_EQ(Tokenizer::from_parts(parts).encode("he", true).size(), 2U);
}

TEST(Tokenizer, RowsOfAPaddedHeadHaveNoText) {
  const Tokenizer tokenizer = Tokenizer::from_parts(toy_parts());
  EXPECT_EQ(tokenizer.token_bytes(static_cast<int32_t>(tokenizer.vocabulary_size())), "");
  EXPECT_FALSE(tokenizer.is_special(1 << 20));
  EXPECT_THROW(tokenizer.token_bytes(-1), BugError);
}

TEST(Tokenizer, MalformedTextIsRefusedWithItsPlace) {
  const Tokenizer tokenizer = Tokenizer::from_parts(toy_parts());
  try {
    tokenizer.encode("héllo \xE4\xBD");
    FAIL();
  } catch (const InputError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("byte 7"), HasSubstr("UTF-8")));
  }
}

// Quadratic merging would need minutes for these.
TEST(Tokenizer, LongWordsAreEncoded) {
  const Tokenizer tokenizer = Tokenizer::from_parts(toy_parts());
  EXPECT_EQ(tokenizer.encode(std::string(200000, 'a')).size(), 50000U);
  for (const char* repeated : {" ", "\n", "7", "!", "你", "hello "}) {
    std::string text;
    while (text.size() < 200000) text += repeated;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
}

TEST(Tokenizer, IsUsedFromSeveralThreads) {
  const Tokenizer tokenizer = Tokenizer::from_parts(toy_parts());
  std::string text;
  for (int i = 0; i < 3000; ++i) text += "hello word" + std::to_string(i * 7919) + " ";
  const auto expected = Tokenizer::from_parts(toy_parts()).encode(text);
  std::vector<std::vector<int32_t>> results(4);
  std::vector<std::jthread> threads;
  for (auto& result : results) threads.emplace_back([&] { result = tokenizer.encode(text); });
  threads.clear();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

// Random tokens make random bytes: characters cut anywhere, stray continuations, control tokens between.
TEST(Detokenizer, NeverGivesHalfACharacter) {
  const Tokenizer tokenizer = Tokenizer::from_parts(toy_parts());
  std::mt19937 random(3);
  const auto text_tokens = tokenizer.encode("naïve 你好 😀 नमस्ते \u00A0ﬁ hello");
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> tokens;
    for (int i = 0; i < 60; ++i) {
      const auto limit = static_cast<int32_t>(tokenizer.vocabulary_size()) - 1;
      const bool genuine = random() % 3 != 0;
      tokens.push_back(genuine ? text_tokens[random() % text_tokens.size()]
                               : std::uniform_int_distribution<int32_t>(0, limit)(random));
    }
    if (round % 2 == 0) tokens.insert(tokens.end(), text_tokens.begin(), text_tokens.end() - round % 5);
    IncrementalDetokenizer detokenizer(tokenizer);
    std::string all;
    for (const int32_t token : tokens) {
      const std::string piece = detokenizer.push(token);
      EXPECT_EQ(first_invalid_utf8(piece), std::nullopt);
      all += piece;
    }
    const std::string rest = detokenizer.flush();
    EXPECT_LE(rest.size(), 3U);  // at most one replacement character
    EXPECT_EQ(all + rest, replace_malformed(tokenizer.decode(tokens)));
    EXPECT_EQ(detokenizer.flush(), "");
  }
}

TEST(Detokenizer, CharactersAppearWhenTheirLastByteArrives) {
  const Tokenizer tokenizer = Tokenizer::from_parts(toy_parts());
  const auto tokens = tokenizer.encode("a😀b");
  ASSERT_EQ(tokens.size(), 6U);
  IncrementalDetokenizer detokenizer(tokenizer);
  Strings pieces;
  for (const int32_t token : tokens) pieces.push_back(detokenizer.push(token));
  EXPECT_EQ(pieces, (Strings{"a", "", "", "", "😀", "b"}));
}

// As Python's bytes.decode("utf-8", "replace").
TEST(Detokenizer, MalformedBytesAreReplacedAsEverywhere) {
  EXPECT_EQ(replace_malformed("a\xE4\xBD"), "a\uFFFD");
  EXPECT_EQ(replace_malformed("\xE4\xBD\x61"), "\uFFFDa");
  EXPECT_EQ(replace_malformed("\xC0\x80"), "\uFFFD\uFFFD");
  EXPECT_EQ(replace_malformed("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(replace_malformed("\xF0\x9F\x98\xF0\x9F\x98\x80"), "\uFFFD😀");
  EXPECT_EQ(replace_malformed("\xF5\x80"), "\uFFFD\uFFFD");
  EXPECT_EQ(replace_malformed("\uFFFD你"), "\uFFFD你");
}

TEST(TokenizerParts, EachFaultIsNamed) {
  const auto message = [](const std::function<void(TokenizerParts&)>& spoil) -> std::string {
    TokenizerParts parts = toy_parts();
    spoil(parts);
    try {
      Tokenizer::from_parts(parts);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no InputError";
  };
  EXPECT_EQ(message([](TokenizerParts&) {}), "no InputError");
  EXPECT_THAT(message([](auto& p) { p.merges.clear(); }),
              AllOf(HasSubstr("no merges"), HasSubstr("toy.gguf")));
  EXPECT_THAT(message([](auto& p) { p.model = "llama"; }), HasSubstr("'llama'"));
  EXPECT_THAT(message([](auto& p) { p.pre = "tekken"; }), HasSubstr("'tekken'"));
  EXPECT_THAT(message([](auto& p) { p.tokens.clear(); }), HasSubstr("no tokens"));
  EXPECT_THAT(message([](auto& p) { p.token_types.pop_back(); }), HasSubstr("token types"));
  EXPECT_THAT(message([](auto& p) { p.merges.push_back("x y"); }), HasSubstr("'xy'"));
  EXPECT_THAT(message([](auto& p) { p.merges.push_back("xy"); }), HasSubstr("'xy'"));
  EXPECT_THAT(message([](auto& p) { p.eos = 1 << 20; }), HasSubstr("1048576"));
  EXPECT_THAT(message([](auto& p) {
                p.add_bos = true;
                p.bos.reset();
              }),
              HasSubstr("beginning-of-text"));
}

// tokenizer.json files made here, read from a folder that the test removes.
class TokenizerJson : public testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        fs::path(testing::TempDir()) / ("selflengthen_tokenizer_" + std::to_string(std::random_device{}()));
    fs::create_directories(folder_);
    const TokenizerParts parts = toy_parts();
    json vocabulary;
    json added = json::array();
    for (size_t i = 0; i < parts.tokens.size(); ++i) {
      if (parts.token_types[i] == 1) {
        vocabulary[parts.tokens[i]] = i;
      } else {
        added.push_back({{"id", i}, {"content", parts.tokens[i]}, {"special", true}, {"normalized", false}});
      }
    }
    root_ = {{"added_tokens", added},
             {"normalizer", nullptr},
             {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
             {"post_processor", nullptr},
             {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", parts.merges}}}};
  }
  void TearDown() override { fs::remove_all(folder_); }

  Tokenizer load() {
    std::ofstream(folder_ / "tokenizer.json") << root_;
    return Tokenizer::from_huggingface(folder_);
  }
  std::string message() {
    try {
      load();
    } catch (const InputError& error) {
      return error.what();
    }
    return "no InputError";
  }

  fs::path folder_;
  json root_;
};

TEST_F(TokenizerJson, MergesAreStringsOrPairs) {
  EXPECT_EQ(spelled(load(), "hello hello12"), (Strings{"hello", " hello", "1", "2"}));
  json pairs = json::array();
  for (const std::string line : root_["model"]["merges"]) {
    pairs.push_back({line.substr(0, line.find(' ')), line.substr(line.find(' ') + 1)});
  }
  root_["model"]["merges"] = pairs;
  EXPECT_EQ(spelled(load(), "hello hello"), (Strings{"hello", " hello"}));
}

TEST_F(TokenizerJson, PrefixSpaceDigitsAndSplitsAreApplied) {
  root_["pre_tokenizer"]["add_prefix_space"] = true;
  EXPECT_EQ(spelled(load(), "hello"), (Strings{" hello"}));
  root_["pre_tokenizer"] = json::parse(R"({"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"String": "aa"}, "behavior": "Isolated", "invert": false},
    {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Removed", "invert": false},
    {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]})");
  EXPECT_EQ(spelled(load(), "aaaaaxhello"), (Strings{"aa", "aa", "a", "hello"}));
}

// Patterns that compile but cannot split: too many steps, matches inside characters, matches that begin
// elsewhere.
TEST_F(TokenizerJson, PatternsThatCannotSplitAreRefused) {
  const auto refusal = [&](const std::string& pattern, const std::string& text) -> std::string {
    root_["pre_tokenizer"] = {
        {"type", "Sequence"},
        {"pretokenizers",
         {{{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}},
          {{"type", "ByteLevel"}, {"use_regex", false}}}}};
    try {
      load().encode(text);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no InputError";
  };
  EXPECT_THAT(refusal("(a+)+$", std::string(40, 'a') + "b"),
              AllOf(HasSubstr("(a+)+$"), HasSubstr("41 bytes")));
  EXPECT_THAT(refusal("\\C", "é"), HasSubstr("does not compile"));
  EXPECT_THAT(refusal("\\b", "a"), HasSubstr("border of words"));
  EXPECT_THAT(refusal("[\\p{L}&&[^a]]", "a"), HasSubstr("class inside a class"));
  // More than the compiled pattern's stack holds, which is no reason to refuse.
  EXPECT_EQ(refusal("(?:(a)|b)+", std::string(200000, 'a')), "no InputError");
}

// What Oniguruma means by a pattern, where PCRE2 by itself means something else; checked with Hugging Face's
// library.
TEST_F(TokenizerJson, PatternsMeanWhatOnigurumaMeans) {
  const auto words = [&](const std::string& pattern, const std::string& text) {
    std::vector<std::string> found;
    std::deque<std::string> owned;
    PreTokenizer pre;
    pre.add_split(Regex(pattern, false, "file"));
    for (const std::string_view word : pre.split(text, owned)) found.emplace_back(word);
    return found;
  };
  EXPECT_EQ(words("[\\u4e00-\\u9fff]+", "a中文b"), (Strings{"a", "中文", "b"}));
  EXPECT_EQ(words("\\h+", "fog 1z"), (Strings{"f", "og ", "1", "z"}));
  EXPECT_EQ(words("[\\h.]+", "z.f "), (Strings{"z", ".f", " "}));
  EXPECT_EQ(words("\\w+", "❤\uFE0F ที่"), (Strings{"❤", "\uFE0F", " ", "ที่"}));
  EXPECT_EQ(words("b$", "b\nab\n"), (Strings{"b", "\na", "b", "\n"}));
  EXPECT_EQ(words("^a", "aa\na"), (Strings{"a", "a\n", "a"}));
}

TEST_F(TokenizerJson, WholeWordsAndUnknownBytes) {
  root_["model"]["merges"].erase(4);  // "a a": "aa" is left as a word of the vocabulary
  root_["model"]["merges"].erase(4);
  EXPECT_EQ(spelled(load(), "aa"), (Strings{"a", "a"}));
  root_["model"]["ignore_merges"] = true;
  EXPECT_EQ(spelled(load(), "aa"), (Strings{"aa"}));
  root_["model"]["vocab"].erase("z");
  EXPECT_EQ(spelled(load(), "hezhe"), (Strings{"he", "he"}));  // as in Hugging Face's library: dropped
  root_["model"]["unk_token"] = "!";
  EXPECT_EQ(spelled(load(), "hezhe"), (Strings{"he", "!", "he"}));
}

TEST_F(TokenizerJson, FlagsOfAddedTokensAreKept) {
  auto& added = root_["added_tokens"];
  added.push_back({{"id", 500}, {"content", "<lr>"}, {"lstrip", true}, {"rstrip", true}, {"special", false}});
  added.push_back({{"id", 501}, {"content", "solo"}, {"single_word", true}, {"special", false}});
  added.push_back({{"id", 502}, {"content", "solo hello"}, {"special", false}});
  const Tokenizer tokenizer = load();
  EXPECT_EQ(tokenizer.vocabulary_size(), 503);
  EXPECT_EQ(spelled(tokenizer, "he \n<lr>\u3000 he"), (Strings{"he", "<lr>", "he"}));
  EXPECT_EQ(tokenizer.encode("solo.").front(), 501);
  EXPECT_NE(tokenizer.encode("solos").front(), 501);
  EXPECT_EQ(tokenizer.encode("solo hello").size(), 1U);  // the longest wins
  EXPECT_EQ(tokenizer.encode("solo", false, false),
            std::vector<int32_t>{501});  // not special: found either way
  // A token within the space that one before it strips counts again.
  added.push_back({{"id", 503}, {"content", "<r>"}, {"rstrip", true}, {"special", false}});
  added.push_back({{"id", 504}, {"content", "\n\n"}, {"special", false}});
  EXPECT_EQ(load().encode("<r>\n\nsolo"), (std::vector<int32_t>{503, 504, 501}));
}

TEST_F(TokenizerJson, ComposesWhereTheNormalizerSaysSo) {
  EXPECT_EQ(spelled(load(), "e\u0301").size(), 3U);
  root_["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "NFC"}}}}};
  const Tokenizer tokenizer = load();
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("e\u0301 \u1100\u1161")), "\u00E9 \uAC00");
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(std::string_view("\u00E9\0b", 4))),
            std::string_view("\u00E9\0b", 4));
}

TEST_F(TokenizerJson, TemplateAndConfigurationAreRead) {
  root_["post_processor"] = json::parse(R"({"type": "Sequence", "processors": [{"type": "ByteLevel"},
    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "B", "type_id": 0}},
     {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "E", "type_id": 0}}],
     "special_tokens": {"B": {"id": "B", "ids": [266], "tokens": ["B"]}, "E": {"id": "E", "ids": [263], "tokens": ["E"]}}}]})");
  std::ofstream(folder_ / "tokenizer_config.json")
      << R"({"bos_token": {"content": "<|begin_of_text|>"}, "eos_token": "<|im_end|>",
             "chat_template": [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]})";
  const Tokenizer tokenizer = load();
  EXPECT_EQ(spelled(tokenizer, tokenizer.encode("he", true)),
            (Strings{"<|begin_of_text|>", "he", "<|endoftext|>"}));
  EXPECT_EQ(tokenizer.bos(), tokenizer.id_of("<|begin_of_text|>"));
  EXPECT_EQ(tokenizer.eos(), tokenizer.id_of("<|im_end|>"));
  EXPECT_EQ(tokenizer.chat_template(), "yes");
  std::ofstream(folder_ / "chat_template.jinja") << "from a file";
  EXPECT_EQ(load().chat_template(), "from a file");
}

TEST_F(TokenizerJson, EachFaultIsNamed) {
  const json good = root_;
  const auto spoilt = [&](const std::function<void(json&)>& spoil) {
    root_ = good;
    spoil(root_);
    return message();
  };
  EXPECT_EQ(spoilt([](json&) {}), "no InputError");
  EXPECT_THAT(spoilt([](json& r) { r["model"]["type"] = "Unigram"; }),
              AllOf(HasSubstr("Unigram"), HasSubstr("tokenizer.json")));
  EXPECT_THAT(spoilt([](json& r) { r["model"].erase("merges"); }), HasSubstr("no merges"));
  EXPECT_THAT(spoilt([](json& r) { r["model"]["merges"].push_back("only"); }), HasSubstr("\"only\""));
  EXPECT_THAT(spoilt([](json& r) {
                r["model"]["merges"].push_back(json::array({1, 2}));
              }),
              HasSubstr("[1,2]"));
  EXPECT_THAT(spoilt([](json& r) { r["model"]["vocab"]["q"] = -3; }), HasSubstr("-3"));
  EXPECT_THAT(spoilt([](json& r) { r["model"]["vocab"]["q"] = 1LL << 40; }), HasSubstr("1099511627776"));
  EXPECT_THAT(spoilt([](json& r) { r["model"]["byte_fallback"] = true; }), HasSubstr("falls back"));
  EXPECT_THAT(spoilt([](json& r) { r["model"]["end_of_word_suffix"] = "</w>"; }),
              HasSubstr("end_of_word_suffix"));
  EXPECT_THAT(spoilt([](json& r) { r["pre_tokenizer"]["type"] = "Metaspace"; }), HasSubstr("Metaspace"));
  EXPECT_THAT(spoilt([](json& r) { r["pre_tokenizer"] = nullptr; }), HasSubstr("no ByteLevel"));
  EXPECT_THAT(spoilt([](json& r) { r["normalizer"] = {{"type", "NFKC"}}; }), HasSubstr("NFKC"));
  EXPECT_THAT(spoilt([](json& r) {
                r["post_processor"] = {{"type", "BertProcessing"}};
              }),
              HasSubstr("BertProcessing"));
  EXPECT_THAT(spoilt([](json& r) { r["added_tokens"][0].erase("id"); }), HasSubstr("'id'"));
  EXPECT_THAT(
      spoilt([](json& r) {
        r["pre_tokenizer"] = json::parse(
            R"({"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": false})");
      }),
      AllOf(HasSubstr("(a"), HasSubstr("does not compile")));
  EXPECT_THAT(spoilt([](json& r) { r = json::array(); }), HasSubstr("'model'"));
  EXPECT_THAT(spoilt([](json& r) { r["model"]["vocab"]["q"] = 1 << 24; }), HasSubstr("16777216"));
  EXPECT_THAT(spoilt([](json& r) {
                r["post_processor"] = json::parse(R"({"type": "TemplateProcessing",
                  "single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {"<s>": {"ids": [70000]}}})");
              }),
              HasSubstr("70000"));
  EXPECT_THAT(spoilt([](json& r) {
                for (int level = 0; level < 300; ++level) {
                  json inner = std::move(r["normalizer"]);
                  r["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array({std::move(inner)})}};
                }
              }),
              HasSubstr("deep"));
  std::ofstream(folder_ / "tokenizer.json") << "{\"model\": ";
  EXPECT_THROW(Tokenizer::from_huggingface(folder_), InputError);
  fs::remove(folder_ / "tokenizer.json");
  EXPECT_THROW(Tokenizer::from_huggingface(folder_), InputError);
}

}  // namespace
}  // namespace sl

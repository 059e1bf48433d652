// Tokenizer from a Hugging Face folder: tokenizer.json, tokenizer_config.json, chat_template.jinja.
#include "text/tokenizer.hpp"

#include "core/error.hpp"
#include "core/json_depth.hpp"
#include "text/byte_level.hpp"

#include <nlohmann/json.hpp>

#include <fstream>
#include <iterator>

namespace sl {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

// Beyond any vocabulary. A larger id is a damaged file, and would cost memory for all ids below it.
constexpr int64_t most_tokens = int64_t{1} << 21;

std::optional<std::string> read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// Reads the parts of one tokenizer.json into a TokenizerSpec.
class Reader {
 public:
  explicit Reader(fs::path path) : path_(std::move(path)) {}

  TokenizerSpec read(const json& root) {
    spec_.where = path_.string();
    read_model(object(root, "model"));
    read_added_tokens(root);
    read_normalizer(root.value("normalizer", json()));
    const json pre = root.value("pre_tokenizer", json());
    read_pre_tokenizer(pre);
    if (!byte_level_) refuse("its pre_tokenizer has no ByteLevel step");
    read_post_processor(root.value("post_processor", json()));
    return std::move(spec_);
  }

  [[noreturn]] void refuse(const std::string& what) const {
    throw InputError("unsupported or damaged tokenizer: " + what, path_.string(),
                     "use the byte-level BPE tokenizer of a Qwen2, Llama 3 or SmolLM2 model");
  }

 private:
  const json& object(const json& parent, const char* key) const {
    const auto found = parent.find(key);
    if (found == parent.end() || !found->is_object()) refuse(std::string("it has no object '") + key + "'");
    return *found;
  }

  std::string type_of(const json& node) const {
    const auto found = node.find("type");
    if (found == node.end() || !found->is_string())
      refuse("a part of it has no type: " + node.dump().substr(0, 80));
    return *found;
  }

  int32_t checked_id(const json& id) const {
    if (!id.is_number_integer() || id < 0 || id >= most_tokens) refuse("token id " + id.dump());
    return id.get<int32_t>();
  }

  void read_model(const json& model) {
    const std::string type =
        model.contains("type") ? type_of(model) : std::string("BPE");  // old files omit it
    if (type != "BPE") refuse("its model is " + type + ", not BPE");
    for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
      const json value = model.value(key, json());
      if (!value.is_null() && value != "" && value != 0.0) refuse(std::string("its model has a ") + key);
    }
    if (model.value("byte_fallback", false)) refuse("its model falls back to byte tokens");
    if (model.value("fuse_unk", false)) refuse("its model fuses unknown tokens");
    spec_.whole_words_first = model.value("ignore_merges", false);
    read_vocabulary(object(model, "vocab"));
    if (const json unknown = model.value("unk_token", json()); unknown.is_string()) {
      const auto found = model.at("vocab").find(unknown.get<std::string>());
      if (found != model.at("vocab").end()) spec_.unknown = checked_id(*found);
    }
    read_merges(model.value("merges", json::array()));
  }

  void read_vocabulary(const json& vocabulary) {
    for (const auto& [token, id_value] : vocabulary.items()) {
      const auto id = static_cast<size_t>(checked_id(id_value));
      if (id >= spec_.tokens.size()) spec_.tokens.resize(id + 1);
      // A control token may be listed here too, in characters outside the alphabet; added_tokens gives its
      // bytes.
      spec_.tokens[id] = bytes_of_byte_level(token).value_or("");
    }
  }

  void read_merges(const json& list) {
    MergeList merges(spec_.tokens, path_.string());
    for (const json& merge : list) {
      std::string left;
      std::string right;
      if (merge.is_string()) {
        const auto& line = merge.get_ref<const std::string&>();
        const size_t space = line.find(' ');
        left = line.substr(0, space);
        if (space != std::string::npos) right = line.substr(space + 1);
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
        left = merge[0];
        right = merge[1];
      }
      const auto left_bytes = bytes_of_byte_level(left);
      const auto right_bytes = bytes_of_byte_level(right);
      if (left.empty() || right.empty() || !left_bytes || !right_bytes) {
        refuse("the merge " + merge.dump() + " is not a pair of byte-level tokens");
      }
      merges.add(*left_bytes, *right_bytes);
    }
    spec_.merges = merges.take();
  }

  void read_added_tokens(const json& root) {
    for (const json& entry : root.value("added_tokens", json::array())) {
      AddedToken token;
      token.id = checked_id(entry.at("id"));
      token.content = entry.at("content").get<std::string>();
      token.special = entry.value("special", false);
      token.normalized = entry.value("normalized", !token.special);
      token.strip_left = entry.value("lstrip", false);
      token.strip_right = entry.value("rstrip", false);
      token.single_word = entry.value("single_word", false);
      spec_.added.push_back(std::move(token));
    }
  }

  void read_normalizer(const json& node) {
    if (node.is_null()) return;
    const std::string type = type_of(node);
    if (type == "Sequence") {
      for (const json& child : node.at("normalizers")) read_normalizer(child);
    } else if (type == "NFC") {
      spec_.compose = true;
    } else {
      refuse("its normalizer is " + type + ", not NFC");
    }
  }

  void read_pre_tokenizer(const json& node) {
    if (node.is_null()) return;
    const std::string type = type_of(node);
    if (byte_level_) refuse("its pre_tokenizer goes on after ByteLevel");
    PreTokenizer& pre = spec_.pre_tokenizer;
    if (type == "Sequence") {
      for (const json& child : node.at("pretokenizers")) read_pre_tokenizer(child);
    } else if (type == "Split") {
      read_split(node);
    } else if (type == "Digits") {
      const bool each = node.value("individual_digits", false);
      pre.add_split(Regex(each ? "\\p{N}" : "\\p{N}+", false, path_.string()));
    } else if (type == "ByteLevel") {
      byte_level_ = true;
      if (node.value("add_prefix_space", true)) pre.add_prefix_space();
      if (node.value("use_regex", true)) pre.add_split(Regex(gpt2_pattern, false, path_.string()));
    } else {
      refuse("its pre_tokenizer has a step " + type);
    }
  }

  void read_split(const json& node) {
    const json& pattern = object(node, "pattern");
    const bool literal = pattern.contains("String");
    const std::string source = pattern.at(literal ? "String" : "Regex");
    const std::string behaviour = node.value("behavior", "");
    if (behaviour != "Isolated" && behaviour != "Removed") refuse("its Split behaves as " + behaviour);
    spec_.pre_tokenizer.add_split(Regex(source, literal, path_.string()),
                                  behaviour == "Removed" ? SplitBehaviour::removed : SplitBehaviour::isolated,
                                  node.value("invert", false));
  }

  void read_post_processor(const json& node) {
    if (node.is_null()) return;
    const std::string type = type_of(node);
    if (type == "Sequence") {
      for (const json& child : node.at("processors")) read_post_processor(child);
    } else if (type == "TemplateProcessing") {
      read_template(node);
    } else if (type != "ByteLevel") {  // ByteLevel only moves offsets
      refuse("its post_processor has a step " + type);
    }
  }

  void read_template(const json& node) {
    bool before_text = true;
    for (const json& part : node.at("single")) {
      if (part.contains("Sequence")) {
        before_text = false;
        continue;
      }
      const std::string name = part.at("SpecialToken").at("id");
      for (const json& id : node.at("special_tokens").at(name).at("ids")) {
        (before_text ? spec_.prefix : spec_.suffix).push_back(checked_id(id));
      }
    }
  }

  fs::path path_;
  TokenizerSpec spec_;
  bool byte_level_ = false;
};

json parse(const std::string& text, const fs::path& path) {
  if (nests_too_deep(text)) throw InputError("nests too deep", path.string(), "download the file again");
  try {
    return json::parse(text);
  } catch (const json::exception& error) {
    throw InputError(std::string("malformed JSON: ") + error.what(), path.string(),
                     "download the file again");
  }
}

// A token of tokenizer_config.json: its text, or an object holding it. Nothing where absent or null.
std::optional<std::string> token_text(const json& config, const char* key) {
  const json node = config.value(key, json());
  if (node.is_string()) return node.get<std::string>();
  if (node.is_object() && node.contains("content")) return node.at("content").get<std::string>();
  return std::nullopt;
}

// chat_template is one template, or a list of named ones of which "default" counts.
std::string chat_template_of(const json& config) {
  const json node = config.value("chat_template", json());
  if (node.is_string()) return node;
  if (node.is_array()) {
    for (const json& entry : node) {
      if (entry.value("name", "") == "default") return entry.at("template");
    }
  }
  return {};
}

void read_config(const json& config, TokenizerSpec& spec) {
  const auto id_of = [&](const std::optional<std::string>& text) -> std::optional<int32_t> {
    if (!text) return std::nullopt;
    for (const AddedToken& token : spec.added) {
      if (token.content == *text) return token.id;
    }
    return std::nullopt;
  };
  spec.bos = id_of(token_text(config, "bos_token"));
  spec.eos = id_of(token_text(config, "eos_token"));
  spec.chat_template = chat_template_of(config);
}

}  // namespace

Tokenizer Tokenizer::from_huggingface(const fs::path& folder) {
  const fs::path path = folder / "tokenizer.json";
  const auto text = read_file(path);
  if (!text) {
    throw InputError("cannot read the tokenizer", path.string(),
                     "give a folder with tokenizer.json beside the weights, or a .gguf file");
  }
  Reader reader(path);
  try {
    TokenizerSpec spec = reader.read(parse(*text, path));
    const fs::path config_path = folder / "tokenizer_config.json";
    if (const auto config = read_file(config_path)) read_config(parse(*config, config_path), spec);
    // Recent releases of Transformers keep the template in a file of its own, which goes first.
    if (auto chat = read_file(folder / "chat_template.jinja")) spec.chat_template = std::move(*chat);
    return Tokenizer(std::move(spec));
  } catch (const json::exception& error) {
    reader.refuse(error.what());
  }
}

}  // namespace sl

// Models and adapters whose files are sound, but do not say what they should.
#include "model/source.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "tests/io/scratch.hpp"

namespace sl {
namespace {

using nlohmann::json;
using test::message_of;
using test::ScratchFolder;
using testing::AllOf;
using testing::HasSubstr;

const std::string reference = SELFLENGTHEN_SOURCE_DIR "/tests/reference/";

class Source : public testing::Test {
 protected:
  // A copy of a small model.
  Source() { std::filesystem::copy(reference + "models/tied", folder_.path()); }
  void change_config(const std::string& key, const json& value) {
    json config = json::parse(test::read_bytes(reference + "models/tied/config.json"));
    config[key] = value;
    test::write_bytes(folder_ / "config.json", config.dump());
  }
  std::string refusal() {
    return message_of<InputError>([&] { open_model(folder_.path()); });
  }
  ScratchFolder folder_;
};

TEST_F(Source, ANormOfAnotherShapeIsRefused) {
  const std::string path = folder_ / "model.safetensors";
  const std::string bytes = test::read_bytes(path);
  uint64_t size = 0;
  std::memcpy(&size, bytes.data(), sizeof(size));
  json header = json::parse(bytes.substr(8, size));
  const int64_t hidden = header["model.norm.weight"]["shape"][0];
  header["model.norm.weight"]["shape"] = {2, hidden / 2};
  const std::string text = header.dump();
  const uint64_t length = text.size();
  std::string changed(8, '\0');
  std::memcpy(changed.data(), &length, sizeof(length));
  test::write_bytes(path, changed + text + bytes.substr(8 + size));
  EXPECT_THAT(refusal(), AllOf(HasSubstr(folder_.path()), HasSubstr("'model.norm.weight'")));
}

TEST_F(Source, NumbersThatAreNotFiniteAreRefused) {
  change_config("rms_norm_eps", 1e300);
  EXPECT_THAT(refusal(), HasSubstr("epsilon"));
  for (const double factor : {0.0, -1.0, 1e300}) {
    change_config("rope_scaling", {{"rope_type", "linear"}, {"factor", factor}});
    EXPECT_THAT(refusal(), AllOf(HasSubstr("config.json"), HasSubstr("RoPE scaling")));
  }
  change_config("rope_scaling",
                {{"rope_type", "yarn"}, {"factor", 4}, {"original_max_position_embeddings", 1e40}});
  EXPECT_THAT(refusal(), HasSubstr("RoPE scaling"));
  change_config("rope_scaling", {{"rope_type", "linear"}, {"factor", 2.0}});
  EXPECT_EQ(open_model(folder_.path()).config.rope_scaling.factor, 2.0);
}

TEST_F(Source, ABrokenGenerationConfigIsRefused) {
  test::write_bytes(folder_ / "generation_config.json", "oops");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("generation_config.json"), HasSubstr("no JSON object")));
}

TEST_F(Source, AHalfStatedRopeScalingIsRefused) {
  change_config("rope_scaling", "linear");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("config.json"), HasSubstr("no object")));
  change_config("rope_scaling", {{"factor", 4.0}});
  EXPECT_THAT(refusal(), AllOf(HasSubstr("config.json"), HasSubstr("rope_type")));
  change_config("rope_scaling", {{"rope_type", "yarn"}});
  EXPECT_THAT(refusal(), AllOf(HasSubstr("config.json"), HasSubstr("'factor'")));
  change_config("rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}, {"low_freq_factor", 1.0}});
  EXPECT_THAT(refusal(), AllOf(HasSubstr("config.json"), HasSubstr("'high_freq_factor'")));
}

// The figures are those of Transformers' _compute_yarn_parameters, for a base of 100000 and heads of 16
// numbers.
TEST_F(Source, YarnFollowsAllThatItsConfigurationStates) {
  json scaling = {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 512}};
  const auto opened = [&] {
    change_config("rope_scaling", scaling);
    return open_model(folder_.path()).config;
  };
  const auto expect_frequencies = [&](const std::vector<double>& expected) {
    const std::vector<float> found = opened().rope_frequencies();
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 1e-6 * expected[i]) << i;
  };
  expect_frequencies(
      {1.0, 0.1926741, 0.03514633, 0.0058341566, 0.00079056947, 0.00018747355, 4.4456985e-05, 1.0542413e-05});
  EXPECT_NEAR(opened().rope_magnitude(), 1.1386294, 1e-6);
  scaling["truncate"] = false;
  expect_frequencies({1.0, 0.2112526, 0.032582846, 0.0035736151, 0.00079056947, 0.00018747355, 4.4456985e-05,
                      1.0542413e-05});
  scaling["mscale"] = 0.7;
  scaling["mscale_all_dim"] = 1.3;
  EXPECT_NEAR(opened().rope_magnitude(), 0.92952349, 1e-6);
}

TEST_F(Source, RankStabilizedAdaptersScaleByTheRootOfTheRank) {
  const std::string config = folder_ / "adapter_config.json";
  test::write_bytes(config, R"({"peft_type": "LORA", "r": 16, "lora_alpha": 8})");
  EXPECT_EQ(read_lora_shape(folder_.path()).scale(), 0.5F);
  test::write_bytes(config, R"({"peft_type": "LORA", "r": 16, "lora_alpha": 8, "use_rslora": true})");
  EXPECT_EQ(read_lora_shape(folder_.path()).scale(), 2.0F);
}

TEST_F(Source, NamesInAGgufFileAreAnyBytes) {
  std::string bytes = test::read_bytes(reference + "gguf/qwen2/model.gguf");
  const size_t name = bytes.find("blk.0.attn_q.weight");
  ASSERT_NE(name, std::string::npos);
  bytes[name + 6] = '\xFF';
  const std::string path = folder_ / "model.gguf";
  test::write_bytes(path, bytes);
  EXPECT_NE(open_model(path).fingerprint, open_model(reference + "gguf/qwen2/model.gguf").fingerprint);
}

TEST_F(Source, AnAdapterOfAKindThatIsNoTextIsRefused) {
  test::write_bytes(folder_ / "adapter_config.json", R"({"peft_type": 3, "r": 8, "lora_alpha": 16})");
  EXPECT_THAT(message_of<InputError>([&] { read_lora_shape(folder_.path()); }),
              AllOf(HasSubstr("adapter_config.json"), HasSubstr("LoRA")));
}

}  // namespace
}  // namespace sl

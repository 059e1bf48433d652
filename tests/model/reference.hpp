// Our model against recorded figures of Transformers: log-probabilities by both ways through the model
// (pages, and whole packed sequences), and greedy continuations by the engine.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <list>
#include <string>
#include <vector>

#include "io/json_lines.hpp"
#include "model/source.hpp"
#include "model/training_pass.hpp"
#include "rollout/engine.hpp"
#include "rollout/flow.hpp"
#include "rollout/model_step.hpp"

namespace sl::test {

inline std::string reference(const std::string& name) {
  return std::string(SELFLENGTHEN_SOURCE_DIR) + "/tests/reference/" + name;
}

// SmolLM2-135M-Instruct, as tools/fetch_model.sh brings it.
inline std::string smollm2_path() {
  const char* given = std::getenv("SELFLENGTHEN_TEST_MODEL");
  return given != nullptr ? given
                          : std::string(SELFLENGTHEN_SOURCE_DIR) + "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
}

// Log-probabilities of tokens 2..n, through KV pages, in chunks of `chunk` rows over pages in reversed order.
// With adapters, all rows use the last.
inline std::vector<double> paged_log_probabilities(const LoadedModel& model,
                                                   const std::vector<int32_t>& tokens, int64_t chunk,
                                                   const std::vector<const Adapter*>& adapters = {}) {
  constexpr int64_t page_tokens = 16;
  const auto length = static_cast<int64_t>(tokens.size());
  const int64_t pages = (length + page_tokens - 1) / page_tokens;
  const Transformer transformer = model.transformer();
  const KvCache cache(model.config(), model.shard(), transformer.context.storage_place(), pages, page_tokens);
  Inference inference(transformer, {.rows = chunk,
                                    .sequences = 1,
                                    .outputs = chunk,
                                    .pages_per_sequence = pages,
                                    .tokens_per_page = page_tokens});
  inference.adapters().load(adapters);
  const auto page_of = [&](int64_t i) { return pages - 1 - i; };  // not in order
  std::vector<double> log_probabilities;
  for (int64_t begin = 0; begin < length; begin += chunk) {
    const int64_t end = std::min(length, begin + chunk);
    Batch batch;
    for (int64_t t = begin; t < end; ++t) {
      batch.tokens.push_back(tokens[static_cast<size_t>(t)]);
      batch.positions.push_back(static_cast<int32_t>(t));
      batch.slots.push_back(static_cast<int32_t>(page_of(t / page_tokens) * page_tokens + t % page_tokens));
      batch.output_rows.push_back(static_cast<int32_t>(t - begin));
    }
    batch.query_offsets = {0, static_cast<int32_t>(end - begin)};
    batch.context_lengths = {static_cast<int32_t>(end)};
    if (!adapters.empty()) batch.segments = {{static_cast<int32_t>(adapters.size() - 1), 0, end - begin}};
    for (int64_t i = 0; i < pages; ++i) batch.page_tables.push_back(static_cast<int32_t>(page_of(i)));
    batch.pages_per_sequence = pages;
    const Tensor logits = inference.forward(batch, cache);
    for (int64_t t = begin; t < end && t + 1 < length; ++t) {
      const std::vector<float> row = download<float>(logits.rows(t - begin, t - begin + 1));
      double largest = row[0];
      for (float value : row) largest = std::max(largest, static_cast<double>(value));
      double sum = 0.0;
      for (float value : row) sum += std::exp(value - largest);
      log_probabilities.push_back(row[static_cast<size_t>(tokens[static_cast<size_t>(t + 1)])] - largest -
                                  std::log(sum));
    }
  }
  return log_probabilities;
}

// The same through whole packed sequences.
inline std::vector<double> packed_log_probabilities(const LoadedModel& model,
                                                    const std::vector<int32_t>& tokens,
                                                    const Adapter* adapter = nullptr) {
  const auto length = static_cast<int64_t>(tokens.size());
  PackedBatch batch;
  batch.tokens = tokens;
  batch.offsets = {0, static_cast<int32_t>(length)};
  batch.targets.assign(tokens.begin() + 1, tokens.end());
  batch.targets.push_back(-1);
  batch.weights.assign(tokens.size(), 1.0F);
  TrainingPass pass(
      model.transformer(),
      {.max_rows = length, .lora_rank = adapter != nullptr ? adapter->shape().rank : 0, .gradients = false},
      int64_t{1} << 32);
  return pass.log_probabilities(batch, adapter);
}

inline double largest_difference(const std::vector<double>& ours, const std::vector<double>& theirs) {
  if (ours.size() != theirs.size()) return INFINITY;
  double largest = 0.0;
  for (size_t i = 0; i < ours.size(); ++i) {
    const double difference = std::abs(ours[i] - theirs[i]);
    if (!(difference <= largest)) largest = std::isnan(difference) ? INFINITY : difference;
  }
  return largest;
}

// Every row of a logprobs.jsonl, both ways. Returns the number of tokens compared.
inline int64_t expect_log_probabilities(const LoadedModel& model, const std::string& file, double tolerance) {
  int64_t compared = 0;
  for (const JsonRow& row : read_json_lines(file)) {
    const auto tokens = row.value.at("tokens").get<std::vector<int32_t>>();
    const auto expected = row.value.at("logprobs").get<std::vector<double>>();
    EXPECT_LE(largest_difference(paged_log_probabilities(model, tokens, 37), expected), tolerance)
        << file << ":" << row.line << " through pages";
    EXPECT_LE(largest_difference(packed_log_probabilities(model, tokens), expected), tolerance)
        << file << ":" << row.line << " packed";
    compared += static_cast<int64_t>(expected.size());
  }
  return compared;
}

// Every row of a greedy.jsonl, all rows at once through the engine. Returns the number of prompts.
inline int64_t expect_greedy(const LoadedModel& model, const std::string& file) {
  const std::vector<JsonRow> rows = read_json_lines(file);
  const EngineOptions options{.max_batch_rows = 64, .max_sequences = 8, .max_positions = 512};
  ModelStep step(model.transformer(), options, 256, 16);
  Engine engine(step, model.tokenizer(), options);
  const auto continue_greedily = [&engine](const nlohmann::json& row) -> Task<Completion> {
    Request request;
    request.prompt = row.at("prompt_tokens").get<std::vector<int32_t>>();
    request.sampling.temperature = 0.0F;
    request.sampling.repetition_penalty = row.value("repetition_penalty", 1.0F);
    request.sampling.max_tokens = static_cast<int64_t>(row.at("tokens").size());
    request.sampling.stop.clear();
    Completion completion = co_await engine.complete(std::move(request));
    co_return completion;
  };
  std::list<Task<Completion>> tasks;
  for (const JsonRow& row : rows) {
    tasks.push_back(continue_greedily(row.value));
    tasks.back().start();
  }
  while (!engine.idle()) engine.step();
  auto task = tasks.begin();
  for (const JsonRow& row : rows) {
    EXPECT_EQ((task++)->result().tokens, row.value.at("tokens").get<std::vector<int32_t>>())
        << file << ":" << row.line;
  }
  return static_cast<int64_t>(rows.size());
}

// Every row of a beams.jsonl, all rows at once through the engine, so that beams of many requests mix.
// Returns the number of searches.
inline int64_t expect_beams(const LoadedModel& model, const std::string& file) {
  const std::vector<JsonRow> rows = read_json_lines(file);
  const EngineOptions options{.max_batch_rows = 64, .max_sequences = 24, .max_positions = 512};
  ModelStep step(model.transformer(), options, 256, 16);
  Engine engine(step, model.tokenizer(), options);
  const auto search = [&](const nlohmann::json& row) -> Task<Completion> {
    Request request;
    request.prompt = row.at("prompt_tokens").get<std::vector<int32_t>>();
    request.end_tokens = row.at("end_tokens").get<std::vector<int32_t>>();
    request.sampling.beams = row.at("beams");
    request.sampling.length_penalty = row.at("length_penalty");
    request.sampling.repetition_penalty = row.value("repetition_penalty", 1.0F);
    request.sampling.min_tokens = row.value("min_new_tokens", 0);
    request.sampling.max_tokens = row.at("max_new_tokens");
    request.sampling.stop.clear();
    Completion completion = co_await engine.complete(std::move(request));
    co_return completion;
  };
  std::list<Task<Completion>> tasks;
  for (const JsonRow& row : rows) {
    tasks.push_back(search(row.value));
    tasks.back().start();
  }
  while (!engine.idle()) {
    engine.step();
    engine.scheduler().check();
  }
  auto task = tasks.begin();
  for (const JsonRow& row : rows) {
    const Completion completion = (task++)->result();
    EXPECT_EQ(completion.tokens, row.value.at("tokens").get<std::vector<int32_t>>())
        << file << ":" << row.line;
    EXPECT_NEAR(completion.score, row.value.at("score").get<double>(), 1e-3) << file << ":" << row.line;
  }
  return static_cast<int64_t>(rows.size());
}

}  // namespace sl::test

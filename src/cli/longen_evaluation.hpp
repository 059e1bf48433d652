// The evaluation on LonGen (METHOD.md): a model answers, lengths are scored, a model judges.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/method_options.hpp"
#include "cli/options.hpp"

namespace sl {

struct JudgeChoice {
  bool asked = false;
  std::string model, to, from;  // its model; files of requests and of answers
  int64_t attempts = 5;
  int64_t tokens = 256;
  float temperature = 0.7F;
  std::string prompts = input_folder() + "/prompts";
};

struct LonGenChoice {
  std::string data, output = "-", rows, table;
  ModelChoice model;
  SamplingParameters sampling;
  EngineChoice engine;
  uint64_t seed = 1;
  JudgeChoice judge;
  nlohmann::json sampled;  // the options that decide what a response is
};

// All of it, on all ranks where there is a model, and its report. What --rows names keeps what is finished.
void evaluate_longen(const LonGenChoice& choice);

}  // namespace sl

// Every constant of the method, with the published defaults. The command line and the configuration file fill
// it under the same names (cli/run.cpp).
#pragma once

#include <cstdint>
#include <string>

#include "rollout/request.hpp"
#include "text/rules.hpp"
#include "train/trainer.hpp"

namespace sl {

enum class InstructionPool : uint8_t { seeds, growing };
enum class Judge : uint8_t { exact, choice };

struct MethodOptions {
  Language language = Language::en;
  uint64_t seed = 1;
  int64_t iterations = 3;

  // Stage 0, instructions.
  int64_t instructions = 5000;
  InstructionPool instruction_pool = InstructionPool::seeds;
  int64_t instruction_round = 500;  // growing: slots after which the pool is the seeds again
  int64_t instruction_wave = 50;    // growing: slots that draw from the same pool, side by side
  int64_t instruction_attempts = 10;
  int64_t instruction_tokens = 1024;    // longest raw completion
  int64_t instruction_min_words = 3;    // accepted: more than this
  int64_t instruction_max_words = 500;  // and fewer than this
  Judge judge = Judge::exact;
  int64_t judge_tokens = 16;

  // Stage 1, initial responses.
  int64_t responses = 2;  // an instruction
  int64_t response_attempts = 20;

  // Stage 2, extended responses.
  int64_t extensions = 2;  // an initial response
  int64_t extension_attempts = 20;
  int64_t micro_iterations = 3;
  double extension_ratio = 1.2;

  double straggler_cut = 0.95;
  double line_keep = 0.8;  // stage 3, random line removal
  bool deterministic = false;

  SamplingParameters sampling;
  TrainingOptions training;
};

}  // namespace sl

// One sample of a stage while its flow runs: it asks the model, keeps the addresses of the draws, counts what
// was spent and why attempts failed, and at the end becomes a record.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/rng.hpp"
#include "lengthen/session.hpp"
#include "rollout/engine.hpp"
#include "rollout/flow.hpp"
#include "text/rules.hpp"

namespace sl {

enum class StageId : int32_t {
  instructions = 1,
  initial = 2,
  extended = 3,
  training_sets = 4,
  training = 5,
  collection = 6,
  length_control = 7
};
std::string_view stage_name(StageId stage);  // of a literal

// The address of host-side draws of a stage (shuffles, choices, length bias).
RandomAddress draw_address(const MethodOptions& method, int64_t iteration, StageId stage, int64_t sample,
                           int32_t turn = 0);

// What differs between the questions of the method.
struct Question {
  Role role = Role::base;
  std::string user{};
  std::string begun{};                    // the assistant's turn so far
  std::vector<std::string> extra_stop{};  // besides the decoding defaults
  int64_t max_tokens = 0;                 // 0: the decoding default
  bool watch = false;                     // end it once the rule of repetition is broken for good
};

class Sample {
 public:
  Sample(Session& session, Engine& engine, int64_t iteration, StageId stage, int64_t index);

  int64_t index() const { return index_; }
  const MethodOptions& method() const { return session_.method; }
  const Prompts& prompts() const { return session_.prompts; }

  // True, and the next attempt begins, until `limit` attempts were made.
  bool try_again(int64_t limit);
  // Asks in a chat turn with the method's decoding; awaits the answer.
  Task<Completion> ask(Question question);
  // The base model's answer to a yes-or-no question: true when the likelier first word is `yes`.
  Task<bool> likelier_yes(std::string user, std::string yes, std::string no);
  // Counts why the current attempt failed.
  void reject(std::string_view rule) { ++rejected_[std::string(rule)]; }
  // The same for a response that was not accepted, of which the ending alone says little: one that was ended
  // for its repetitions counts as that, one that had no room for more tokens as "cut_off".
  void reject(Rejection rejection, FinishReason finish);

  int64_t tokens() const { return tokens_; }  // generated so far, over all attempts
  // Generator of host-side draws of the current attempt.
  Random random() const;

  // The record of a success, with what it brought.
  nlohmann::json accepted(const char* field, const std::string& text) const;
  nlohmann::json given_up() const;  // of a sample whose attempts are used up

 private:
  nlohmann::json record(std::string_view status) const;
  RandomAddress next_address();

  Session& session_;
  Engine& engine_;
  int64_t iteration_;
  StageId stage_;
  int64_t index_;
  int64_t attempt_ = 0;  // from 1 once begun
  int32_t turn_ = 0;
  int64_t tokens_ = 0;
  std::map<std::string, int64_t> rejected_;
};

}  // namespace sl

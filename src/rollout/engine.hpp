// The rollout engine: flows await completions, step() computes them all together.
//
//   Task<std::string> flow(Engine& engine, Request request) {
//     const Completion completion = co_await engine.complete(std::move(request));
//     ...
//   }
//   while (!engine.idle()) engine.step();
//
// Content depends on the request alone (up to rounding, DESIGN 3): not on what else is running, not on
// budgets or pre-emption. One thread.
#pragma once

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "rollout/beam_search.hpp"
#include "rollout/growing_text.hpp"
#include "rollout/request.hpp"
#include "rollout/scheduler.hpp"
#include "rollout/step_model.hpp"
#include "text/tokenizer.hpp"

namespace sl {

struct EngineStatistics {
  int64_t steps = 0, rows = 0;
  int64_t generated_tokens = 0;
  int64_t prompt_tokens_computed = 0, prompt_tokens_shared = 0;
  int64_t preemptions = 0, recomputed_tokens = 0;
  int64_t hopeless_stops = 0, hopeless_tokens = 0;  // completions ended as hopeless, tokens they had
  int64_t running = 0, waiting = 0;                 // now
  int64_t pages_used = 0, pages_total = 0;          // now; pages that are only cached are not used
};

class Engine {
 public:
  class PendingCompletion;

  // Model and tokenizer outlive the engine. The model was made for the same options.
  Engine(StepModel& model, const Tokenizer& tokenizer, const EngineOptions& options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // To be awaited at once: submits the request and suspends the coroutine until step() has its Completion.
  // Destroying the suspended coroutine cancels the request. Throws InputError (parameters out of range, a
  // prompt that is empty or not of this vocabulary, more beams than there is room for) before anything is
  // submitted. A request with beams has no watch and no choices.
  PendingCompletion complete(Request request);

  // Computes one step (or, where the model lags, sends one and looks at the tokens of the one before), then
  // resumes, in order of submission, the coroutines whose completions are ready. They may submit, cancel and
  // destroy as they like, but not call step(). After an exception from the model the engine can only be
  // destroyed.
  void step();
  // No request is outstanding.
  bool idle() const { return outstanding_.empty(); }

  // Forgets shared pages: to be called when weights or adapters have changed. The engine is idle.
  void clear_shared_pages();

  EngineStatistics statistics() const;
  const Scheduler& scheduler() const { return scheduler_; }

 private:
  struct Beams {
    Beams(const Tokenizer& tokenizer, const Request& request);

    BeamSearch search;
    std::vector<GrowingText> texts;  // of the beams
  };
  struct Outstanding {
    Outstanding(const Tokenizer& tokenizer, const Request& request);

    PendingCompletion* waiter = nullptr;
    GrowingText text;            // without beams
    std::optional<Beams> beams;  // of a request with beams
    std::optional<RepetitionWatch> watch;
    size_t watched = 0;  // bytes of the text that the watch has seen
    bool ready = false;  // the completion waits for its coroutine to be resumed
    Completion completion;
  };

  int64_t submit(Request request, PendingCompletion* waiter);
  void cancel(int64_t id);
  void collect();
  std::optional<int64_t> request_of(int64_t sequence) const;
  void accept_token(int64_t id, int32_t token, int64_t position);
  std::optional<FinishReason> last_for_now(const Request& request, int64_t generated, int64_t size) const;
  void accept_best(int64_t id, int64_t beam, std::span<const BestToken> best);
  void advance(int64_t id, Beams& beams);
  void finish_beams(int64_t id, Beams& beams, FinishReason reason, Completion& completion);
  void finish(int64_t id, FinishReason reason);
  void resume_ready();

  StepModel& model_;
  const Tokenizer& tokenizer_;
  EngineOptions options_;
  Scheduler scheduler_;
  std::deque<StepPlan> under_way_;  // sent, and not collected yet
  StepResult result_;
  std::map<int64_t, Outstanding> outstanding_;  // by id of the (first) sequence: order of submission
  std::vector<int64_t> ready_;
  EngineStatistics counts_;
};

// What complete() gives. Lives in the frame of the coroutine that awaits it.
class Engine::PendingCompletion {
 public:
  PendingCompletion(Engine& engine, Request request) : engine_(&engine), request_(std::move(request)) {}
  ~PendingCompletion();
  PendingCompletion(const PendingCompletion&) = delete;
  PendingCompletion& operator=(const PendingCompletion&) = delete;

  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> coroutine);
  Completion await_resume() { return std::move(completion_); }

 private:
  friend class Engine;
  Engine* engine_;  // none once the engine is gone
  Request request_;
  int64_t id_ = -1;  // while outstanding
  std::coroutine_handle<> coroutine_;
  Completion completion_;
};

}  // namespace sl

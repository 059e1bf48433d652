#include "rollout/engine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "core/activity.hpp"
#include "core/error.hpp"
#include "kernels/ops.hpp"

namespace sl {

Engine::Outstanding::Outstanding(const Tokenizer& tokenizer, const Request& request)
    : text(tokenizer, request) {
  if (request.has_beams()) beams.emplace(tokenizer, request);
  if (request.watch) watch.emplace(*request.watch);
}

Engine::Engine(StepModel& model, const Tokenizer& tokenizer, const EngineOptions& options)
    : model_(model),
      tokenizer_(tokenizer),
      options_(options),
      scheduler_(options, model.pages(), model.tokens_per_page()) {}

Engine::~Engine() {
  for (auto& [id, request] : outstanding_) request.waiter->engine_ = nullptr;
}

Engine::PendingCompletion Engine::complete(Request request) {
  request.sampling.validate();
  require(request.adapter >= -1, "a request names an impossible adapter");
  if (request.prompt.empty())
    throw InputError("it has no tokens", "prompt", "give at least one character or control token");
  const auto must_be_inside = [&](const std::vector<int32_t>& tokens, std::string_view where) {
    for (const int32_t token : tokens) {
      if (token >= 0 && token < model_.vocabulary()) continue;
      throw InputError(
          fmt::format("token {} is not in the model's vocabulary of {}", token, model_.vocabulary()), where,
          "use the tokenizer of this model");
    }
  };
  must_be_inside(request.prompt, "prompt");
  must_be_inside(request.end_tokens, "end tokens");
  for (const std::vector<int32_t>& group : request.choices) {
    require(!group.empty(), "a group of tokens to choose from is empty");
    must_be_inside(group, "choices");
  }
  if (request.has_beams()) {
    require(!request.watch && request.choices.empty(), "a request with beams has a watch or choices");
    const int64_t continuations = std::min(most_best_tokens, model_.vocabulary());
    const int64_t most =
        std::min(options_.max_sequences, continuations * request.sampling.beams / request.beam_candidates());
    if (request.sampling.beams > most) {
      throw InputError(
          fmt::format("{} are more than there is room for", request.sampling.beams), "beams",
          fmt::format("choose at most {}: {} sequences run at a time, and a step looks at {} continuations",
                      most, options_.max_sequences, continuations));
    }
  }
  return PendingCompletion(*this, std::move(request));
}

int64_t Engine::submit(Request request, PendingCompletion* waiter) {
  Outstanding entry(tokenizer_, request);
  entry.waiter = waiter;
  entry.completion.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  const bool hopeless = entry.watch && entry.watch->append(request.watched_prefix);
  const int64_t id = scheduler_.add(std::move(request));
  outstanding_.emplace(id, std::move(entry));
  if (hopeless) finish(id, FinishReason::hopeless);
  return id;
}

void Engine::cancel(int64_t id) {
  if (!outstanding_.at(id).ready) scheduler_.remove(id);
  outstanding_.erase(id);
}

void Engine::step() {
  activity().progress();
  StepPlan plan;
  scheduler_.plan(plan);
  const std::vector<int64_t> overflowed = std::move(plan.overflowed);
  int64_t left_under_way = 0;
  if (plan.batch.rows() > 0) {
    model_.launch(plan.batch, plan.rows);
    under_way_.push_back(std::move(plan));
    left_under_way = model_.lag();
  }
  while (std::ssize(under_way_) > left_under_way) collect();
  for (const int64_t sequence : overflowed) {
    const std::optional<int64_t> id = request_of(sequence);
    if (id && !outstanding_.at(*id).ready) finish(*id, FinishReason::context);
  }
  resume_ready();
}

void Engine::collect() {
  model_.collect(result_);
  const StepPlan plan = std::move(under_way_.front());
  under_way_.pop_front();
  scheduler_.take(plan, result_.tokens);
  std::span<const BestToken> best = result_.best;
  for (size_t i = 0; i < plan.outputs.size(); ++i) {
    const auto wanted = static_cast<size_t>(plan.rows.best[i]);
    const auto its_best = best.first(wanted);
    best = best.subspan(wanted);
    const std::optional<int64_t> id = request_of(plan.outputs[i]);
    // A row of a sequence that had ended when the step was already on its way.
    if (!id || outstanding_.at(*id).ready) continue;
    if (wanted > 0) {
      accept_best(*id, plan.outputs[i] - *id, its_best);
    } else {
      accept_token(*id, result_.tokens[i], plan.rows.position[i]);
    }
  }
}

// The request that a sequence belongs to, unless it is gone. The beams of one have the ids from its own on.
std::optional<int64_t> Engine::request_of(int64_t sequence) const {
  const auto after = outstanding_.upper_bound(sequence);
  if (after == outstanding_.begin()) return std::nullopt;
  const auto& [id, request] = *std::prev(after);
  const int64_t width = request.beams ? request.beams->search.width() : 1;
  if (sequence - id >= width) return std::nullopt;
  return id;
}

// Looks at a token that has become known, the one at `position` of its sequence.
void Engine::accept_token(int64_t id, int32_t token, int64_t position) {
  const Sequence& sequence = scheduler_.sequence(id);
  const Request& request = sequence.request;
  Outstanding& entry = outstanding_.at(id);
  const int64_t generated = position + 1 - sequence.prompt_tokens;
  ++counts_.generated_tokens;

  if (!request.choices.empty()) {
    const auto chosen =
        std::ranges::find_if(request.choices, [&](const auto& group) { return group.front() == token; });
    entry.completion.choice = static_cast<int32_t>(chosen - request.choices.begin());
    return finish(id, FinishReason::stop);
  }
  if (entry.text.push(request, token, generated)) return finish(id, FinishReason::stop);
  if (entry.watch) {
    const std::string_view settled = entry.text.settled();
    const bool hopeless = entry.watch->append(settled.substr(entry.watched));
    entry.watched = settled.size();
    if (hopeless) return finish(id, FinishReason::hopeless);
  }
  const std::optional<FinishReason> last = last_for_now(request, generated, position + 1);
  if (last) finish(id, *last);
}

// Why no token may follow the `generated` ones, of a sequence of that size; none: one may.
std::optional<FinishReason> Engine::last_for_now(const Request& request, int64_t generated,
                                                 int64_t size) const {
  if (generated >= request.sampling.max_tokens) return FinishReason::length;
  if (size >= options_.max_positions) return FinishReason::context;
  return std::nullopt;
}

void Engine::finish(int64_t id, FinishReason reason) {
  Outstanding& entry = outstanding_.at(id);
  const Sequence& sequence = scheduler_.sequence(id);
  Completion& completion = entry.completion;
  completion.shared_tokens = sequence.shared;
  if (entry.beams) {
    finish_beams(id, *entry.beams, reason, completion);
  } else {
    completion.finish = reason;
    completion.tokens = sequence.generated_tokens();
    completion.text = entry.text.finish();
  }
  if (reason == FinishReason::hopeless) {
    ++counts_.hopeless_stops;
    counts_.hopeless_tokens += std::ssize(completion.tokens);
  }
  scheduler_.remove(id);
  entry.ready = true;
  ready_.push_back(id);
}

void Engine::resume_ready() {
  std::vector<int64_t> ids;
  ids.swap(ready_);  // what becomes ready meanwhile waits for the next step
  std::ranges::sort(ids);
  for (const int64_t id : ids) {
    const auto found = outstanding_.find(id);
    if (found == outstanding_.end()) continue;  // a coroutine resumed before it has destroyed its waiter
    PendingCompletion& waiter = *found->second.waiter;
    waiter.completion_ = std::move(found->second.completion);
    waiter.id_ = -1;
    outstanding_.erase(found);
    waiter.coroutine_.resume();
  }
}

void Engine::clear_shared_pages() {
  require(idle(), "shared pages are forgotten while requests are outstanding");
  scheduler_.clear_tree();
}

EngineStatistics Engine::statistics() const {
  EngineStatistics all = counts_;
  const Scheduler::Counts& counts = scheduler_.counts();
  all.steps = counts.steps;
  all.rows = counts.rows;
  all.prompt_tokens_computed = counts.prompt_computed;
  all.prompt_tokens_shared = counts.prompt_shared;
  all.preemptions = counts.preemptions;
  all.recomputed_tokens = counts.recomputed;
  all.running = scheduler_.running();
  all.waiting = scheduler_.waiting();
  all.pages_used = scheduler_.pages_used();
  all.pages_total = model_.pages();
  return all;
}

Engine::PendingCompletion::~PendingCompletion() {
  if (engine_ && id_ >= 0) engine_->cancel(id_);
}

void Engine::PendingCompletion::await_suspend(std::coroutine_handle<> coroutine) {
  coroutine_ = coroutine;
  id_ = engine_->submit(std::move(request_), this);
}

}  // namespace sl

#include "rollout/engine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "core/activity.hpp"
#include "core/error.hpp"

namespace sl {

Engine::Outstanding::Outstanding(const Tokenizer& tokenizer, const Request& request)
    : detokenizer(tokenizer), text(request.sampling.stop) {
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
  for (const int64_t id : overflowed) finish(id, FinishReason::context);
  resume_ready();
}

void Engine::collect() {
  sampled_.clear();
  model_.collect(sampled_);
  const StepPlan plan = std::move(under_way_.front());
  under_way_.pop_front();
  scheduler_.take(plan, sampled_);
  for (size_t i = 0; i < sampled_.size(); ++i) {
    const auto found = outstanding_.find(plan.outputs[i]);
    // A row of a sequence that had ended when the step was already on its way.
    if (found == outstanding_.end() || found->second.ready) continue;
    accept_token(plan.outputs[i], sampled_[i], plan.rows.position[i]);
  }
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
  const bool may_stop = generated > request.sampling.min_tokens;
  const bool is_end = std::ranges::find(request.end_tokens, token) != request.end_tokens.end();
  if (is_end && !request.sampling.ignore_end) {
    // What is left of an unfinished character may be malformed, but it holds no stop string.
    return finish(id, FinishReason::stop);
  }
  if (entry.text.append(entry.detokenizer.push(token), may_stop)) return finish(id, FinishReason::stop);
  if (entry.watch) {
    const std::string_view settled = entry.text.settled();
    const bool hopeless = entry.watch->append(settled.substr(entry.watched));
    entry.watched = settled.size();
    if (hopeless) return finish(id, FinishReason::hopeless);
  }
  if (generated >= request.sampling.max_tokens) return finish(id, FinishReason::length);
  if (position + 1 >= options_.max_positions) return finish(id, FinishReason::context);
}

void Engine::finish(int64_t id, FinishReason reason) {
  Outstanding& entry = outstanding_.at(id);
  const Sequence& sequence = scheduler_.sequence(id);
  Completion& completion = entry.completion;
  completion.finish = reason;
  completion.tokens.assign(sequence.tokens.begin() + sequence.prompt_tokens,
                           sequence.tokens.begin() + sequence.known());
  completion.shared_tokens = sequence.shared;
  if (!entry.text.stopped()) entry.text.append(entry.detokenizer.flush(), false);
  completion.text = entry.text.text();
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

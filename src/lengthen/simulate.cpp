#include "lengthen/simulate.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <queue>

#include "core/error.hpp"
#include "dist/layout.hpp"
#include "lengthen/stage.hpp"

namespace sl {
namespace {

using Pair = std::pair<int64_t, int64_t>;

// Samples that are not handed out: one list, or one a replica.
class Pending {
 public:
  Pending(int64_t samples, const SimulationOptions& options) : options_(options) {
    if (options.hand_out == HandOut::dynamic) {
      lists_.push_back({0, samples});
    } else {
      for (int replica = 0; replica < options.replicas; ++replica)
        lists_.push_back(share_of(samples, options.replicas, replica));
    }
  }

  bool exhausted(int replica) const { return list(replica).size() == 0; }
  Range take(int replica, int64_t room) {
    Range& left = lists_[options_.hand_out == HandOut::dynamic ? 0 : static_cast<size_t>(replica)];
    const int64_t share =
        options_.hand_out == HandOut::dynamic ? samples_to_take(left.size(), options_.replicas, room) : room;
    const Range taken = {left.begin, std::min(left.end, left.begin + share)};
    left.begin = taken.end;
    return taken;
  }

 private:
  const Range& list(int replica) const {
    return lists_[options_.hand_out == HandOut::dynamic ? 0 : static_cast<size_t>(replica)];
  }
  SimulationOptions options_;
  std::vector<Range> lists_;
};

// One replica's engine, which knows the lengths of its sequences before it has computed them. Steps in which
// nothing but decoding happens are taken at once.
class Replica {
 public:
  Replica(const std::vector<SimulatedSample>& samples, const StepTime& time, const SimulationOptions& options)
      : samples_(&samples), time_(&time), options_(options) {}

  int64_t in_flight() const { return in_flight_; }
  const SimulatedReplica& figures() const { return figures_; }

  void start(int64_t sample) {
    ++in_flight_;
    const SimulatedSample& s = at(sample);
    waiting_.push_back({.sample = sample, .attempt = 0, .left = s.prompt});
  }

  // Plans the next steps: one while prompts wait or `single`, else until a sequence ends. Returns the seconds
  // at which they are over.
  double plan(double now, bool single) {
    begin_ = now;
    decoding_ = static_cast<int64_t>(ends_.size());
    prompt_tokens_ = 0;
    planned_ = 1;
    if (!single && waiting_.empty()) planned_ = ends_.top().first - step_;
    for (int64_t rows = options_.max_batch_rows - decoding_; rows > 0 && !waiting_.empty();) {
      Request& request = waiting_.front();
      const int64_t read = std::min(rows, request.left);
      rows -= read;
      prompt_tokens_ += read;
      request.left -= read;
      if (request.left > 0) break;
      admitted_.push_back(request);
      waiting_.pop_front();
    }
    return begin_ + seconds_of(planned_);
  }

  // The planned steps are over. Returns the samples that are done.
  int64_t finish() {
    account(planned_);
    step_ += planned_;
    context_ += decoding_ * planned_;
    for (const Request& request : admitted_) {
      const SimulatedSample& sample = at(request.sample);
      ++figures_.tokens;
      context_ += sample.prompt + 1;
      ends_.push({step_ + tokens_of(request) - 1, index_of(request)});
    }
    admitted_.clear();
    int64_t done = 0;
    while (!ends_.empty() && ends_.top().first == step_) {
      Request request = requests_[ends_.top().second];
      free_.push_back(ends_.top().second);
      ends_.pop();
      const SimulatedSample& sample = at(request.sample);
      context_ -= sample.prompt + tokens_of(request);
      if (++request.attempt < std::ssize(sample.attempts)) {
        request.left = 1;
        waiting_.push_back(request);
      } else {
        ++done;
        --in_flight_;
      }
    }
    figures_.samples += done;
    return done;
  }

  // The stage is over at `now`, in the middle of the planned steps: this replica sees it after the one that
  // is running then.
  void cut_off(double now) {
    int64_t low = 0, high = planned_;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (begin_ + seconds_of(middle) >= now)
        high = middle;
      else
        low = middle + 1;
    }
    account(low);
    if (low > 0) figures_.tokens += std::ssize(admitted_);
  }

 private:
  struct Request {
    int64_t sample = 0, attempt = 0, left = 0;  // prompt tokens to be read
  };

  const SimulatedSample& at(int64_t sample) const { return (*samples_)[static_cast<size_t>(sample)]; }
  int64_t tokens_of(const Request& request) const {
    return at(request.sample).attempts[static_cast<size_t>(request.attempt)];
  }
  size_t index_of(const Request& request) {
    if (free_.empty()) {
      requests_.push_back(request);
      return requests_.size() - 1;
    }
    const size_t index = free_.back();
    free_.pop_back();
    requests_[index] = request;
    return index;
  }
  // Of the first steps that are planned. Contexts grow by a token a step.
  double seconds_of(int64_t steps) const {
    if (steps == 0) return 0.0;
    const auto n = static_cast<double>(steps), rows = static_cast<double>(decoding_);
    const double contexts = n * static_cast<double>(context_) + rows * n * (n - 1.0) / 2.0;
    return n * time_->of(decoding_) + time_->per_context_token * contexts +
           time_->per_prompt_token * static_cast<double>(prompt_tokens_);
  }
  void account(int64_t steps) {
    figures_.busy = begin_ + seconds_of(steps);
    figures_.steps += steps;
    figures_.tokens += steps * decoding_;
  }

  using Ends = std::priority_queue<std::pair<int64_t, size_t>, std::vector<std::pair<int64_t, size_t>>,
                                   std::greater<>>;
  const std::vector<SimulatedSample>* samples_;
  const StepTime* time_;
  SimulationOptions options_;
  SimulatedReplica figures_;
  std::deque<Request> waiting_;
  std::vector<Request> admitted_;  // whose prompts are read to the end in the planned step
  std::vector<Request> requests_;
  std::vector<size_t> free_;
  Ends ends_;            // decoding sequences by the step after which they end, places in requests_
  int64_t step_ = 0;     // steps taken
  int64_t context_ = 0;  // tokens that the decoding sequences attend to in the next step
  int64_t in_flight_ = 0;
  double begin_ = 0.0;  // of the planned steps
  int64_t planned_ = 0, decoding_ = 0, prompt_tokens_ = 0;
};

}  // namespace

double StepTime::of(int64_t sequences) const {
  require(!points.empty(), "a time of steps without a point");
  if (points.size() == 1 || sequences <= points.front().first) return points.front().second;
  auto after = std::ranges::lower_bound(points, sequences, {}, &std::pair<int64_t, double>::first);
  if (after == points.end()) --after;
  const auto before = after - 1;
  const double slope = (after->second - before->second) / static_cast<double>(after->first - before->first);
  return before->second + slope * static_cast<double>(sequences - before->first);
}

StepTime fit_step_time(const std::vector<MeasuredStep>& steps, double per_prompt_token,
                       const std::string& where) {
  std::map<int64_t, std::vector<Pair>> batches;  // -> (tokens attended to, place in steps)
  for (size_t i = 0; i < steps.size(); ++i)
    batches[steps[i].batch].push_back({steps[i].batch * steps[i].context, static_cast<int64_t>(i)});
  const auto mean_of = [&](const std::vector<Pair>& batch) {
    double tokens = 0.0, seconds = 0.0;
    for (const auto& [t, i] : batch) {
      tokens += static_cast<double>(t);
      seconds += steps[static_cast<size_t>(i)].seconds;
    }
    return std::pair(tokens / static_cast<double>(batch.size()), seconds / static_cast<double>(batch.size()));
  };
  double products = 0.0, squares = 0.0;
  for (const auto& [size, batch] : batches) {
    const auto [tokens, seconds] = mean_of(batch);
    for (const auto& [t, i] : batch) {
      const double apart = static_cast<double>(t) - tokens;
      products += apart * (steps[static_cast<size_t>(i)].seconds - seconds);
      squares += apart * apart;
    }
  }
  if (squares == 0.0) {
    throw InputError("has no two lines of bench decode or rollout with one batch and different contexts",
                     where, "measure, say, --batch 64 with --context 1024 and 4096");
  }
  StepTime time{.per_context_token = std::max(0.0, products / squares), .per_prompt_token = per_prompt_token};
  for (const auto& [size, batch] : batches) {
    const auto [tokens, seconds] = mean_of(batch);
    time.points.push_back({size, std::max(0.0, seconds - time.per_context_token * tokens)});
  }
  return time;
}

double Simulation::idle_share(int replica) const {
  return seconds > 0.0 ? 1.0 - replicas[static_cast<size_t>(replica)].busy / seconds : 0.0;
}

double Simulation::mean_idle_share() const {
  double sum = 0.0;
  for (int replica = 0; replica < std::ssize(replicas); ++replica) sum += idle_share(replica);
  return sum / static_cast<double>(replicas.size());
}

double Simulation::samples_per_second() const {
  return seconds > 0.0 ? static_cast<double>(needed) / seconds : 0.0;
}

Simulation simulate_stage(const std::vector<SimulatedSample>& samples, const StepTime& time,
                          const SimulationOptions& options) {
  require(options.replicas > 0 && options.max_sequences > 0 && options.max_batch_rows > options.max_sequences,
          "impossible limits of a replica");
  const auto count = std::ssize(samples);
  for (const SimulatedSample& sample : samples) {
    require(sample.prompt > 0 && !sample.attempts.empty() && std::ranges::min(sample.attempts) > 0,
            "a sample without a prompt or tokens");
  }
  const int64_t needed = samples_needed(count, options.straggler_cut);
  Pending pending(count, options);
  std::vector<Replica> replicas(static_cast<size_t>(options.replicas), Replica(samples, time, options));
  using Event = std::pair<double, int>;  // when a replica's planned steps are over
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events;
  const auto go_on = [&](int index, double now) {
    Replica& replica = replicas[static_cast<size_t>(index)];
    const int64_t room = options.max_sequences - replica.in_flight();
    if (room > 0 && !pending.exhausted(index)) {
      const Range taken = pending.take(index, room);
      for (int64_t sample = taken.begin; sample < taken.end; ++sample) replica.start(sample);
    }
    if (replica.in_flight() == 0) return;
    const bool takes = replica.in_flight() < options.max_sequences && !pending.exhausted(index);
    events.push({replica.plan(now, takes), index});
  };
  for (int index = 0; index < options.replicas; ++index) go_on(index, 0.0);
  int64_t finished = 0;
  while (!events.empty()) {
    const auto [now, index] = events.top();
    events.pop();
    finished += replicas[static_cast<size_t>(index)].finish();
    if (finished < needed || needed == count) {
      go_on(index, now);
      continue;
    }
    for (; !events.empty(); events.pop()) replicas[static_cast<size_t>(events.top().second)].cut_off(now);
  }
  Simulation result{.needed = needed};
  for (const Replica& replica : replicas) {
    result.replicas.push_back(replica.figures());
    result.seconds = std::max(result.seconds, replica.figures().busy);
  }
  return result;
}

}  // namespace sl

#include "lengthen/stage.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <list>
#include <memory>
#include <optional>
#include <set>

#include "core/activity.hpp"
#include "io/journal.hpp"

namespace sl {
namespace {

// Shared counters of a stage.
enum Counter : int { next_pending = 0, finished = 1, stop_asked = 2 };

struct InFlight {
  InFlight(Session& session, Engine& engine, const StageSpec& spec, int64_t index)
      : sample(session, engine, spec.iteration, spec.id, index), task(spec.flow(sample)) {}
  Sample sample;
  Task<nlohmann::json> task;
};

// What the leader of a replica decides for all its tensor-parallel ranks before a step, so that they stay in
// lockstep.
struct Decision {
  int64_t take_begin = 0, take_end = 0;  // of the pending list
  int64_t finished = 0;                  // samples, over all replicas
  bool stop = false;
};

class StageRun {
 public:
  StageRun(Session& session, Engine& engine, const StageSpec& spec)
      : session_(session),
        engine_(engine),
        spec_(spec),
        samples_(spec.last_sample - spec.first_sample),
        needed_(samples_needed(samples_, session.method.straggler_cut)) {}

  // True when the samples of the stage are done as far as they need be; false when asked to stop.
  bool run() {
    recall_finished();
    session_.counters.reset();
    const EngineStatistics before = engine_.statistics();
    if (session_.first()) session_.counters.fetch_add(finished, static_cast<int64_t>(costs_.size()));
    session_.groups.world->barrier();
    if (session_.leader()) {
      journal_.emplace(
          session_.folder.journal(spec_.iteration, std::string(stage_name(spec_.id)), session_.replica()));
    }
    const Stopwatch watch;
    bool stopped = false;
    while (true) {
      const Decision decision = decide();
      stopped = decision.stop;
      if (stopped || enough(decision)) break;
      for (int64_t i = decision.take_begin; i < decision.take_end; ++i)
        start(pending_[static_cast<size_t>(i)]);
      if (in_flight_.empty() && exhausted_) break;
      if (!engine_.idle()) engine_.step();
      collect();
      report_progress(decision);
    }
    const EngineStatistics after = engine_.statistics();
    figures_.busy_seconds = watch.seconds();
    figures_.tokens = after.generated_tokens - before.generated_tokens;
    figures_.prompt_tokens = after.prompt_tokens_computed - before.prompt_tokens_computed;
    figures_.steps = after.steps - before.steps;
    in_flight_.clear();  // abandoned: their requests leave the engine
    if (journal_) journal_->sync();
    return !stopped;
  }

  // Of all replicas, on every rank. After run(); collective over the world.
  std::vector<ReplicaFigures> figures() const {
    std::string own;
    if (session_.leader()) own.assign(reinterpret_cast<const char*>(&figures_), sizeof(figures_));
    std::vector<ReplicaFigures> all;
    for (const std::string& one : session_.groups.world->all_gather(own)) {
      if (one.empty()) continue;
      std::memcpy(&all.emplace_back(), one.data(), sizeof(ReplicaFigures));
    }
    return all;
  }

  // Whether an earlier start of the run had finished this sample.
  bool recalled(int64_t sample) const { return known_.contains(sample); }

 private:
  void recall_finished() {
    for (const nlohmann::json& record :
         session_.folder.read_journals(spec_.iteration, std::string(stage_name(spec_.id)))) {
      const auto sample = record.at("sample").get<int64_t>();
      const bool ours = sample >= spec_.first_sample && sample < spec_.last_sample;  // not of another wave
      if (ours && known_.insert(sample).second) costs_.push_back(record.at("tokens").get<int64_t>());
    }
    for (int64_t sample = spec_.first_sample; sample < spec_.last_sample; ++sample) {
      if (!known_.contains(sample)) pending_.push_back(sample);
    }
    std::sort(costs_.begin(), costs_.end());
  }

  Decision decide() {
    Decision decision;
    if (session_.leader()) {
      if (stop_signal != 0) session_.counters.fetch_add(stop_asked, 1);
      decision.stop = session_.counters.read(stop_asked) > 0;
      decision.finished = session_.counters.read(finished);
      take(decision);
    }
    if (session_.groups.tensor->size() > 1) {
      session_.groups.tensor->broadcast(std::as_writable_bytes(std::span(&decision, 1)), 0);
    }
    exhausted_ = exhausted_ || decision.take_end >= static_cast<int64_t>(pending_.size());
    return decision;
  }

  void take(Decision& decision) {
    const int64_t room = session_.limits.max_sequences - static_cast<int64_t>(in_flight_.size());
    if (room <= 0 || exhausted_) return;
    const auto total = static_cast<int64_t>(pending_.size());
    const int64_t left = std::max<int64_t>(0, total - session_.counters.read(next_pending));
    const int64_t share = samples_to_take(left, session_.groups.grid.dp, room);
    decision.take_begin = std::min(total, session_.counters.fetch_add(next_pending, share));
    decision.take_end = std::min(total, decision.take_begin + share);
  }

  // By arrival the stage is over when enough samples are finished, wherever. With --deterministic it runs on,
  // less the samples that can no longer be among the cheapest.
  bool enough(const Decision& decision) const {
    return !session_.method.deterministic && decision.finished >= needed_ && needed_ < samples_;
  }

  void start(int64_t index) {
    in_flight_.push_back(std::make_unique<InFlight>(session_, engine_, spec_, index));
    in_flight_.back()->task.start();
  }

  void collect() {
    for (auto it = in_flight_.begin(); it != in_flight_.end();) {
      InFlight& flow = **it;
      if (flow.task.done()) {
        const nlohmann::json record = flow.task.result();
        ++figures_.samples;
        if (journal_) {
          journal_->append(record);
          session_.counters.fetch_add(finished, 1);
        }
        costs_.insert(std::upper_bound(costs_.begin(), costs_.end(), flow.sample.tokens()),
                      flow.sample.tokens());
        it = in_flight_.erase(it);
      } else if (session_.method.deterministic && too_costly(flow.sample)) {
        it = in_flight_.erase(it);
      } else {
        ++it;
      }
    }
    if (journal_) journal_->sync_if_due();
  }

  bool too_costly(const Sample& sample) const {
    return static_cast<int64_t>(costs_.size()) >= needed_ && needed_ > 0 &&
           costs_[static_cast<size_t>(needed_ - 1)] < sample.tokens();
  }

  void report_progress(const Decision& decision) {
    session_.progress.update({.stage = std::string(stage_name(spec_.id)),
                              .iteration = spec_.iteration,
                              .done = decision.finished,
                              .total = samples_,
                              .engine = engine_.statistics(),
                              .part = session_.folder.part()});
  }

  Session& session_;
  Engine& engine_;
  const StageSpec& spec_;
  int64_t samples_, needed_;
  std::set<int64_t> known_;       // samples finished when the stage began; the same on every rank
  std::vector<int64_t> pending_;  // samples not finished when the stage began; the same on every rank
  std::vector<int64_t> costs_;    // tokens of the finished samples this replica knows of, ascending
  std::list<std::unique_ptr<InFlight>> in_flight_;
  std::optional<Journal> journal_;
  ReplicaFigures figures_;
  bool exhausted_ = false;
};

}  // namespace

int64_t samples_needed(int64_t samples, double cut) {
  return std::min<int64_t>(samples,
                           static_cast<int64_t>(std::ceil(cut * static_cast<double>(samples) - 1e-9)));
}

nlohmann::json StageReport::to_json() const {
  return {{"samples", samples},   {"accepted", accepted}, {"given_up", given_up}, {"abandoned", abandoned},
          {"attempts", attempts}, {"tokens", tokens},     {"rejected", rejected}};
}

StageReport& StageReport::operator+=(const StageReport& other) {
  samples += other.samples;
  accepted += other.accepted;
  given_up += other.given_up;
  abandoned += other.abandoned;
  attempts += other.attempts;
  tokens += other.tokens;
  for (const auto& [rule, count] : other.rejected) rejected[rule] += count;
  return *this;
}

void StageResult::add(StageResult later) {
  std::move(later.accepted.begin(), later.accepted.end(), std::back_inserter(accepted));
  report += later.report;
  tokens_before += later.tokens_before;
  seconds += later.seconds;
  replicas.resize(later.replicas.size());
  for (size_t i = 0; i < replicas.size(); ++i) {
    replicas[i].busy_seconds += later.replicas[i].busy_seconds;
    replicas[i].samples += later.replicas[i].samples;
    replicas[i].tokens += later.replicas[i].tokens;
    replicas[i].prompt_tokens += later.replicas[i].prompt_tokens;
    replicas[i].steps += later.replicas[i].steps;
  }
}

nlohmann::json StageResult::replicas_to_json() const {
  nlohmann::json lists = {{"seconds", seconds}};
  for (const ReplicaFigures& replica : replicas) {
    lists["busy_seconds"].push_back(replica.busy_seconds);
    lists["samples"].push_back(replica.samples);
    lists["tokens"].push_back(replica.tokens);
    lists["prompt_tokens"].push_back(replica.prompt_tokens);
    lists["steps"].push_back(replica.steps);
  }
  return lists;
}

std::vector<nlohmann::json> cut_costliest(std::vector<nlohmann::json> records, int64_t samples, double cut) {
  const auto key = [](const nlohmann::json& record) {
    return std::pair(record.at("tokens").get<int64_t>(), record.at("sample").get<int64_t>());
  };
  std::sort(records.begin(), records.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
  const auto keep = static_cast<size_t>(samples_needed(samples, cut));
  if (records.size() > keep) records.resize(keep);
  std::sort(records.begin(), records.end(),
            [](const auto& a, const auto& b) { return a.at("sample") < b.at("sample"); });
  return records;
}

StageResult run_stage(Session& session, Engine& engine, const StageSpec& spec) {
  activity().stage(stage_name(spec.id).data(), spec.iteration, session.folder.part());
  StageRun stage(session, engine, spec);
  stage.run();
  const std::vector<ReplicaFigures> figures = stage.figures();
  if (session.stop_agreed()) throw Stopped{};

  std::map<int64_t, nlohmann::json>
      by_sample;  // a sample may stand in two journals when a run was moved; once counts
  for (nlohmann::json& record :
       session.folder.read_journals(spec.iteration, std::string(stage_name(spec.id)))) {
    const auto sample = record.at("sample").get<int64_t>();
    if (sample >= spec.first_sample && sample < spec.last_sample)
      by_sample.emplace(sample, std::move(record));
  }
  std::vector<nlohmann::json> records;
  records.reserve(by_sample.size());
  for (auto& [sample, record] : by_sample) records.push_back(std::move(record));
  StageResult result;
  result.replicas = figures;
  for (const ReplicaFigures& replica : figures)
    result.seconds = std::max(result.seconds, replica.busy_seconds);
  result.report.samples = spec.last_sample - spec.first_sample;
  if (session.method.deterministic) {
    records = cut_costliest(std::move(records), result.report.samples, session.method.straggler_cut);
  }
  StageReport& report = result.report;
  report.abandoned = report.samples - static_cast<int64_t>(records.size());
  for (nlohmann::json& record : records) {
    report.attempts += record.at("attempts").get<int64_t>();
    report.tokens += record.at("tokens").get<int64_t>();
    if (stage.recalled(record.at("sample").get<int64_t>()))
      result.tokens_before += record.at("tokens").get<int64_t>();
    for (const auto& [rule, count] : record.at("rejected").items())
      report.rejected[rule] += count.get<int64_t>();
    if (record.at("status") == "accepted") {
      ++report.accepted;
      result.accepted.push_back(std::move(record));
    } else {
      ++report.given_up;
    }
  }
  return result;
}

}  // namespace sl

#include "rollout/beam_search.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.hpp"

namespace sl {

BeamSearch::BeamSearch(const Request& request)
    : width_(request.sampling.beams),
      candidates_(request.beam_candidates()),
      length_penalty_(request.sampling.length_penalty),
      beams_(1) {}

double BeamSearch::score(double sum, int64_t length) const {
  return sum / std::pow(static_cast<double>(length), length_penalty_);
}

void BeamSearch::offer(int64_t beam, std::span<const BestToken> best) {
  for (const BestToken& next : best) {
    if (std::isinf(next.score)) continue;  // banned
    offered_.push_back({.beam = static_cast<int32_t>(beam),
                        .token = next.token,
                        .sum = beams_.at(static_cast<size_t>(beam)).sum + static_cast<double>(next.score)});
  }
  ++offers_;
}

std::vector<BeamSearch::Continuation> BeamSearch::best_continuations() const {
  require(!offered_.empty(), "no token is left that a beam may go on with");
  std::vector<Continuation> best = offered_;
  std::ranges::sort(best, [](const Continuation& a, const Continuation& b) {
    if (a.sum != b.sum) return a.sum > b.sum;
    return std::pair(a.beam, a.token) < std::pair(b.beam, b.token);
  });
  if (std::ssize(best) > candidates_) best.resize(static_cast<size_t>(candidates_));
  return best;
}

void BeamSearch::add(Hypothesis hypothesis) {
  const auto place =
      std::ranges::upper_bound(hypotheses_, hypothesis.score, std::ranges::greater(), &Hypothesis::score);
  hypotheses_.insert(place, std::move(hypothesis));
  if (std::ssize(hypotheses_) > width_) hypotheses_.pop_back();
}

void BeamSearch::go_on(std::vector<Continuation> beams) {
  beams_ = std::move(beams);
  offered_.clear();
  offers_ = 0;
}

bool BeamSearch::done(int64_t length) const {
  if (beams_.empty()) return true;
  return std::ssize(hypotheses_) == width_ && score(beams_.front().sum, length) <= hypotheses_.back().score;
}

}  // namespace sl

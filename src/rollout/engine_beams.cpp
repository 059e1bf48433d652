// Completions by beam search: a step of the search when the best tokens of all its beams are known.
#include <algorithm>

#include "core/error.hpp"
#include "rollout/engine.hpp"

namespace sl {

Engine::Beams::Beams(const Tokenizer& tokenizer, const Request& request)
    : search(request), texts(1, GrowingText(tokenizer, request)) {}

void Engine::accept_best(int64_t id, int64_t beam, std::span<const BestToken> best) {
  Beams& beams = *outstanding_.at(id).beams;
  beams.search.offer(beam, best);
  if (beams.search.all_have_offered()) advance(id, beams);
}

void Engine::advance(int64_t id, Beams& beams) {
  BeamSearch& search = beams.search;
  const Sequence& first = scheduler_.sequence(id);
  const int64_t length = first.generated();  // with the token that is being chosen
  const std::optional<FinishReason> last = last_for_now(first.request, length, first.size());
  ++counts_.generated_tokens;

  std::vector<BeamSearch::Continuation> going_on;
  std::vector<GrowingText> texts;
  int64_t rank = 0;
  for (const BeamSearch::Continuation& next : search.best_continuations()) {
    if (std::ssize(going_on) == search.width()) break;
    const bool may_end = rank++ < search.width();
    GrowingText text = beams.texts.at(static_cast<size_t>(next.beam));
    const bool stops = text.push(first.request, next.token, length);
    if (!stops && !last) {
      going_on.push_back(next);
      texts.push_back(std::move(text));
    } else if (may_end) {
      const Sequence& beam = scheduler_.sequence(id + next.beam);
      Hypothesis ended{.tokens = beam.generated_tokens(),
                       .text = text.finish(),
                       .finish = stops ? FinishReason::stop : *last,
                       .score = search.score(next.sum, length)};
      ended.tokens.push_back(next.token);
      search.add(std::move(ended));
    }
  }
  search.go_on(std::move(going_on));
  beams.texts = std::move(texts);
  if (search.done(length)) return finish(id, FinishReason::stop);

  std::vector<BeamStep> steps;
  for (const BeamSearch::Continuation& beam : search.beams()) steps.push_back({beam.beam, beam.token});
  scheduler_.fork(id, steps);
}

// The best that there is. Where the search is cut because its memory is used up, the beams are hypotheses as
// they stand.
void Engine::finish_beams(int64_t id, Beams& beams, FinishReason reason, Completion& completion) {
  BeamSearch& search = beams.search;
  for (size_t i = 0; reason == FinishReason::context && i < search.beams().size(); ++i) {
    std::vector<int32_t> tokens = scheduler_.sequence(id + static_cast<int64_t>(i)).generated_tokens();
    const int64_t length = std::max<int64_t>(std::ssize(tokens), 1);
    search.add({.tokens = std::move(tokens),
                .text = beams.texts.at(i).finish(),
                .finish = reason,
                .score = search.score(search.beams()[i].sum, length)});
  }
  const Hypothesis& best = search.hypotheses().front();
  completion.finish = best.finish;
  completion.tokens = best.tokens;
  completion.text = best.text;
  completion.score = best.score;
}

}  // namespace sl

// From the planned rows to the arrays that cross to the model.
#include <algorithm>
#include <utility>

#include "rollout/scheduler.hpp"

namespace sl {

void Scheduler::emit(StepPlan& plan) {
  if (planned_.empty()) return;
  std::stable_sort(planned_.begin(), planned_.end(), [](const Planned& a, const Planned& b) {
    return a.sequence->request.adapter < b.sequence->request.adapter;
  });
  Batch& batch = plan.batch;
  batch.copied_pages = std::exchange(copied_pages_, {});
  plan.rows.copied_slots = std::exchange(copied_slots_, {});
  for (const Planned& planned : planned_) {
    batch.pages_per_sequence =
        std::max(batch.pages_per_sequence, static_cast<int64_t>(planned.sequence->pages.size()));
  }
  const int64_t page_size = tokens_per_page_;
  batch.query_offsets.push_back(0);
  for (const Planned& planned : planned_) {
    Sequence& sequence = *planned.sequence;
    const int64_t row_begin = batch.rows();
    for (int64_t position = sequence.computed; position < planned.end; ++position) {
      const int64_t page = position / page_size;
      const int64_t slot = page < planned.stored_pages
                               ? -1
                               : sequence.pages[static_cast<size_t>(page)] * page_size + position % page_size;
      batch.tokens.push_back(sequence.tokens[static_cast<size_t>(position)]);
      batch.positions.push_back(static_cast<int32_t>(position));
      batch.slots.push_back(static_cast<int32_t>(slot));
      if (position < sequence.reached) {
        ++counts_.recomputed;
      } else if (position < sequence.prompt_tokens) {
        ++counts_.prompt_computed;
      }
    }
    batch.query_offsets.push_back(static_cast<int32_t>(batch.rows()));
    batch.context_lengths.push_back(static_cast<int32_t>(planned.end));
    batch.page_tables.insert(batch.page_tables.end(), sequence.pages.begin(), sequence.pages.end());
    batch.page_tables.resize(static_cast<size_t>(batch.sequences() * batch.pages_per_sequence), 0);

    const int32_t adapter = sequence.request.adapter;
    if (adapter >= 0) {
      if (batch.segments.empty() || batch.segments.back().adapter != adapter)
        batch.segments.push_back({adapter, row_begin, row_begin});
      batch.segments.back().row_end = batch.rows();
    }
    if (sequence.request.sampling.repetition_penalty != 1.0F) {
      for (; sequence.marked < planned.end; ++sequence.marked) {
        plan.rows.seen_tokens.push_back(sequence.tokens[static_cast<size_t>(sequence.marked)]);
        plan.rows.seen_slots.push_back(sequence.slot);
      }
    }
    if (planned.end == sequence.size()) {
      batch.output_rows.push_back(static_cast<int32_t>(batch.rows() - 1));
      emit_output(plan, sequence);
    }
  }
  ++counts_.steps;
  counts_.rows += batch.rows();
}

void Scheduler::emit_output(StepPlan& plan, const Sequence& sequence) const {
  SamplingRows& rows = plan.rows;
  const Request& request = sequence.request;
  const SamplingParameters& sampling = request.sampling;
  plan.outputs.push_back(sequence.id);
  rows.slots.push_back(sampling.repetition_penalty != 1.0F ? sequence.slot : -1);
  rows.temperature.push_back(sampling.temperature < least_temperature ? 0.0F : sampling.temperature);
  rows.top_p.push_back(sampling.top_p);
  rows.penalty.push_back(sampling.repetition_penalty);
  rows.top_k.push_back(sampling.top_k);
  rows.stream_low.push_back(static_cast<uint32_t>(request.stream));
  rows.stream_high.push_back(static_cast<uint32_t>(request.stream >> 32));
  rows.position.push_back(static_cast<uint32_t>(sequence.size()));
  int32_t ban = -1;
  if (sequence.generated() < sampling.min_tokens && !sampling.ignore_end && !request.end_tokens.empty()) {
    const auto known = std::find(rows.ban_lists.begin(), rows.ban_lists.end(), request.end_tokens);
    ban = static_cast<int32_t>(known - rows.ban_lists.begin());
    if (known == rows.ban_lists.end()) rows.ban_lists.push_back(request.end_tokens);
  }
  rows.ban.push_back(ban);
  rows.choice.push_back(request.choices.empty() ? -1 : static_cast<int32_t>(rows.choice_lists.size()));
  if (!request.choices.empty()) rows.choice_lists.push_back(request.choices);
  rows.best.push_back(request.has_beams() ? static_cast<int32_t>(request.beam_candidates()) : 0);
}

}  // namespace sl

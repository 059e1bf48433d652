// Which tokens the next step computes. Continuous batching: decoding rows first, then chunks of prompts, up
// to a budget of rows; first come, first served. Pure host code that knows tokens and page ids.
//
// When pages run out the youngest running sequence gives up its pages and waits; what it has generated is
// kept and computed again later. A sequence that does not even fit alone overflows.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "model/batch.hpp"
#include "rollout/prefix_tree.hpp"
#include "rollout/sequence.hpp"
#include "rollout/step_model.hpp"

namespace sl {

// One step: what crosses to the model, and who takes the tokens it samples.
struct StepPlan {
  Batch batch;
  SamplingRows rows;
  std::vector<int64_t> outputs;     // sequence of each output row; rows.position has the token's place
  std::vector<int64_t> overflowed;  // sequences that can never be continued; the caller removes them
};

// How a beam search goes on: with its beam `parent` and this token behind.
struct BeamStep {
  int32_t parent = 0, token = 0;
};

class Scheduler {
 public:
  struct Counts {
    int64_t steps = 0, rows = 0;
    int64_t prompt_computed = 0;  // prompt rows computed for the first time
    int64_t prompt_shared = 0;    // prompt tokens that the prefix tree gave instead
    int64_t recomputed = 0;       // rows computed again after a pre-emption
    int64_t preemptions = 0;
  };

  Scheduler(const EngineOptions& options, int64_t pages, int64_t tokens_per_page);

  // Appends a sequence to those that wait; returns its id. Ids ascend. A request with beams begins as one
  // sequence; the ids after it are kept for the others.
  int64_t add(Request request);
  const Sequence& sequence(int64_t id) const { return sequences_.at(id); }
  // Forgets a finished or cancelled sequence, or all beams from that id on; their pages become available to
  // steps that are planned after.
  void remove(int64_t id);

  // Fills `plan` with the next step and takes it as done, up to the tokens that it draws: until take() they
  // are pending, and the plan after this one may name them as StepModel::launch says. No rows: nothing to
  // do before another take(), or only sequences that overflowed.
  void plan(StepPlan& plan);
  // One token for each output of the oldest plan that has rows and was not taken. Before the plan after the
  // next. Sequences that were removed meanwhile get nothing; beams get none either, but wait for fork().
  void take(const StepPlan& plan, std::span<const int32_t> sampled);
  // Puts new beams in the place of those from `id` on, whose best tokens are all known: sequence id + i goes
  // on from sequence id + beams[i].parent. They share full pages; one that is begun is copied before the
  // next step where several go on from it. Who finds no page for that waits, and is computed again.
  void fork(int64_t id, std::span<const BeamStep> beams);

  // Forgets all shared pages: adapters or weights have changed. No sequence is running.
  void clear_tree();

  int64_t running() const { return static_cast<int64_t>(running_.size()); }
  int64_t waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t pages_used() const { return tree_.pool().pages() - tree_.available(); }
  const Counts& counts() const { return counts_; }
  const PrefixTree& tree() const { return tree_; }

  // BugError unless every page, slot and count is accounted for. For tests: visits everything.
  void check() const;

 private:
  // Rows begin .. end of a sequence; its first `stored_pages` pages are not written by them.
  struct Planned {
    Sequence* sequence;
    int64_t end;
    int64_t stored_pages;
  };

  bool may_go_on(const Sequence& sequence) const;
  int64_t pages_for(int64_t tokens) const;
  int32_t page_above(const Sequence& sequence, int64_t page) const;
  std::span<const int32_t> page_tokens(const Sequence& sequence, int64_t page) const;

  void plan_decoding();
  void plan_prompts();
  void admit(StepPlan& plan);
  int64_t seats_taken() const;
  bool has_seat(const Sequence& sequence) const;
  bool make_room(StepPlan& plan);
  void plan_chunk(Sequence& sequence);
  bool reserve(Sequence& sequence, int64_t end);
  void schedule(Sequence& sequence, int64_t end);

  void match(Sequence& sequence);
  int64_t referenced_match(const Sequence& sequence) const;
  void preempt_youngest();
  void run(Sequence& sequence);
  Sequence duplicate(const Sequence& parent);
  void release(Sequence& sequence);
  void emit(StepPlan& plan);
  void commit(const StepPlan& plan);
  void emit_output(StepPlan& plan, const Sequence& sequence) const;

  EngineOptions options_;
  int64_t pages_, tokens_per_page_;
  PrefixTree tree_;
  std::map<int64_t, Sequence> sequences_;  // by id; addresses are stable
  std::vector<Sequence*> running_;         // ascending ids, all below those that wait
  std::map<int64_t, Sequence*> waiting_;
  std::vector<int32_t> free_slots_;        // the last is given next
  RowCopies copied_pages_, copied_slots_;  // before the next step
  std::vector<Planned> planned_;
  int64_t rows_left_ = 0;
  int64_t under_way_ = 0;  // plans that wait for take()
  int64_t next_id_ = 0;
  Counts counts_;
};

}  // namespace sl

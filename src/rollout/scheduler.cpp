#include "rollout/scheduler.hpp"

#include <algorithm>

#include "core/error.hpp"

namespace sl {

Scheduler::Scheduler(const EngineOptions& options, int64_t pages, int64_t tokens_per_page)
    : options_(options), pages_(pages), tokens_per_page_(tokens_per_page), tree_(pages, tokens_per_page) {
  require(options.max_batch_rows > 0 && options.max_sequences > 0 && options.max_positions > 0,
          "a scheduler needs rows, sequences and positions");
  for (int64_t slot = options.max_sequences - 1; slot >= 0; --slot)
    free_slots_.push_back(static_cast<int32_t>(slot));
}

int64_t Scheduler::add(Request request) {
  require(!request.prompt.empty(), "a sequence without a prompt");
  require(request.sampling.beams <= options_.max_sequences, "more beams than sequences may run");
  const int64_t id = next_id_;
  next_id_ += request.sampling.beams;
  Sequence& sequence = sequences_[id];
  sequence.id = sequence.first = id;
  sequence.tokens = std::move(request.prompt);
  sequence.prompt_tokens = sequence.size();
  sequence.request = std::move(request);
  waiting_.emplace(id, &sequence);
  return id;
}

void Scheduler::remove(int64_t id) {
  const int64_t end = id + sequences_.at(id).request.sampling.beams;
  for (auto each = sequences_.find(id); each != sequences_.end() && each->first < end;) {
    release(each->second);
    std::erase(running_, &each->second);
    waiting_.erase(each->first);
    each = sequences_.erase(each);
  }
}

int64_t Scheduler::pages_for(int64_t tokens) const {
  return (tokens + tokens_per_page_ - 1) / tokens_per_page_;
}

int32_t Scheduler::page_above(const Sequence& sequence, int64_t page) const {
  if (page == 0) return PrefixTree::root(sequence.request.adapter);
  return sequence.pages[static_cast<size_t>(page - 1)];
}

std::span<const int32_t> Scheduler::page_tokens(const Sequence& sequence, int64_t page) const {
  return std::span(sequence.tokens)
      .subspan(static_cast<size_t>(page * tokens_per_page_), static_cast<size_t>(tokens_per_page_));
}

void Scheduler::plan(StepPlan& plan) {
  plan = StepPlan();
  planned_.clear();
  rows_left_ = options_.max_batch_rows;
  for (Sequence* sequence : running_) sequence->planned = false;
  do {
    plan_decoding();
    plan_prompts();
    admit(plan);
  } while (planned_.empty() && under_way_ == 0 && make_room(plan));
  emit(plan);
  commit(plan);
}

// False when the token that is being drawn ends the sequence for certain, or depends on other beams.
bool Scheduler::may_go_on(const Sequence& sequence) const {
  if (sequence.pending == 0) return true;
  if (sequence.request.has_beams()) return false;
  return sequence.request.choices.empty() && sequence.generated() < sequence.request.sampling.max_tokens &&
         sequence.size() < options_.max_positions;
}

// Oldest first, so whoever gives way is not planned yet: nobody relies on pages it would have filled.
void Scheduler::plan_decoding() {
  for (size_t i = 0; i < running_.size() && rows_left_ > 0; ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.uncomputed() != 1 || !may_go_on(sequence)) continue;
    match(sequence);
    bool fits = reserve(sequence, sequence.size());
    while (!fits && running_.size() > 1) {
      const bool gives_way = running_.back() == &sequence;
      preempt_youngest();
      if (gives_way) break;
      fits = reserve(sequence, sequence.size());
    }
    if (fits) schedule(sequence, sequence.size());
  }
}

void Scheduler::plan_prompts() {
  for (Sequence* sequence : running_) {
    if (rows_left_ == 0) break;
    if (sequence->planned || !may_go_on(*sequence)) continue;
    match(*sequence);
    plan_chunk(*sequence);
  }
}

// As many rows as the budget and the available pages allow, maybe none.
void Scheduler::plan_chunk(Sequence& sequence) {
  const auto held = static_cast<int64_t>(sequence.pages.size());
  const int64_t room = (held + tree_.available()) * tokens_per_page_ - sequence.computed;
  const int64_t rows = std::min({sequence.uncomputed(), rows_left_, room});
  if (rows <= 0) return;
  require(reserve(sequence, sequence.computed + rows), "pages were counted and are not there");
  schedule(sequence, sequence.computed + rows);
}

// A sequence starts when the pages of all its tokens are available. Where rows are left over for it, the
// running ones have what they can use in this step, so prompts that are being read do not push each other
// out; and who has given way does not fit at once, because its pages went to another.
void Scheduler::admit(StepPlan& plan) {
  int64_t seats = seats_taken();
  while (!waiting_.empty() && rows_left_ > 0) {
    Sequence& sequence = *waiting_.begin()->second;
    const int64_t more_seats = has_seat(sequence) ? 0 : sequence.request.sampling.beams;
    if (seats + more_seats > options_.max_sequences) return;
    // Its last token goes into a bitmap that it no longer has; or its best tokens are on their way.
    if (sequence.pending > 0) return;
    const int64_t pages = pages_for(sequence.size());
    if (sequence.size() >= options_.max_positions || pages > pages_) {
      waiting_.erase(waiting_.begin());
      plan.overflowed.push_back(sequence.id);
      continue;
    }
    if (pages - referenced_match(sequence) > tree_.available()) return;
    waiting_.erase(waiting_.begin());
    run(sequence);
    seats += more_seats;
    sequence.slot = free_slots_.back();
    free_slots_.pop_back();
    sequence.planned = false;
    plan.rows.reset_slots.push_back(sequence.slot);
    match(sequence);
    plan_chunk(sequence);
  }
}

// A request of which a beam runs has a seat for each, so that beams need not wait for those of other requests
// when they fork.
int64_t Scheduler::seats_taken() const {
  int64_t seats = 0;
  int64_t before = -1;
  for (const Sequence* sequence : running_) {
    if (sequence->first != before) seats += sequence->request.sampling.beams;
    before = sequence->first;
  }
  return seats;
}

bool Scheduler::has_seat(const Sequence& sequence) const {
  if (!sequence.request.has_beams()) return false;
  return std::ranges::find(running_, sequence.first, &Sequence::first) != running_.end();
}

// Nobody can go on with the pages as they are: the youngest gives way, or the only one has overflowed,
// unless it waits for other beams.
bool Scheduler::make_room(StepPlan& plan) {
  if (running_.empty()) return false;
  if (running_.size() > 1 || running_.front()->drawn) {
    preempt_youngest();
    return true;
  }
  Sequence& sequence = *running_.front();
  release(sequence);
  running_.clear();
  plan.overflowed.push_back(sequence.id);
  return true;
}

// Pages so that tokens up to `end` have a place.
bool Scheduler::reserve(Sequence& sequence, int64_t end) {
  const int64_t missing = pages_for(end) - static_cast<int64_t>(sequence.pages.size());
  if (missing > tree_.available()) return false;
  for (int64_t i = 0; i < missing; ++i) sequence.pages.push_back(tree_.take());
  return true;
}

// Pages that these rows fill are shared from here on: within a step, all keys and values of a layer are
// stored before its attention looks at them. A page whose tokens are not all known yet is shared when they
// are.
void Scheduler::schedule(Sequence& sequence, int64_t end) {
  sequence.planned = true;
  planned_.push_back({&sequence, end, sequence.tree_pages});
  rows_left_ -= end - sequence.computed;
  const int64_t known = std::min(end, sequence.known());
  for (; (sequence.tree_pages + 1) * tokens_per_page_ <= known; ++sequence.tree_pages) {
    const int64_t page = sequence.tree_pages;
    tree_.insert(page_above(sequence, page), page_tokens(sequence, page),
                 sequence.pages[static_cast<size_t>(page)]);
  }
}

// Follows the tree from the sequence's last full page as far as its tokens are known there. A page that the
// sequence had begun itself is given up for the tree's. The last token is always left to compute: its row
// gives the next one.
void Scheduler::match(Sequence& sequence) {
  while ((sequence.tree_pages + 1) * tokens_per_page_ <= sequence.known()) {
    const int64_t page = sequence.tree_pages;
    const auto found = tree_.find(page_above(sequence, page), page_tokens(sequence, page));
    if (!found) break;
    tree_.retain(*found);
    if (page < static_cast<int64_t>(sequence.pages.size())) {
      tree_.release(sequence.pages[static_cast<size_t>(page)]);
      sequence.pages[static_cast<size_t>(page)] = *found;
    } else {
      sequence.pages.push_back(*found);
    }
    ++sequence.tree_pages;
  }
  const int64_t given = std::min(sequence.tree_pages * tokens_per_page_, sequence.size() - 1);
  if (given <= sequence.computed) return;
  const int64_t first = std::max(sequence.computed, sequence.reached);
  const int64_t new_shared = std::min(given, sequence.prompt_tokens) - first;
  if (new_shared > 0) {
    sequence.shared += new_shared;
    counts_.prompt_shared += new_shared;
  }
  sequence.computed = given;
  sequence.reached = std::max(sequence.reached, given);
}

// How many pages match() would give that are in use already, so that they cost nothing.
int64_t Scheduler::referenced_match(const Sequence& sequence) const {
  int64_t count = 0;
  int32_t above = PrefixTree::root(sequence.request.adapter);
  for (int64_t page = 0; (page + 1) * tokens_per_page_ <= sequence.known(); ++page) {
    const auto found = tree_.find(above, page_tokens(sequence, page));
    if (!found || tree_.pool().references(*found) == 0) break;
    ++count;
    above = *found;
  }
  return count;
}

// Puts a sequence among those that run, in order. Only a beam can have younger ones behind it.
void Scheduler::run(Sequence& sequence) {
  const auto place = std::ranges::lower_bound(running_, sequence.id, {}, &Sequence::id);
  running_.insert(place, &sequence);
}

// A beam that has nothing to compute before fork() does not wait for pages either.
void Scheduler::preempt_youngest() {
  Sequence& sequence = *running_.back();
  require(!sequence.planned, "a sequence that is planned gives way");
  running_.pop_back();
  release(sequence);
  if (!sequence.drawn) waiting_.emplace(sequence.id, &sequence);
  ++counts_.preemptions;
}

// Deepest page first, so that of a cached prefix the end is given up before the beginning.
void Scheduler::release(Sequence& sequence) {
  for (auto page = sequence.pages.rbegin(); page != sequence.pages.rend(); ++page) tree_.release(*page);
  sequence.pages.clear();
  sequence.computed = 0;
  sequence.tree_pages = 0;
  sequence.marked = 0;
  if (sequence.slot >= 0) free_slots_.push_back(sequence.slot);
  sequence.slot = -1;
}

void Scheduler::commit(const StepPlan& plan) {
  for (const Planned& planned : planned_) {
    planned.sequence->computed = planned.end;
    planned.sequence->reached = std::max(planned.sequence->reached, planned.end);
  }
  planned_.clear();
  if (plan.batch.rows() == 0) return;
  ++under_way_;
  for (size_t i = 0; i < plan.outputs.size(); ++i) {
    Sequence& sequence = sequences_.at(plan.outputs[i]);
    sequence.tokens.push_back(-1 - static_cast<int32_t>(i));
    ++sequence.pending;
    const bool marks = plan.rows.slots[i] >= 0 && plan.rows.best[i] == 0;
    if (marks) sequence.marked = sequence.size();  // by whoever draws it
  }
}

void Scheduler::take(const StepPlan& plan, std::span<const int32_t> sampled) {
  require(plan.outputs.size() == sampled.size(), "one sampled token an output row");
  if (plan.batch.rows() == 0) return;
  require(under_way_ > 0, "tokens of a step that was not planned");
  --under_way_;
  for (size_t i = 0; i < sampled.size(); ++i) {
    const auto found = sequences_.find(plan.outputs[i]);
    if (found == sequences_.end()) continue;
    Sequence& sequence = found->second;
    require(sequence.known() == static_cast<int64_t>(plan.rows.position[i]), "steps were taken out of order");
    if (plan.rows.best[i] > 0) {
      sequence.drawn = true;
      waiting_.erase(sequence.id);  // where it has given way meanwhile
      continue;
    }
    sequence.tokens[plan.rows.position[i]] = sampled[i];
    --sequence.pending;
  }
}

void Scheduler::clear_tree() {
  require(running_.empty(), "shared pages are forgotten while sequences use them");
  tree_.clear();
}

void Scheduler::check() const {
  tree_.check();
  std::vector<int32_t> references(static_cast<size_t>(pages_), 0);
  std::vector<bool> slot_used(static_cast<size_t>(options_.max_sequences), false);
  int64_t before = -1;
  for (const Sequence* sequence : running_) {
    require(sequence->id > before, "running sequences are out of order");
    before = sequence->id;
    require(sequence->slot >= 0 && !slot_used[static_cast<size_t>(sequence->slot)], "two share a slot");
    slot_used[static_cast<size_t>(sequence->slot)] = true;
    const auto held = static_cast<int64_t>(sequence->pages.size());
    const int64_t not_shared = sequence->pending > 0 ? 2 : 1;
    require(held >= pages_for(sequence->computed) && held <= sequence->tree_pages + not_shared,
            "a sequence holds too few pages or too many");
    require(sequence->computed < sequence->size(), "a sequence has nothing left to compute");
    require(!sequence->drawn || sequence->pending == 1, "a beam has best tokens and goes on");
    for (int64_t page = 0; page < held; ++page) {
      const int32_t id = sequence->pages[static_cast<size_t>(page)];
      ++references[static_cast<size_t>(id)];
      require(tree_.contains(id) == (page < sequence->tree_pages), "a full page is not shared");
      if (page >= sequence->tree_pages) continue;
      require(tree_.find(page_above(*sequence, page), page_tokens(*sequence, page)) == id,
              "a page holds other tokens than its sequence");
    }
  }
  for (const auto& [id, sequence] : waiting_) {
    require(id > before || sequence->request.has_beams(), "a waiting sequence is older than one that runs");
    require(sequence->pages.empty() && sequence->slot < 0 && !sequence->drawn,
            "a waiting sequence holds something");
  }
  require(seats_taken() <= options_.max_sequences, "more beams may run than there are slots");
  int64_t with_slot = 0;
  for (const auto& [id, sequence] : sequences_) with_slot += sequence.slot >= 0 ? 1 : 0;
  require(with_slot == running(), "a sequence has a slot and does not run");
  for (int32_t page = 0; page < pages_; ++page) {
    require(tree_.pool().references(page) == references[static_cast<size_t>(page)],
            "a page's references are not those of the sequences");
  }
  require(static_cast<int64_t>(free_slots_.size()) + running() == options_.max_sequences, "a slot is lost");
}

}  // namespace sl

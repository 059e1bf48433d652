// Where the beams of a request go on from: what they hold passes from parents to children.
#include <algorithm>
#include <iterator>
#include <utility>

#include "core/error.hpp"
#include "rollout/scheduler.hpp"

namespace sl {

void Scheduler::fork(int64_t id, std::span<const BeamStep> beams) {
  require(std::ssize(beams) <= sequences_.at(id).request.sampling.beams, "more beams than asked for");
  std::vector<int64_t> children;  // by parent: those that are still to be made
  std::vector<Sequence> parents;
  const int64_t end = id + sequences_.at(id).request.sampling.beams;
  for (auto each = sequences_.find(id); each != sequences_.end() && each->first < end;) {
    Sequence& parent = each->second;
    require(parent.drawn, "beams go on before all of them are known");
    children.push_back(std::ranges::count(beams, static_cast<int32_t>(parents.size()), &BeamStep::parent));
    if (children.back() == 0) release(parent);
    std::erase(running_, &parent);
    parents.push_back(std::move(parent));
    each = sequences_.erase(each);
  }
  for (size_t i = 0; i < beams.size(); ++i) {
    const auto from = static_cast<size_t>(beams[i].parent);
    Sequence& parent = parents.at(from);
    // The last child takes what the parent holds; until then it is there to be shared and copied.
    const bool last = --children[from] == 0;
    Sequence& child = sequences_[id + static_cast<int64_t>(i)];
    child = last ? std::move(parent) : duplicate(parent);
    child.id = id + static_cast<int64_t>(i);
    child.tokens.back() = beams[i].token;
    child.pending = 0;
    child.drawn = false;
    if (child.slot >= 0) {
      run(child);
    } else {
      waiting_.emplace(child.id, &child);
    }
  }
}

// A sequence with the same tokens and, where `parent` has them and a page is left to copy to, pages and a
// slot.
Sequence Scheduler::duplicate(const Sequence& parent) {
  Sequence copy = parent;
  const auto full = static_cast<size_t>(parent.tree_pages);
  const bool begun = parent.pages.size() > full;
  if (parent.slot < 0 || (begun && tree_.available() == 0)) {
    copy.pages.clear();
    copy.slot = -1;
    release(copy);
    return copy;
  }
  require(!free_slots_.empty(), "a beam has a seat and no slot");
  copy.slot = free_slots_.back();
  free_slots_.pop_back();
  if (parent.request.sampling.repetition_penalty != 1.0F) {
    copied_slots_.from.push_back(parent.slot);
    copied_slots_.to.push_back(copy.slot);
  }
  for (size_t page = 0; page < full; ++page) tree_.retain(copy.pages[page]);
  if (begun) {
    require(parent.pages.size() == full + 1, "a beam holds more than one page that is not full");
    copy.pages.back() = tree_.take();
    copied_pages_.from.push_back(parent.pages.back());
    copied_pages_.to.push_back(copy.pages.back());
  }
  return copy;
}

}  // namespace sl

// A model whose memory is tokens: it stores what it is given where the slots say, reads every context back
// through the page tables, and complains about whatever does not fit together. Its next token is a function
// of the context alone, so that any plan of steps must give the same completions.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "core/rng.hpp"
#include "rollout/engine.hpp"
#include "rollout/flow.hpp"

namespace sl::test {

struct DrawContext {
  std::vector<int32_t> tokens;  // as read back from the pages
  int32_t adapter = -1;
  uint64_t stream = 0;
  uint32_t position = 0;
  std::vector<int32_t> banned;
};

class FakeModel : public StepModel {
 public:
  using Draw = std::function<int32_t(const DrawContext&)>;

  FakeModel(int64_t pages, int64_t tokens_per_page, int64_t vocabulary, int64_t slots)
      : pages_(pages),
        tokens_per_page_(tokens_per_page),
        vocabulary_(vocabulary),
        memory_(static_cast<size_t>(pages * tokens_per_page)),
        seen_(static_cast<size_t>(slots)) {}

  // A token by address and context: any difference in either gives another one.
  Draw draw = [this](const DrawContext& context) {
    uint64_t hash = context.stream ^ static_cast<uint64_t>(context.adapter + 1) << 40;
    for (const int32_t token : context.tokens) hash = hash * 6364136223846793005ULL + token + 1;
    for (uint64_t turn = 0;; ++turn) {
      const auto token = static_cast<int32_t>(
          static_cast<double>(uniform_at(hash, context.position + (turn << 32))) * double(vocabulary_));
      if (std::ranges::find(context.banned, token) == context.banned.end()) return token;
    }
  };
  // Scores of all tokens, for rows that want the best ones: any difference in the context gives others.
  std::function<std::vector<float>(const DrawContext&)> score = [this](const DrawContext& context) {
    uint64_t hash = static_cast<uint64_t>(context.adapter + 1) << 40;
    for (const int32_t token : context.tokens) hash = hash * 6364136223846793005ULL + token + 1;
    std::vector<float> scores(static_cast<size_t>(vocabulary_));
    for (size_t token = 0; token < scores.size(); ++token)
      scores[token] = std::log(uniform_at(hash, static_cast<uint32_t>(token)) + 1e-6F);
    for (const int32_t token : context.banned) scores.at(static_cast<size_t>(token)) = -INFINITY;
    return scores;
  };
  std::function<void(const Batch&, const SamplingRows&)> on_run = [](const Batch&, const SamplingRows&) {};

  int64_t pages() const override { return pages_; }
  int64_t tokens_per_page() const override { return tokens_per_page_; }
  int64_t vocabulary() const override { return vocabulary_; }

  int64_t lag() const override { return lag_steps; }

  // A lagging model computes at once as well, and shows it later.
  void launch(const Batch& sent, const SamplingRows& rows) override {
    on_run(sent, rows);
    ++steps;
    Batch batch = sent;
    for (int32_t& token : batch.tokens) {
      if (token < 0) token = drawn_.back().tokens.at(static_cast<size_t>(-1 - token));
    }
    StepResult result;
    copy_pages(batch.copied_pages);
    const auto adapters = adapter_of_rows(batch);
    for (size_t row = 0; row < batch.tokens.size(); ++row) {
      if (batch.slots[row] < 0) continue;
      memory_.at(static_cast<size_t>(batch.slots[row])) = {batch.tokens[row], batch.positions[row],
                                                           adapters[row], 0};
    }
    std::vector<std::vector<int32_t>> contexts;
    for (size_t s = 0; s < batch.context_lengths.size(); ++s) contexts.push_back(read(batch, s, adapters));
    for (size_t s = 0; s < contexts.size(); ++s) verify(batch, s, contexts[s]);
    mark(rows);
    for (size_t i = 0; i < batch.output_rows.size(); ++i) {
      const DrawContext context = context_of(batch, rows, i, contexts, adapters);
      if (rows.best.at(i) > 0) {
        result.tokens.push_back(-1000);  // nobody may look at it
        append_best(context, rows.best[i], result.best);
        continue;
      }
      result.tokens.push_back(draw(context));
      if (rows.slots[i] >= 0) seen_.at(static_cast<size_t>(rows.slots[i])).insert(result.tokens.back());
    }
    drawn_.push_back(std::move(result));
    ++not_collected_;
  }

  void collect(StepResult& result) override {
    result = drawn_.at(drawn_.size() - not_collected_--);
    while (drawn_.size() > not_collected_ + 1) drawn_.pop_front();
  }

  int64_t steps = 0;
  int64_t lag_steps = 0;

 private:
  struct Entry {
    int32_t token = -1, position = -1, adapter = -2;
    uint64_t prefix = 0;  // hash of all tokens up to here: as in a real model, what is stored depends on them
  };

  static std::vector<int32_t> adapter_of_rows(const Batch& batch) {
    std::vector<int32_t> adapters(batch.tokens.size(), -1);
    for (const AdapterSegment& segment : batch.segments) {
      for (int64_t row = segment.row_begin; row < segment.row_end; ++row)
        adapters.at(static_cast<size_t>(row)) = segment.adapter;
    }
    return adapters;
  }

  Entry& entry(const Batch& batch, size_t sequence, int64_t position) {
    const auto page = batch.page_tables.at(static_cast<size_t>(
        static_cast<int64_t>(sequence) * batch.pages_per_sequence + position / tokens_per_page_));
    return memory_.at(static_cast<size_t>(page * tokens_per_page_ + position % tokens_per_page_));
  }

  // The context of a sequence, and the prefix hashes of the rows stored in this step.
  std::vector<int32_t> read(const Batch& batch, size_t s, const std::vector<int32_t>& adapters) {
    const auto begin = static_cast<size_t>(batch.query_offsets.at(s));
    const auto end = static_cast<size_t>(batch.query_offsets.at(s + 1));
    const int32_t length = batch.context_lengths[s];
    std::vector<int32_t> tokens;
    uint64_t prefix = 0;
    for (int32_t position = 0; position < length; ++position) {
      Entry& stored = entry(batch, s, position);
      EXPECT_EQ(stored.position, position) << "sequence " << s;
      EXPECT_EQ(stored.adapter, adapters.at(begin)) << "sequence " << s;
      tokens.push_back(stored.token);
      prefix = prefix * 6364136223846793005ULL + static_cast<uint64_t>(stored.token) + 1;
      const int64_t row = static_cast<int64_t>(end) - (length - position);
      if (row < static_cast<int64_t>(begin)) continue;
      EXPECT_EQ(batch.positions.at(static_cast<size_t>(row)), position);
      EXPECT_EQ(batch.tokens.at(static_cast<size_t>(row)), stored.token);
      if (batch.slots.at(static_cast<size_t>(row)) >= 0) stored.prefix = prefix;
    }
    return tokens;
  }

  void verify(const Batch& batch, size_t s, const std::vector<int32_t>& tokens) {
    uint64_t prefix = 0;
    for (size_t position = 0; position < tokens.size(); ++position) {
      prefix = prefix * 6364136223846793005ULL + static_cast<uint64_t>(tokens[position]) + 1;
      EXPECT_EQ(entry(batch, s, static_cast<int64_t>(position)).prefix, prefix)
          << "a page was filled after other tokens";
    }
  }

  void copy_pages(const RowCopies& pages) {
    for (size_t i = 0; i < pages.to.size(); ++i) {
      std::copy_n(memory_.begin() + pages.from[i] * tokens_per_page_, tokens_per_page_,
                  memory_.begin() + pages.to[i] * tokens_per_page_);
    }
  }

  void append_best(const DrawContext& context, int32_t wanted, std::vector<BestToken>& best) const {
    const std::vector<float> scores = score(context);
    std::vector<BestToken> all;
    for (size_t token = 0; token < scores.size(); ++token)
      all.push_back({static_cast<int32_t>(token), scores[token]});
    std::ranges::stable_sort(all, std::ranges::greater(), &BestToken::score);
    best.insert(best.end(), all.begin(), all.begin() + wanted);
  }

  void mark(const SamplingRows& rows) {
    for (size_t i = 0; i < rows.copied_slots.to.size(); ++i) {
      seen_.at(static_cast<size_t>(rows.copied_slots.to[i])) =
          seen_.at(static_cast<size_t>(rows.copied_slots.from[i]));
    }
    for (const int32_t slot : rows.reset_slots) seen_.at(static_cast<size_t>(slot)).clear();
    ASSERT_EQ(rows.seen_tokens.size(), rows.seen_slots.size());
    for (size_t i = 0; i < rows.seen_tokens.size(); ++i)
      seen_.at(static_cast<size_t>(rows.seen_slots[i])).insert(rows.seen_tokens[i]);
  }

  DrawContext context_of(const Batch& batch, const SamplingRows& rows, size_t i,
                         const std::vector<std::vector<int32_t>>& contexts,
                         const std::vector<int32_t>& adapters) {
    const int32_t row = batch.output_rows.at(i);
    const auto next = std::ranges::upper_bound(batch.query_offsets, row);
    const auto s = static_cast<size_t>(next - batch.query_offsets.begin() - 1);
    EXPECT_EQ(*next - 1, row) << "logits are wanted in the middle of a sequence";
    EXPECT_EQ(rows.position.at(i), contexts[s].size());
    if (rows.slots.at(i) >= 0) {
      EXPECT_EQ(seen_.at(static_cast<size_t>(rows.slots[i])),
                std::set<int32_t>(contexts[s].begin(), contexts[s].end()));
    } else {
      EXPECT_EQ(rows.penalty.at(i), 1.0F);
    }
    DrawContext context{contexts[s],
                        adapters.at(static_cast<size_t>(row)),
                        uint64_t{rows.stream_high.at(i)} << 32 | rows.stream_low.at(i),
                        rows.position[i],
                        {}};
    if (rows.ban.at(i) >= 0) context.banned = rows.ban_lists.at(static_cast<size_t>(rows.ban[i]));
    return context;
  }

  int64_t pages_, tokens_per_page_, vocabulary_;
  std::vector<Entry> memory_;
  std::vector<std::set<int32_t>> seen_;
  std::deque<StepResult> drawn_;  // by steps: those not collected, and the one before them
  size_t not_collected_ = 0;
};

// Token i < 256 is byte i; then the texts given; the last one is the special token "<end>".
inline Tokenizer byte_tokenizer(const std::vector<std::string>& texts = {}) {
  TokenizerSpec spec;
  spec.where = "test";
  for (int byte = 0; byte < 256; ++byte) spec.tokens.emplace_back(1, static_cast<char>(byte));
  spec.tokens.insert(spec.tokens.end(), texts.begin(), texts.end());
  spec.tokens.emplace_back("<end>");
  spec.added.push_back(
      {.id = static_cast<int32_t>(spec.tokens.size()) - 1, .content = "<end>", .special = true});
  return Tokenizer(std::move(spec));
}

inline std::vector<int32_t> bytes_of(std::string_view text) {
  std::vector<int32_t> tokens;
  for (const char c : text) tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

inline Task<Completion> complete(Engine& engine, Request request) {
  co_return co_await engine.complete(std::move(request));
}

// All requests at once; completions in their order.
inline std::vector<Completion> complete_all(Engine& engine, const std::vector<Request>& requests,
                                            bool check = true) {
  std::vector<Task<Completion>> tasks;
  for (const Request& request : requests) {
    tasks.push_back(complete(engine, request));
    tasks.back().start();
  }
  while (!engine.idle()) {
    engine.step();
    if (check) engine.scheduler().check();
  }
  std::vector<Completion> completions;
  for (Task<Completion>& task : tasks) completions.push_back(task.result());
  return completions;
}

}  // namespace sl::test

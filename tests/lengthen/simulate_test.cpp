#include "lengthen/simulate.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.hpp"
#include "core/rng.hpp"
#include "dist/layout.hpp"
#include "lengthen/simulate_input.hpp"

namespace sl {
namespace {

StepTime a_second_a_step() { return {.points = {{0, 1.0}}}; }

std::vector<SimulatedSample> of_lengths(const std::vector<int64_t>& lengths) {
  std::vector<SimulatedSample> samples;
  for (const int64_t length : lengths) samples.push_back({1, {length}});
  return samples;
}

TEST(StepTime, LiesOnStraightLinesBetweenThePoints) {
  const StepTime time{.points = {{1, 1.0}, {11, 2.0}, {21, 5.0}}};
  EXPECT_EQ(time.of(0), 1.0);
  EXPECT_EQ(time.of(1), 1.0);
  EXPECT_NEAR(time.of(6), 1.5, 1e-12);
  EXPECT_NEAR(time.of(11), 2.0, 1e-12);
  EXPECT_NEAR(time.of(31), 8.0, 1e-12);
  EXPECT_EQ(a_second_a_step().of(1000), 1.0);
}

TEST(StepTime, IsFoundAgainInStepsThatWereMadeFromIt) {
  const StepTime made{.points = {{1, 0.5}, {4, 0.6}, {16, 1.5}}, .per_context_token = 0.001};
  std::vector<MeasuredStep> steps;
  for (const int64_t batch : {16, 1, 4}) {
    for (const int64_t context : {10, 100, 1000}) {
      if (batch == 1 && context > 10) continue;
      steps.push_back({batch, context, made.of(batch) + 0.001 * static_cast<double>(batch * context)});
    }
  }
  const StepTime found = fit_step_time(steps, 0.25, "here");
  EXPECT_NEAR(found.per_context_token, 0.001, 1e-12);
  EXPECT_EQ(found.per_prompt_token, 0.25);
  ASSERT_EQ(found.points.size(), 3U);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(found.points[i].first, made.points[i].first);
    EXPECT_NEAR(found.points[i].second, made.points[i].second, 1e-9);
  }
  steps.resize(1);
  EXPECT_THROW(fit_step_time(steps, 0.25, "here"), InputError);
}

// 8 prompt tokens in chunks of 5; the second chunk's step gives the first of 4 tokens. Then three steps that
// attend to 9, 10 and 11 tokens.
TEST(Simulate, OneSampleByHand) {
  const StepTime time{.points = {{0, 10.0}, {1, 20.0}}, .per_context_token = 0.1, .per_prompt_token = 1.0};
  const Simulation one =
      simulate_stage({{8, {4}}}, time, {.replicas = 1, .max_sequences = 1, .max_batch_rows = 5});
  EXPECT_NEAR(one.seconds, 10.0 + 5.0 + 10.0 + 3.0 + 3 * 20.0 + 0.1 * (9 + 10 + 11), 1e-9);
  EXPECT_EQ(one.replicas[0].steps, 5);
  EXPECT_EQ(one.replicas[0].tokens, 4);
  EXPECT_EQ(one.replicas[0].samples, 1);
  EXPECT_EQ(one.idle_share(0), 0.0);
}

// The second attempt finds its prompt, but for one token: 1 + 1 steps, then 1 + 2.
TEST(Simulate, AttemptsFollowEachOther) {
  const StepTime time{.points = {{0, 1.0}}, .per_context_token = 0.0, .per_prompt_token = 100.0};
  const Simulation two = simulate_stage({{8, {2, 3}}}, time, {.replicas = 1, .max_sequences = 4});
  EXPECT_NEAR(two.seconds, 5.0 + 100.0 * (8 + 1), 1e-9);
  EXPECT_EQ(two.replicas[0].tokens, 5);
  EXPECT_EQ(two.replicas[0].samples, 1);
}

// Two replicas of one place each, a second a token. Split: {4, 1} and {1, 1}. Handed out: 4, and 1 + 1 + 1.
TEST(Simulate, HandingOutBeatsASplitByHand) {
  const std::vector<SimulatedSample> samples = of_lengths({4, 1, 1, 1});
  SimulationOptions options{.replicas = 2, .max_sequences = 1};
  options.hand_out = HandOut::fixed;
  const Simulation split = simulate_stage(samples, a_second_a_step(), options);
  EXPECT_EQ(split.seconds, 5.0);
  EXPECT_NEAR(split.idle_share(0), 0.0, 1e-12);
  EXPECT_NEAR(split.idle_share(1), 0.6, 1e-12);
  options.hand_out = HandOut::dynamic;
  const Simulation handed_out = simulate_stage(samples, a_second_a_step(), options);
  EXPECT_EQ(handed_out.seconds, 4.0);
  EXPECT_EQ(handed_out.replicas[0].samples, 1);
  EXPECT_EQ(handed_out.replicas[1].samples, 3);
  EXPECT_NEAR(handed_out.mean_idle_share(), 0.125, 1e-12);
  EXPECT_NEAR(handed_out.samples_per_second(), 1.0, 1e-12);
}

// One replica of 20 places takes 10, 5, 2, 1, 1 and 1 samples, a step each; all but the first take one step.
// With 19 of 20 it is over after the sixth, with all after the hundredth.
TEST(Simulate, StragglersAreCutOff) {
  std::vector<int64_t> lengths(20, 1);
  lengths[0] = 100;
  SimulationOptions options{.replicas = 1, .max_sequences = 20, .straggler_cut = 0.95};
  const Simulation cut = simulate_stage(of_lengths(lengths), a_second_a_step(), options);
  EXPECT_EQ(cut.needed, 19);
  EXPECT_EQ(cut.seconds, 6.0);
  EXPECT_EQ(cut.replicas[0].samples, 19);
  EXPECT_EQ(cut.replicas[0].tokens, 19 + 6);
  options.straggler_cut = 1.0;
  EXPECT_EQ(simulate_stage(of_lengths(lengths), a_second_a_step(), options).seconds, 100.0);
}

// A replica that is cut off sees it after the step it is in: 3 seconds a step against 5 in all.
TEST(Simulate, TheCutIsSeenAfterAStep) {
  const StepTime time{.points = {{0, 3.0}}, .per_context_token = 0.0, .per_prompt_token = 1.0};
  SimulationOptions options{.replicas = 2, .max_sequences = 1, .straggler_cut = 0.5};
  options.hand_out = HandOut::fixed;
  const Simulation cut = simulate_stage({{1, {9}}, {2, {1}}}, time, options);
  EXPECT_EQ(cut.replicas[1].busy, 5.0);
  EXPECT_EQ(cut.replicas[0].busy, 7.0);
  EXPECT_EQ(cut.replicas[0].steps, 2);
  EXPECT_EQ(cut.replicas[0].tokens, 2);
  EXPECT_EQ(cut.replicas[0].samples, 0);
}

TEST(Simulate, ReplicasWithoutSamplesAreIdle) {
  const Simulation many = simulate_stage(of_lengths({3, 3}), a_second_a_step(), {.replicas = 4});
  EXPECT_EQ(many.seconds, 3.0);
  EXPECT_NEAR(many.mean_idle_share(), 0.5, 1e-12);
}

std::vector<SimulatedSample> random_samples(uint64_t seed, int64_t count) {
  return draw_samples(
      {.mean = 40.0, .sigma = 0.8, .longest = 150, .acceptance = 0.6, .attempts = 4, .prompt = 7}, count,
      seed);
}

int64_t tokens_of(const SimulatedSample& sample) {
  return std::accumulate(sample.attempts.begin(), sample.attempts.end(), int64_t{0});
}

// Step after step, sequence after sequence, as the engine goes; for a stage without a cut.
std::vector<double> busy_step_by_step(const std::vector<SimulatedSample>& samples, const StepTime& time,
                                      const SimulationOptions& options) {
  struct Sequence {
    int64_t sample, attempt, prompt_left, generated;
  };
  struct Engine {
    std::vector<Sequence> sequences;  // first come, first served
    double now = 0.0;
    bool done = false;
  };
  std::vector<Engine> engines(static_cast<size_t>(options.replicas));
  int64_t next = 0;
  const auto total = std::ssize(samples);
  while (true) {
    Engine* first = nullptr;
    for (Engine& engine : engines) {
      if (!engine.done && (first == nullptr || engine.now < first->now)) first = &engine;
    }
    if (first == nullptr) break;
    std::vector<Sequence>& sequences = first->sequences;
    const int64_t room = options.max_sequences - std::ssize(sequences);
    if (room > 0 && next < total) {
      for (int64_t share = samples_to_take(total - next, options.replicas, room); share > 0 && next < total;
           --share, ++next)
        sequences.push_back({next, 0, samples[static_cast<size_t>(next)].prompt, 0});
    }
    if (sequences.empty()) {
      first->done = true;
      continue;
    }
    int64_t decoding = 0, contexts = 0, read = 0;
    for (const Sequence& sequence : sequences) {
      if (sequence.generated == 0) continue;
      ++decoding;
      contexts += samples[static_cast<size_t>(sequence.sample)].prompt + sequence.generated;
    }
    std::vector<Sequence> left, again;
    for (Sequence sequence : sequences) {
      const SimulatedSample& sample = samples[static_cast<size_t>(sequence.sample)];
      if (sequence.generated == 0) {
        const int64_t rows = std::min(sequence.prompt_left, options.max_batch_rows - decoding - read);
        read += rows;
        sequence.prompt_left -= rows;
      }
      if (sequence.prompt_left == 0) ++sequence.generated;
      if (sequence.generated < sample.attempts[static_cast<size_t>(sequence.attempt)]) {
        left.push_back(sequence);
      } else if (sequence.attempt + 1 < std::ssize(sample.attempts)) {
        again.push_back({sequence.sample, sequence.attempt + 1, 1, 0});
      }
    }
    left.insert(left.end(), again.begin(), again.end());
    sequences = left;
    first->now += time.of(decoding) + time.per_context_token * static_cast<double>(contexts) +
                  time.per_prompt_token * static_cast<double>(read);
  }
  std::vector<double> busy;
  for (const Engine& engine : engines) busy.push_back(engine.now);
  return busy;
}

TEST(Simulate, LeapsAreTheStepsOneByOne) {
  const StepTime time{
      .points = {{1, 1.0}, {8, 1.31}, {64, 5.1}}, .per_context_token = 0.00107, .per_prompt_token = 0.0213};
  for (const int replicas : {1, 3, 8}) {
    const std::vector<SimulatedSample> samples = random_samples(static_cast<uint64_t>(replicas), 150);
    const SimulationOptions options{.replicas = replicas, .max_sequences = 6, .max_batch_rows = 20};
    const Simulation leaps = simulate_stage(samples, time, options);
    const std::vector<double> steps = busy_step_by_step(samples, time, options);
    for (int replica = 0; replica < replicas; ++replica) {
      const auto r = static_cast<size_t>(replica);
      EXPECT_NEAR(leaps.replicas[r].busy, steps[r], 1e-9 * steps[r]) << replica << " of " << replicas;
    }
  }
}

TEST(Simulate, WorkIsConservedAndNobodyIsBusierThanTheStageIsLong) {
  const StepTime time{.points = {{0, 1.0}, {64, 2.0}}, .per_context_token = 1e-4, .per_prompt_token = 0.01};
  for (const int replicas : {1, 2, 5, 64, 1024}) {
    for (const double cut : {0.9, 1.0}) {
      for (const HandOut hand_out : {HandOut::dynamic, HandOut::fixed}) {
        const std::vector<SimulatedSample> samples = random_samples(11, 700);
        const Simulation stage = simulate_stage(
            samples, time,
            {.replicas = replicas, .max_sequences = 16, .straggler_cut = cut, .hand_out = hand_out});
        int64_t finished = 0, tokens = 0, all_tokens = 0;
        for (const SimulatedSample& sample : samples) all_tokens += tokens_of(sample);
        for (int replica = 0; replica < replicas; ++replica) {
          finished += stage.replicas[static_cast<size_t>(replica)].samples;
          tokens += stage.replicas[static_cast<size_t>(replica)].tokens;
          EXPECT_GE(stage.idle_share(replica), 0.0);
          EXPECT_LE(stage.idle_share(replica), 1.0);
        }
        EXPECT_EQ(stage.needed, cut == 1.0 ? 700 : 630);
        if (cut == 1.0) {
          EXPECT_EQ(finished, 700);
          EXPECT_EQ(tokens, all_tokens);
        } else {
          EXPECT_GE(finished, 630);
          EXPECT_LE(tokens, all_tokens);
        }
      }
    }
  }
}

// With one place a replica it is list scheduling, for which Graham (1966) bounds the time.
TEST(Simulate, HandingOutKeepsGrahamsBound) {
  for (const int replicas : {2, 7, 32}) {
    const std::vector<SimulatedSample> samples = random_samples(5, 300);
    int64_t all = 0, longest = 0;
    for (const SimulatedSample& sample : samples) {
      all += tokens_of(sample);
      longest = std::max(longest, tokens_of(sample));
    }
    const Simulation stage =
        simulate_stage(samples, {.points = {{0, 1.0}}}, {.replicas = replicas, .max_sequences = 1});
    // Prompts of 7 tokens cost nothing here, so a sample takes as many seconds as tokens.
    EXPECT_LE(stage.seconds, static_cast<double>(all) / replicas +
                                 static_cast<double>(longest) * (1.0 - 1.0 / replicas) + 1e-9);
    EXPECT_GE(stage.seconds, static_cast<double>(all) / replicas - 1e-9);
  }
}

TEST(SimulatedLengths, HaveTheMeanTheyWereAskedForAndStayWhateverTheCount) {
  const LengthDistribution lengths = parse_lengths("lognormal:1000,0.5", "--lengths");
  const std::vector<SimulatedSample> samples = draw_samples(lengths, 20000, 7);
  double sum = 0.0, logs = 0.0;
  for (const SimulatedSample& sample : samples) {
    ASSERT_EQ(sample.attempts.size(), 1U);
    sum += static_cast<double>(sample.attempts[0]);
    logs += std::log(static_cast<double>(sample.attempts[0]));
  }
  // The mean of 20,000 has a standard deviation of 0.38 %.
  EXPECT_NEAR(sum / 20000, 1000.0, 20.0);
  EXPECT_NEAR(logs / 20000, std::log(1000.0) - 0.125, 0.02);
  const std::vector<SimulatedSample> fewer = draw_samples(lengths, 10, 7);
  for (size_t i = 0; i < fewer.size(); ++i) EXPECT_EQ(fewer[i].attempts, samples[i].attempts);
  EXPECT_NE(draw_samples(lengths, 10, 8)[0].attempts, samples[0].attempts);
}

TEST(SimulatedLengths, AreCutAndAttemptsEnd) {
  const std::vector<SimulatedSample> samples =
      draw_samples({.mean = 100.0, .sigma = 2.0, .longest = 120, .acceptance = 0.01, .attempts = 3}, 500, 1);
  size_t most = 0;
  for (const SimulatedSample& sample : samples) {
    most = std::max(most, sample.attempts.size());
    for (const int64_t tokens : sample.attempts) {
      ASSERT_GE(tokens, 1);
      ASSERT_LE(tokens, 120);
    }
  }
  EXPECT_EQ(most, 3U);
}

TEST(SimulatedLengths, WhatIsNoDistributionIsTheUsersMistake) {
  for (const char* text : {"", "normal:1,2", "lognormal:", "lognormal:5", "lognormal:5,", "lognormal:5,x",
                           "lognormal:0,1", "lognormal:nan,1", "lognormal:5,-1", "lognormal:5,1,2"})
    EXPECT_THROW(parse_lengths(text, "--lengths"), InputError) << text;
}

// Samples 0 and 3 were accepted, 1 was given up, 2, the last that is missing, abandoned.
TEST(SimulatedLengths, OfAStage) {
  Table stage;
  stage.attributes["report"] =
      R"({"samples":4,"accepted":2,"given_up":1,"abandoned":1,"attempts":8,"tokens":100})";
  stage.add("sample", std::vector<int64_t>{0, 3});
  stage.add("attempts", std::vector<int64_t>{1, 3});
  stage.add("tokens", std::vector<int64_t>{30, 50});
  const std::vector<SimulatedSample> samples = samples_of_stage(stage, 12, "here");
  ASSERT_EQ(samples.size(), 4U);
  using Tokens = std::vector<int64_t>;
  EXPECT_EQ(samples[0].attempts, (Tokens{30}));
  EXPECT_EQ(samples[1].attempts, (Tokens{5, 5, 5, 5})) << "what the totals leave";
  EXPECT_EQ(samples[2].attempts, (Tokens{50})) << "as the costliest";
  EXPECT_EQ(samples[3].attempts, (Tokens{16, 17, 17}));
  for (const SimulatedSample& sample : samples) EXPECT_EQ(sample.prompt, 12);
  stage.attributes.clear();
  EXPECT_THROW(samples_of_stage(stage, 12, "here"), InputError);
}

}  // namespace
}  // namespace sl

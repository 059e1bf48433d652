#include "lengthen/simulate_input.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numbers>

#include "core/error.hpp"
#include "core/rng.hpp"

namespace sl {
namespace {

// As even as whole numbers allow, one at least.
std::vector<int64_t> spread_evenly(int64_t tokens, int64_t attempts) {
  std::vector<int64_t> each;
  for (int64_t i = 0; i < attempts; ++i)
    each.push_back(std::max<int64_t>(1, (i + 1) * tokens / attempts - i * tokens / attempts));
  return each;
}

}  // namespace

LengthDistribution parse_lengths(const std::string& text, const std::string& where) {
  const std::string name = "lognormal:";
  const auto refuse = [&] {
    throw InputError(fmt::format("'{}' is no distribution", text), where,
                     "give lognormal:MEAN,SIGMA, say lognormal:1000,0.5");
  };
  LengthDistribution lengths;
  if (!text.starts_with(name)) refuse();
  const char* const end = text.data() + text.size();
  const auto mean = std::from_chars(text.data() + name.size(), end, lengths.mean);
  if (mean.ec != std::errc() || mean.ptr == end || *mean.ptr != ',') refuse();
  const auto sigma = std::from_chars(mean.ptr + 1, end, lengths.sigma);
  if (sigma.ec != std::errc() || sigma.ptr != end) refuse();
  if (!(lengths.mean >= 1.0 && lengths.mean <= 1e9 && lengths.sigma >= 0.0 && lengths.sigma <= 10.0))
    refuse();
  return lengths;
}

std::vector<SimulatedSample> draw_samples(const LengthDistribution& lengths, int64_t count, uint64_t seed) {
  std::vector<SimulatedSample> samples(static_cast<size_t>(count));
  const double middle = std::log(lengths.mean) - lengths.sigma * lengths.sigma / 2.0;
  for (int64_t i = 0; i < count; ++i) {
    SimulatedSample& sample = samples[static_cast<size_t>(i)];
    sample.prompt = lengths.prompt;
    Random random({.seed = seed, .sample = i});
    do {
      const double radius = std::sqrt(-2.0 * std::log(1.0 - random.uniform()));
      const double normal = radius * std::cos(2.0 * std::numbers::pi * random.uniform());
      const double tokens = std::round(std::exp(middle + lengths.sigma * normal));
      sample.attempts.push_back(
          static_cast<int64_t>(std::clamp(tokens, 1.0, static_cast<double>(lengths.longest))));
    } while (random.uniform() >= lengths.acceptance && std::ssize(sample.attempts) < lengths.attempts);
  }
  return samples;
}

std::vector<SimulatedSample> samples_of_stage(const Table& stage, int64_t prompt, const std::string& where) {
  nlohmann::json report;
  if (const auto text = stage.attributes.find("report"); text != stage.attributes.end())
    report = nlohmann::json::parse(text->second, nullptr, /*allow_exceptions=*/false);
  const char* const keys[] = {"samples", "accepted", "given_up", "abandoned", "attempts", "tokens"};
  if (!report.is_object() || !std::ranges::all_of(keys, [&](const char* key) {
        return report.contains(key) && report[key].is_number_integer();
      })) {
    throw InputError("is no finished stage with its report", where, "give --stage initial or extended");
  }
  const auto total = [&](const char* key) { return report[key].get<int64_t>(); };
  const std::vector<int64_t>&numbers = stage.integers("sample"), &attempts = stage.integers("attempts"),
        &tokens = stage.integers("tokens");
  int64_t left_attempts = total("attempts"), left_tokens = total("tokens"), costliest = 1;
  std::map<int64_t, SimulatedSample> known;
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (attempts[i] < 1 || tokens[i] < 0)
      throw InputError("has a sample of no attempts", where, "run inspect --verify");
    known[numbers[i]] = {prompt, spread_evenly(tokens[i], attempts[i])};
    left_attempts -= attempts[i];
    left_tokens -= tokens[i];
    costliest = std::max(costliest, tokens[i]);
  }
  const int64_t given_up = std::max<int64_t>(1, total("given_up"));
  const SimulatedSample lost = {prompt, spread_evenly(std::max<int64_t>(1, left_tokens / given_up),
                                                      std::max<int64_t>(1, left_attempts / given_up))};
  std::vector<SimulatedSample> samples;
  int64_t missing = 0;
  for (int64_t number = 0; number < total("samples"); ++number) {
    if (const auto found = known.find(number); found != known.end()) {
      samples.push_back(found->second);
    } else if (missing++ < total("given_up")) {
      samples.push_back(lost);
    } else {
      samples.push_back({prompt, {costliest}});
    }
  }
  return samples;
}

}  // namespace sl

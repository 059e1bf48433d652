#include "lengthen/instruct.hpp"

#include <algorithm>
#include <cctype>

#include "text/rules.hpp"

namespace sl {
namespace {

bool is_bare_yes(Language language, std::string_view answer) {
  std::string word(trim(answer));
  if (language == Language::zh) return word == "是";
  std::transform(word.begin(), word.end(), word.begin(), [](unsigned char c) { return std::tolower(c); });
  return word == "yes";
}

Task<bool> suits_long_article(Sample& sample, std::string instruction) {
  const MethodOptions& method = sample.method();
  const bool chinese = method.language == Language::zh;
  Question question{.role = Role::base, .max_tokens = method.judge_tokens};
  question.user = sample.prompts().render("judge_instruction", {{"instruction", std::move(instruction)}});
  if (method.judge == Judge::choice) {
    co_return co_await sample.likelier_yes(std::move(question.user), chinese ? "是" : "Yes",
                                           chinese ? "否" : "No");
  }
  const Completion answer = co_await sample.ask(std::move(question));
  co_return is_bare_yes(method.language, answer.text);
}

// A list of writing tasks whose assistant turn holds two of the pool already; the base model writes the
// third.
Question third_of(Sample& sample, const std::vector<std::string>& pool) {
  Random random = sample.random();
  const auto size = static_cast<int64_t>(pool.size());
  const int64_t first = random.below(size);
  const int64_t second = (first + 1 + random.below(size - 1)) % size;  // distinct from the first
  Question question{.role = Role::base, .max_tokens = sample.method().instruction_tokens};
  question.user = sample.prompts().render("instruct_user", {});
  question.begun = sample.prompts().render("instruct_begun", {{"first", pool[static_cast<size_t>(first)]},
                                                              {"second", pool[static_cast<size_t>(second)]}});
  question.extra_stop = {sample.prompts().fourth_marker()};
  return question;
}

}  // namespace

Task<nlohmann::json> invent_instruction(Sample& sample, const std::vector<std::string>& pool) {
  const MethodOptions& method = sample.method();
  while (sample.try_again(method.instruction_attempts)) {
    const Completion third = co_await sample.ask(third_of(sample, pool));
    std::string instruction(trim(third.text));
    const int64_t words = count_words(instruction);
    if (words <= method.instruction_min_words || words >= method.instruction_max_words) {
      sample.reject("words");
      continue;
    }
    if (!co_await suits_long_article(sample, instruction)) {
      sample.reject("unsuitable");
      continue;
    }
    co_return sample.accepted("instruction", instruction);
  }
  co_return sample.given_up();
}

}  // namespace sl

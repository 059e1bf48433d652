#include "lengthen/extend.hpp"

#include "text/rules.hpp"

namespace sl {
namespace {

// One micro-iteration: the first half enriched gives the head; the whole enriched, begun with that head.
Task<Completion> extend_once(Sample& sample, const std::string& instruction, const std::string& text) {
  const auto enrich = [&](std::string part) {
    Question question{.role = Role::extender};
    question.user =
        sample.prompts().render("extend", {{"instruction", instruction}, {"text", std::move(part)}});
    return question;
  };
  const Completion enriched_half = co_await sample.ask(enrich(first_half(text)));
  const std::string head = first_two_thirds(enriched_half.text);
  Question whole = enrich(text);
  whole.begun = head;
  whole.watch = true;
  Completion longer = co_await sample.ask(std::move(whole));
  longer.text.insert(0, head);
  co_return longer;
}

}  // namespace

Task<nlohmann::json> extend(Sample& sample, const std::string& instruction, const std::string& initial) {
  const MethodOptions& method = sample.method();
  const double enough = method.extension_ratio * static_cast<double>(count_words(initial));
  while (sample.try_again(method.extension_attempts)) {
    std::string best = initial;
    for (int64_t micro = 0; micro < method.micro_iterations; ++micro) {
      Completion longer = co_await extend_once(sample, instruction, best);
      const Rejection rejection = accept(method.language, longer.text);
      if (rejection != Rejection::none) {
        sample.reject(rejection, longer.finish);
      } else if (count_words(longer.text) <= count_words(best)) {
        sample.reject("not_longer");
      } else {
        best = std::move(longer.text);
      }
    }
    if (static_cast<double>(count_words(best)) > enough) co_return sample.accepted("response", best);
    sample.reject("too_short");
  }
  co_return sample.given_up();
}

}  // namespace sl

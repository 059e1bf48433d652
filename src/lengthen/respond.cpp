#include "lengthen/respond.hpp"

#include "text/rules.hpp"

namespace sl {

Task<nlohmann::json> respond(Sample& sample, const std::string& instruction) {
  while (sample.try_again(sample.method().response_attempts)) {
    Question question{.role = Role::generator, .user = instruction, .watch = true};
    const Completion answer = co_await sample.ask(std::move(question));
    std::string response(trim(answer.text));
    const Rejection rejection = accept(sample.method().language, response);
    if (rejection == Rejection::none) co_return sample.accepted("response", response);
    sample.reject(rejection, answer.finish);
  }
  co_return sample.given_up();
}

}  // namespace sl

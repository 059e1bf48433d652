#include "lengthen/length_control.hpp"

#include "text/rules.hpp"

namespace sl {

std::string demand_text(const Prompts& prompts, Language language, const LengthDemand& demand) {
  const auto number = [&](int64_t n) { return demanded_number(n, demand, language); };
  switch (demand.type) {
    case DemandType::none:
      return "";
    case DemandType::about:
      return prompts.render("demand_about", {{"number", number(demand.low)}});
    case DemandType::range:
      return prompts.render("demand_range", {{"low", number(demand.low)}, {"high", number(demand.high)}});
    case DemandType::above:
      return prompts.render("demand_above", {{"number", number(demand.low)}});
    case DemandType::below:
      return prompts.render("demand_below", {{"number", number(demand.high)}});
  }
  throw BugError("unknown type of demand");
}

std::string with_demand_appended(const Prompts& prompts, Language language, const std::string& instruction,
                                 const LengthDemand& demand) {
  return prompts.render("demand_appended",
                        {{"instruction", instruction}, {"demand", demand_text(prompts, language, demand)}});
}

Task<nlohmann::json> weave(Sample& sample, const Weaving& weaving, const Prompts& prompts,
                           const WeaveOptions& options) {
  while (sample.try_again(options.attempts)) {
    Question question{.role = Role::base, .max_tokens = options.tokens};
    question.user = prompts.render("length_control",
                                   {{"instruction", weaving.instruction},
                                    {"demand", demand_text(prompts, weaving.language, weaving.demand)}});
    const Completion answer = co_await sample.ask(std::move(question));
    std::string woven(trim(answer.text));
    const WeavingFault fault = check_woven(weaving.instruction, woven, weaving.demand, options.kept);
    if (fault == WeavingFault::none) co_return sample.accepted("instruction", woven);
    sample.reject(weaving_fault_name(fault));
  }
  co_return sample.given_up();
}

}  // namespace sl

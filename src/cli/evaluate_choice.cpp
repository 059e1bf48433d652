// evaluate choice: questions with choices, answered by the likelihood of each choice.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <numeric>

#include "cli/commands.hpp"
#include "cli/rows.hpp"
#include "cli/scoring.hpp"

namespace sl {
namespace {

using nlohmann::json;

constexpr size_t fewest_choices = 2, most_choices = 26;

struct ChoiceOptions {
  ModelChoice model;
  std::string data, output = "-", rows;
  bool raw = false;
  int64_t pass_tokens = default_pass_tokens;
};

struct ChoiceQuestion {
  std::string text;
  std::vector<std::string> choices;
  size_t answer = 0;
};

ChoiceQuestion read_question(const JsonRow& row, const std::string& path) {
  const std::string where = place_of_row(row, path);
  ChoiceQuestion question;
  question.text = required_string(row, "question", path);
  const json choices = row.value.value("choices", json());
  if (!choices.is_array() || choices.size() < fewest_choices || choices.size() > most_choices) {
    throw InputError(fmt::format("'choices' is not a list of {} to {} texts", fewest_choices, most_choices),
                     where, "give the choices as such a list");
  }
  for (const json& choice : choices) {
    if (!choice.is_string() || choice.get_ref<const std::string&>().empty())
      throw InputError(fmt::format("its choice {} is no text, or empty", choice.dump()), where, "correct it");
    const std::string text = choice.get<std::string>();
    if (std::find(question.choices.begin(), question.choices.end(), text) != question.choices.end())
      throw InputError(fmt::format("its choice {} is there twice", choice.dump()), where, "remove one");
    question.choices.push_back(text);
  }
  const json answer = row.value.value("answer", json());
  const auto count = question.choices.size();
  if (answer.is_string()) {
    const auto found = std::find(question.choices.begin(), question.choices.end(), answer.get<std::string>());
    question.answer = static_cast<size_t>(found - question.choices.begin());
  } else if (answer.is_number_integer() && answer >= 0 && answer < count) {
    question.answer = answer.get<size_t>();
  } else {
    question.answer = count;
  }
  if (question.answer == count) {
    throw InputError(fmt::format("its answer {} is neither one of its choices nor the number of one, from 0",
                                 answer.dump()),
                     where, "correct it");
  }
  return question;
}

// The question's tokens, then a choice's: without chat turns the choice follows a space.
struct ChoiceTokens {
  std::vector<TrainingRow> rows;  // one a choice, in order
  std::vector<size_t> prompts;    // tokens of its question
};

void append(ChoiceTokens& tokens, const ChoiceQuestion& question, const ModelSource& source, bool raw,
            const std::string& where) {
  const Message message{"user", question.text};
  const std::vector<int32_t> prompt = raw ? source.tokenizer->encode(question.text, /*add_special=*/true)
                                          : source.chat->encode(std::span(&message, 1), ChatOpen::reply);
  if (prompt.empty()) throw InputError("its question has no tokens", where, "give it at least one character");
  for (const std::string& choice : question.choices) {
    const std::vector<int32_t> continuation =
        source.tokenizer->encode(raw ? " " + choice : choice, /*add_special=*/false, /*parse_special=*/raw);
    if (continuation.empty())
      throw InputError(fmt::format("its choice '{}' has no tokens", choice), where,
                       "give it some other text");
    TrainingRow row;
    row.tokens = prompt;
    row.tokens.insert(row.tokens.end(), continuation.begin(), continuation.end());
    const auto count = static_cast<int64_t>(row.tokens.size());
    if (count > source.config.max_positions) {
      throw InputError(fmt::format("its {} tokens are more than the model's {} positions", count,
                                   source.config.max_positions),
                       where, "shorten it");
    }
    row.mask.assign(row.tokens.size(), 1);
    tokens.rows.push_back(std::move(row));
    tokens.prompts.push_back(prompt.size());
  }
}

// The first of the largest.
size_t best_of(const std::vector<double>& values) {
  return static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

json evaluate(std::vector<JsonRow>& rows, const std::vector<ChoiceQuestion>& questions,
              const ChoiceTokens& tokens, const std::vector<std::vector<double>>& logs) {
  int64_t right = 0, right_normalized = 0;
  double chance = 0.0;
  size_t at = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    std::vector<double> sums, means;
    std::vector<int64_t> counts;
    for (size_t c = 0; c < questions[i].choices.size(); ++c, ++at) {
      // The log-probability at place t is that of token t + 1.
      const auto begin = logs[at].begin() + static_cast<int64_t>(tokens.prompts[at]) - 1;
      counts.push_back(logs[at].end() - begin);
      sums.push_back(std::accumulate(begin, logs[at].end(), 0.0));
      means.push_back(sums.back() / static_cast<double>(counts.back()));
    }
    const size_t chosen = best_of(sums), chosen_normalized = best_of(means);
    right += chosen == questions[i].answer ? 1 : 0;
    right_normalized += chosen_normalized == questions[i].answer ? 1 : 0;
    chance += 1.0 / static_cast<double>(questions[i].choices.size());
    rows[i].value.update({{"logprobs", sums},
                          {"token_counts", counts},
                          {"chosen", chosen},
                          {"chosen_normalized", chosen_normalized},
                          {"correct", chosen == questions[i].answer},
                          {"correct_normalized", chosen_normalized == questions[i].answer}});
  }
  const auto count = static_cast<double>(rows.size());
  return {{"rows", rows.size()},
          {"accuracy", static_cast<double>(right) / count},
          {"accuracy_normalized", static_cast<double>(right_normalized) / count},
          {"chance", chance / count}};
}

}  // namespace

int evaluate_choice_command(const Arguments& arguments) {
  ChoiceOptions options;
  CommandLine line("evaluate choice",
                   "How often a model finds the right one of several choices the likeliest answer.");
  line.group("Files");
  line.add("data", options.data,
           "rows {\"question\", \"choices\", \"answer\"}: 2 to 26 texts, and the right one or its number "
           "from 0")
      .value_name("FILE")
      .required();
  line.add("output", options.output, "one line of JSON; - is standard output").value_name("FILE");
  line.add("rows", options.rows, "the rows with \"logprobs\" and \"chosen\" of each").value_name("FILE");
  line.add("raw", options.raw, "the question as it is, a space, and the choice; without chat turns");
  add_model_options(line, options.model);
  add_pass_option(line, options.pass_tokens);
  line.note(
      "The question is the user's turn, a choice the beginning of the answer (its end of turn does not "
      "count). logprobs are the sums of the natural logarithms of the probabilities of a choice's tokens; "
      "accuracy takes the largest sum, accuracy_normalized the largest sum divided by the number of tokens "
      "(token_counts); of equal ones the first. chance is what guessing gives.");
  line.example("selflengthen evaluate choice --model MODEL --data questions.jsonl");
  if (!line.parse(arguments)) return 0;
  resolve_device(options.model.device);
  RowOutput::check(options.output);
  if (!options.rows.empty()) RowOutput::check(options.rows);
  std::vector<JsonRow> rows = read_json_lines(options.data);
  std::vector<ChoiceQuestion> questions;
  questions.reserve(rows.size());
  for (const JsonRow& row : rows) questions.push_back(read_question(row, options.data));

  Ranks ranks = start_ranks(options.model);
  ModelSource source = open_model(options.model.model);
  ChoiceTokens tokens;
  for (size_t i = 0; i < rows.size(); ++i)
    append(tokens, questions[i], source, options.raw, place_of_row(rows[i], options.data));
  const auto logs =
      log_probabilities(ranks, options.model, std::move(source), tokens.rows, options.pass_tokens);
  if (!ranks.first()) return 0;
  const json report = evaluate(rows, questions, tokens, logs);
  if (!options.rows.empty()) {
    RowOutput file(options.rows);
    for (const JsonRow& row : rows) file.write(row.value);
    file.close();
  }
  RowOutput output(options.output);
  output.write(report);
  output.close();
  return 0;
}

}  // namespace sl

#include "cli/longen_evaluation.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <vector>

#include "cli/answerer.hpp"
#include "cli/kept_rows.hpp"
#include "cli/rows.hpp"
#include "evaluate/judge.hpp"
#include "evaluate/longen.hpp"
#include "io/checksum.hpp"
#include "io/durable.hpp"
#include "text/rules.hpp"

namespace sl {
namespace {

using nlohmann::json;

constexpr const char* answer_kind = "answer";
constexpr const char* judge_kind = "judge";
constexpr int32_t judge_stage = 1000;  // of draws; apart from the stages of the method

// What decides an adapter's answers.
std::string mark_of_adapter(const std::string& folder) {
  const auto weights = read_if_there(folder + "/adapter_model.safetensors");
  return folder.empty() || !weights ? "" : checksum_digits(*weights);
}

// The judge's prompt of a folder; the built-in one where the folder lacks it, as one that was made for runs.
Prompts load_judge_prompts(const std::string& folder, Language language) {
  namespace fs = std::filesystem;
  std::error_code error;
  const std::string name = judge_prompts().front().name + ".txt";
  const bool lacks = fs::is_directory(folder, error) &&
                     !fs::exists(fs::path(folder) / language_name(language) / name, error);
  return Prompts::load(lacks ? built_in_input_folder() + "/prompts" : folder, language, judge_prompts());
}

Task<json> answer_query(Engine& engine, const Request& request) {
  const Completion completion = co_await engine.complete(request);
  co_return json{{"response", completion.text}, {"finish_reason", finish_reason_name(completion.finish)}};
}

Task<json> judge_one(Engine& engine, const Request& request, RandomAddress address, int64_t attempts) {
  json record = co_await judge(engine, request, address, attempts);
  co_return json{{judge_kind, std::move(record)}};
}

// One kind of record for every row: those that were kept, and requests for the others.
struct Part {
  std::string kind;
  std::vector<std::string> marks;    // of each row
  std::vector<json> records;         // of each row; null: to be made
  std::map<int64_t, Request> asked;  // of those
};

class Evaluation {
 public:
  explicit Evaluation(const LonGenChoice& choice) : choice_(choice), rows_(read_json_lines(choice.data)) {
    const bool judged = choice.judge.asked || !choice.judge.to.empty() || !choice.judge.from.empty();
    for (const JsonRow& row : rows_) {
      score_longen(row, "", choice.data);  // what can be wrong with it is said before any work
      if (answers() || judged) required_string(row, "query", choice.data);
      if (!answers()) required_string(row, "response", choice.data);
    }
    name_rows();
    if (!choice.judge.from.empty()) read_judge_answers();
    if (!judged) return;
    for (const Language language : {Language::en, Language::zh})
      prompts_.emplace(language, load_judge_prompts(choice.judge.prompts, language));
  }

  void run() {
    if (answers() || choice_.judge.asked) ranks_.emplace(start_ranks(choice_.model));
    open_kept_rows();
    answer_part();
    if (choice_.judge.asked) judge_part();
    if (!first()) return;
    if (!choice_.judge.to.empty()) write_judge_requests();
    write_results();
  }

 private:
  bool answers() const { return !choice_.model.model.empty(); }
  bool first() const { return !ranks_ || ranks_->first(); }
  size_t count() const { return rows_.size(); }
  std::string text_of(size_t row, const char* key) const {
    const json& value = rows_[row].value;
    return value.contains(key) && value[key].is_string() ? value[key].get<std::string>() : "";
  }
  const std::string& response(size_t row) const {
    return answer_.records[row].at("response").get_ref<const std::string&>();
  }

  // What rank 0 has, on all ranks.
  json from_first(json value) {
    if (!ranks_) return value;
    return json::parse(ranks_->groups.world->all_gather(first() ? to_line(value) : "null").front());
  }

  // A row's own id, or its number.
  void name_rows() {
    std::map<std::string, int64_t> seen;
    for (const JsonRow& row : rows_) {
      const bool named =
          row.value.contains("id") && (row.value["id"].is_string() || row.value["id"].is_number_integer());
      ids_.push_back(named ? row.value["id"] : json(ids_.size()));
      const auto [other, fresh] = seen.emplace(ids_.back().dump(), row.line);
      const bool used = !choice_.judge.to.empty() || !choice_.judge.from.empty();
      if (!fresh && used) {
        throw InputError(fmt::format("its id {} is that of line {} too", ids_.back().dump(), other->second),
                         place_of_row(row, choice_.data), "give every row an id of its own");
      }
    }
  }

  void read_judge_answers() {
    const std::string& path = choice_.judge.from;
    std::map<std::string, size_t> row_of;
    for (size_t i = 0; i < count(); ++i) row_of[ids_[i].dump()] = i;
    for (const JsonRow& row : read_json_lines(path)) {
      const std::string answer = required_string(row, "answer", path);
      const std::string where = place_of_row(row, path);
      const auto found = row_of.find(row.value.value("id", json()).dump());
      if (found == row_of.end()) {
        throw InputError(
            fmt::format("its id {} is no row's of {}", row.value.value("id", json()).dump(), choice_.data),
            where, "give answers to these rows, with the ids of --judge-export");
      }
      if (!judge_answers_.emplace(found->second, answer).second)
        throw InputError("answers a row a second time", where, "keep one of the answers");
    }
  }

  void open_kept_rows() {
    const KeptRows::Kinds kinds = {{answer_kind, {"response", "finish_reason"}}, {judge_kind, {judge_kind}}};
    json known;
    if (first()) known = KeptRows::read(choice_.rows, static_cast<int64_t>(count()), kinds);
    kept_.emplace(choice_.rows, from_first(std::move(known)), ranks_ ? ranks_->groups.place.replica : 0);
  }

  void take_kept(Part& part) const {
    part.records.assign(count(), json());
    for (size_t i = 0; i < count(); ++i)
      part.records[i] = kept_->find(part.kind, static_cast<int64_t>(i), part.marks[i]);
  }

  // Makes what is missing by the model at hand, with a flow for each request, and lets every rank have all of
  // it.
  template <typename FlowOf>
  void complete(Part& part, const FlowOf& flow_of) {
    if (!part.asked.empty()) {
      std::vector<int64_t> pending;
      std::vector<Request> requests;
      for (const auto& [row, request] : part.asked) {
        pending.push_back(row);
        requests.push_back(request);
      }
      const int64_t longest = longest_sequence(requests, model_->source().config);
      Answerer answerer(*model_, choice_.engine, *ranks_, longest);
      const auto made = answerer.answer(
          part.kind, pending,
          [&](int64_t row) { return flow_of(answerer.engine(), part.asked.at(row), row); },
          [&](int64_t row, const json& record) {
            kept_->keep(part.kind, row, part.marks[static_cast<size_t>(row)], record);
          });
      for (const auto& [row, record] : made) part.records[static_cast<size_t>(row)] = record;
    }
    part.records = from_first(part.records).get<std::vector<json>>();
  }

  void answer_part() {
    answer_.kind = answer_kind;
    if (!answers()) {
      for (const JsonRow& row : rows_) {
        answer_.marks.push_back(mark_of({answer_kind, "given", row.value}));
        answer_.records.push_back({{"response", row.value["response"]}});
      }
      refuse_other_rows();
      return;
    }
    model_.emplace(choice_.model);
    const ModelSource& source = model_->source();
    const std::string adapter = mark_of_adapter(choice_.model.adapter);
    for (size_t i = 0; i < count(); ++i)
      answer_.marks.push_back(
          mark_of({answer_kind, source.fingerprint, adapter, choice_.sampled, i, rows_[i].value}));
    refuse_other_rows();
    take_kept(answer_);
    for (size_t i = 0; i < count(); ++i) {
      if (!answer_.records[i].is_null()) continue;
      Request& request = answer_.asked[static_cast<int64_t>(i)];
      const Message query{"user", text_of(i, "query")};
      request.prompt = source.chat->encode(std::span(&query, 1), ChatOpen::reply);
      check_prompt(request.prompt, source.config, place_of_row(rows_[i], choice_.data));
      request.sampling = choice_.sampling;
      request.stream = stream_of({.seed = choice_.seed, .sample = static_cast<int64_t>(i)});  // as generate
      request.end_tokens = source.end_tokens;
      request.adapter = choice_.model.adapter.empty() ? -1 : 0;
    }
    complete(answer_,
             [](Engine& engine, const Request& request, int64_t) { return answer_query(engine, request); });
  }

  // Rows of another evaluation are not thrown away without a word.
  void refuse_other_rows() const {
    for (size_t i = 0; i < count(); ++i) {
      if (!kept_->of_another(answer_kind, static_cast<int64_t>(i), answer_.marks[i])) continue;
      throw InputError(fmt::format("row {} there is of another model, other options or other data", i),
                       choice_.rows, "give those again, or another --rows");
    }
  }

  void judge_part() {
    const JudgeChoice& chosen = choice_.judge;
    // The model that answered judges with the weights that are there, its adapter off; another takes its
    // place.
    if (!model_ || chosen.model != choice_.model.model) {
      ModelChoice model = choice_.model;
      model.model = chosen.model;
      model.adapter.clear();
      model_.emplace(model);
    }
    const ModelSource& source = model_->source();
    judge_.kind = judge_kind;
    for (size_t i = 0; i < count(); ++i) {
      judge_.marks.push_back(mark_of({judge_kind, source.fingerprint, chosen.attempts, chosen.tokens,
                                      chosen.temperature, choice_.seed, i, question(i)}));
    }
    take_kept(judge_);
    for (size_t i = 0; i < count(); ++i) {
      if (!judge_.records[i].is_null()) continue;
      Request request;
      const Message message{"user", question(i)};
      request.prompt = source.chat->encode(std::span(&message, 1), ChatOpen::reply);
      // The published decoding, less what is against JSON, which says the same words again and again.
      request.sampling.temperature = chosen.temperature;
      request.sampling.repetition_penalty = 1.0F;
      request.sampling.stop.clear();
      request.sampling.max_tokens = chosen.tokens;
      request.end_tokens = source.end_tokens;
      if (static_cast<int64_t>(request.prompt.size()) + chosen.tokens > source.config.max_positions) {
        judge_.records[i] = {{judge_kind, not_judged("too_long")}};
      } else {
        judge_.asked.emplace(static_cast<int64_t>(i), std::move(request));
      }
    }
    complete(judge_, [&](Engine& engine, const Request& request, int64_t row) {
      return judge_one(engine, request, {.seed = choice_.seed, .stage = judge_stage, .sample = row},
                       chosen.attempts);
    });
  }

  std::string question(size_t row) const {
    const std::string query = text_of(row, "query"), named = text_of(row, "language");
    const bool known = named == language_name(Language::en) || named == language_name(Language::zh);
    const Language language = known ? parse_language(named) : detect_language(query);
    return judge_question(prompts_.at(language), query, response(row));
  }

  void write_judge_requests() const {
    RowOutput output(choice_.judge.to);
    for (size_t i = 0; i < count(); ++i) {
      output.write(
          {{"id", ids_[i]}, {"messages", json::array({{{"role", "user"}, {"content", question(i)}}})}});
    }
    output.close();
  }

  // A row's judgement, by whichever judge there is; null without one.
  json judgement(size_t row) const {
    if (choice_.judge.asked) return judge_.records[row].at(judge_kind);
    if (choice_.judge.from.empty()) return nullptr;
    const auto found = judge_answers_.find(row);
    return found == judge_answers_.end() ? not_judged("missing") : judge_record({found->second});
  }

  void write_results() const {
    const std::string& data = choice_.data;
    std::vector<LonGenScore> scores;
    std::vector<json> judgements;
    std::vector<JudgedRow> judged;
    std::vector<std::optional<double>> quality;
    std::map<std::string, int64_t> finishes;
    for (size_t i = 0; i < count(); ++i) {
      scores.push_back(score_longen(rows_[i], response(i), data));
      judgements.push_back(judgement(i));
      if (answers()) ++finishes[answer_.records[i].at("finish_reason").get<std::string>()];
    }
    const bool has_judge = !judgements.front().is_null();
    for (size_t i = 0; has_judge && i < count(); ++i) {
      judged.push_back({scores[i].language, scores[i].range, std::string(length_type_name(scores[i].type)),
                        &judgements[i]});
      quality.push_back(quality_of(judgements[i]));
    }
    json report = longen_report(scores);
    if (answers()) report["finish_reasons"] = finishes;
    if (has_judge) report["judge"] = judge_report(judged);
    if (!choice_.rows.empty()) write_rows(scores, judgements);
    RowOutput output(choice_.output);
    output.write(report);
    output.close();
    write_table(longen_table(scores, quality));
  }

  void write_rows(const std::vector<LonGenScore>& scores, const std::vector<json>& judgements) const {
    RowOutput output(choice_.rows);
    for (size_t i = 0; i < count(); ++i) {
      json row = rows_[i].value;
      KeptRows::add(row, answer_kind, answer_.marks[i], answer_.records[i]);
      row["words"] = scores[i].words;
      row["score"] = scores[i].score;
      if (choice_.judge.asked) {
        KeptRows::add(row, judge_kind, judge_.marks[i], judge_.records[i]);
      } else if (!judgements[i].is_null()) {
        row[judge_kind] = judgements[i];
      }
      output.write(row);
    }
    output.close();
    KeptRows::remove_journals(choice_.rows);
  }

  void write_table(const std::string& table) const {
    if (choice_.table.empty()) {
      fmt::print(stderr, "{}", table);
    } else if (choice_.table == "-") {
      fmt::print("{}", table);
    } else {
      write_atomically(choice_.table, table);
    }
  }

  const LonGenChoice& choice_;
  std::vector<JsonRow> rows_;
  std::vector<json> ids_;
  std::map<size_t, std::string> judge_answers_;  // by row
  std::map<Language, Prompts> prompts_;          // none where nothing is judged
  std::optional<Ranks> ranks_;                   // none where no model is asked
  std::optional<KeptRows> kept_;
  std::optional<AnsweringModel> model_;  // that answers, then the one that judges
  Part answer_, judge_;
};

}  // namespace

void evaluate_longen(const LonGenChoice& choice) { Evaluation(choice).run(); }

}  // namespace sl

#include "lengthen/sample.hpp"

#include <algorithm>
#include <cctype>

#include "core/error.hpp"

namespace sl {
namespace {

// The first tokens of the ways to write a word at the start of an answer.
std::vector<int32_t> first_tokens(const Tokenizer& tokenizer, const std::string& word) {
  std::string lower = word;
  std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
  std::vector<int32_t> tokens;
  for (const std::string& form : {word, lower, " " + word, " " + lower}) {
    const int32_t token = tokenizer.encode(form).front();
    // A lone space begins many words.
    if (tokenizer.token_bytes(token) != " " &&
        std::find(tokens.begin(), tokens.end(), token) == tokens.end()) {
      tokens.push_back(token);
    }
  }
  return tokens;
}

}  // namespace

std::string_view stage_name(StageId stage) {
  switch (stage) {
    case StageId::instructions:
      return "instructions";
    case StageId::initial:
      return "initial";
    case StageId::extended:
      return "extended";
    case StageId::training_sets:
      return "training_sets";
    case StageId::training:
      return "training";
    case StageId::collection:
      return "collection";
    case StageId::length_control:
      return "length_control";
  }
  throw BugError("unknown stage");
}

RandomAddress draw_address(const MethodOptions& method, int64_t iteration, StageId stage, int64_t sample,
                           int32_t turn) {
  // Attempt -1: no attempt of the sample draws from this stream.
  return {method.seed, static_cast<int32_t>(iteration), static_cast<int32_t>(stage), sample, -1, turn};
}

Sample::Sample(Session& session, Engine& engine, int64_t iteration, StageId stage, int64_t index)
    : session_(session), engine_(engine), iteration_(iteration), stage_(stage), index_(index) {}

bool Sample::try_again(int64_t limit) {
  if (attempt_ >= limit) return false;
  ++attempt_;
  turn_ = 0;
  return true;
}

RandomAddress Sample::next_address() {
  return {session_.method.seed,           static_cast<int32_t>(iteration_),
          static_cast<int32_t>(stage_),   index_,
          static_cast<int32_t>(attempt_), ++turn_};
}

Random Sample::random() const {
  // Turn 0: questions of an attempt count theirs from 1.
  return Random({session_.method.seed, static_cast<int32_t>(iteration_), static_cast<int32_t>(stage_), index_,
                 static_cast<int32_t>(attempt_), 0});
}

Task<Completion> Sample::ask(Question question) {
  const Chat& chat = session_.model.chat();
  std::vector<Message> turns(1);
  turns[0] = {"user", question.user};
  const bool begun = !question.begun.empty();
  if (begun) turns.push_back({"assistant", question.begun});

  Request request;
  request.prompt = chat.encode(turns, begun ? ChatOpen::begun : ChatOpen::reply);
  const bool adapted = iteration_ >= session_.first_adapted;
  request.adapter = adapted ? static_cast<int32_t>(question.role) : -1;
  request.sampling = session_.method.sampling;
  if (question.max_tokens > 0) request.sampling.max_tokens = question.max_tokens;
  request.sampling.stop.insert(request.sampling.stop.end(), question.extra_stop.begin(),
                               question.extra_stop.end());
  request.stream = stream_of(next_address());
  request.end_tokens = session_.model.source().end_tokens;
  if (question.watch) {
    request.watch = session_.method.language;
    request.watched_prefix = question.begun;
  }
  Completion completion = co_await engine_.complete(std::move(request));
  tokens_ += static_cast<int64_t>(completion.tokens.size());
  co_return completion;
}

void Sample::reject(Rejection rejection, FinishReason finish) {
  const bool no_room = finish == FinishReason::length || finish == FinishReason::context;
  if (finish == FinishReason::hopeless) return reject(rejection_name(Rejection::repetition));
  reject(no_room && rejection == Rejection::ending ? "cut_off" : rejection_name(rejection));
}

Task<bool> Sample::likelier_yes(std::string user, std::string yes, std::string no) {
  std::vector<Message> turns(1);
  turns[0] = {"user", std::move(user)};
  Request request;
  request.prompt = session_.model.chat().encode(turns, ChatOpen::reply);
  request.sampling.max_tokens = 1;
  request.choices = {first_tokens(session_.model.tokenizer(), yes),
                     first_tokens(session_.model.tokenizer(), no)};
  const Completion completion = co_await engine_.complete(std::move(request));
  tokens_ += 1;
  co_return completion.choice == 0;
}

nlohmann::json Sample::record(std::string_view status) const {
  return {{"sample", index_},
          {"status", status},
          {"attempts", attempt_},
          {"tokens", tokens_},
          {"rejected", rejected_}};
}

nlohmann::json Sample::accepted(const char* field, const std::string& text) const {
  nlohmann::json success = record("accepted");
  success[field] = text;
  return success;
}

nlohmann::json Sample::given_up() const { return record("given_up"); }

}  // namespace sl

#include "lengthen/rollouts.hpp"

namespace sl {

Rollouts::Rollouts(Session& session, int64_t number, const std::vector<std::string>& adapters)
    : options_{session.limits.max_batch_rows, session.limits.max_sequences, session.limits.max_positions},
      model_(session.model.transformer(), options_, session.limits.pages, session.limits.tokens_per_page),
      engine_(model_, session.model.tokenizer(), options_) {
  if (!adapters.empty()) serve(session, adapters);
  if (!session.first()) return;
  session.folder.append_metrics({{session.folder.part(), number},
                                 {"stage", "rollouts begin"},
                                 {"seconds", whole_.seconds()},
                                 {"adapter_seconds", adapter_seconds_}});
}

void Rollouts::serve(Session& session, const std::vector<std::string>& folders) {
  std::vector<Adapter> adapters;
  for (const std::string& folder : folders) {
    check_saved_adapter(folder);
    adapters.push_back(session.model.adapter_from(folder));
  }
  std::vector<const Adapter*> served;
  for (const Adapter& adapter : adapters) served.push_back(&adapter);
  const Stopwatch watch;
  model_.set_adapters(served);
  adapter_seconds_ = watch.seconds();
}

}  // namespace sl

#include "lengthen/train_roles.hpp"

#include <filesystem>
#include <functional>

#include "core/activity.hpp"
#include "core/log.hpp"
#include "lengthen/sample.hpp"
#include "train/training_checkpoint.hpp"

namespace sl {
namespace {

std::vector<TrainingRow> training_rows(const Session& session, const Table& pairs) {
  std::vector<TrainingRow> rows;
  for (size_t i = 0; i < static_cast<size_t>(pairs.rows()); ++i) {
    const std::vector<Message> turns = {{"user", pairs.texts("user")[i]},
                                        {"assistant", pairs.texts("assistant")[i]}};
    TrainingTokens encoded = session.model.chat().encode_training(turns);
    rows.push_back({std::move(encoded.tokens), std::move(encoded.mask)});
    activity().progress();
  }
  return rows;
}

// What rank 0 sees: all ranks must agree, also on a slow shared file system.
bool for_all(const Session& session, const std::function<bool()>& sees) {
  int64_t there = session.first() && sees() ? 1 : 0;
  session.groups.world->broadcast(std::as_writable_bytes(std::span(&there, 1)), 0);
  return there != 0;
}

Adapter starting_adapter(const Session& session, int64_t iteration, Role role) {
  const std::string name(role_name(role));
  if (iteration > 1) {
    check_saved_adapter(session.folder.adapter(iteration - 1, name));
    return session.model.exact_adapter_from(session.folder.adapter(iteration - 1, name));
  }
  Adapter fresh(session.model.config(), session.model.shard(), session.method.training.lora,
                session.model.transformer().context.device, "adapter");
  initialise(fresh, stream_of(draw_address(session.method, iteration, StageId::training,
                                           static_cast<int64_t>(role))));
  return fresh;
}

}  // namespace

void train_role(Session& session, int64_t iteration, Role role, const Table& pairs) {
  activity().stage(role == Role::generator ? "training generator" : "training extender", iteration);
  const std::string name(role_name(role));
  const std::string folder = session.folder.adapter(iteration, name);
  const std::string checkpoint_path = session.folder.checkpoint(iteration, name);
  const auto finished = [&] { return std::filesystem::exists(folder + "/adapter_config.json"); };
  if (for_all(session, finished)) {                           // written last: the adapter is whole
    if (session.first()) remove_checkpoint(checkpoint_path);  // left by a run killed before it could
    return;
  }

  const Stopwatch before_steps;
  Adapter adapter = starting_adapter(session, iteration, role);
  TrainingOptions options = session.method.training;
  options.seed =
      stream_of(draw_address(session.method, iteration, StageId::training, static_cast<int64_t>(role), 1));
  Trainer trainer(session.model.transformer(), {.adapter = &adapter}, training_rows(session, pairs), options,
                  *session.groups.data);
  TrainingCheckpoint checkpoint(trainer, checkpoint_path, *session.groups.world);
  checkpoint.resume();
  if (session.first()) {
    session.folder.append_metrics({{"iteration", iteration},
                                   {"stage", "training begins"},
                                   {"role", name},
                                   {"seconds", before_steps.seconds()}});
  }

  while (trainer.state().step < trainer.total_steps()) {
    if (session.stop_agreed()) {
      checkpoint.finish();
      throw Stopped{};
    }
    trainer.step();
    const StepRecord& step = trainer.last();
    if (session.first()) {
      session.folder.append_metrics({{"iteration", iteration},
                                     {"stage", "training"},
                                     {"role", name},
                                     {"step", step.step},
                                     {"epoch", step.epoch},
                                     {"loss", step.loss},
                                     {"learning_rate", step.learning_rate},
                                     {"grad_norm", step.grad_norm},
                                     {"tokens", step.tokens},
                                     {"tokens_per_second", step.tokens_per_second},
                                     {"tflops", step.tflops},
                                     {"skipped", step.skipped}});
    }
    session.progress.update_training(name, iteration, step.step, trainer.total_steps(), step.loss,
                                     step.tokens_per_second);
    checkpoint.poll();
    if (options.checkpoint_every > 0 && step.step % options.checkpoint_every == 0) checkpoint.save();
  }
  save_adapter(adapter, folder, session.model.source().path, session.replica() == 0, *session.groups.tensor);
  session.groups.world->barrier();
  checkpoint.remove();
  session.progress.finish();
  if (session.first()) {
    spdlog::info("iteration {}: {} trained for {} steps, last loss {:.4f}", iteration, name,
                 trainer.state().step, trainer.last().loss);
  }
}

}  // namespace sl

#include "core/log.hpp"

#include <fmt/format.h>
#include <spdlog/sinks/stdout_sinks.h>

namespace sl {

void start_log(int rank, int ranks, const std::string& level) {
  auto logger =
      std::make_shared<spdlog::logger>("selflengthen", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  const std::string who = ranks > 1 ? fmt::format(" [rank {}]", rank) : "";
  logger->set_pattern("%H:%M:%S" + who + " %v");
  logger->set_level(spdlog::level::from_str(level));
  if (rank != 0 && logger->level() == spdlog::level::info) logger->set_level(spdlog::level::warn);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace sl

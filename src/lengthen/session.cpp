#include "lengthen/session.hpp"

#include <filesystem>

namespace sl {

std::atomic<int> stop_signal{0};

std::string_view role_name(Role role) {
  switch (role) {
    case Role::base:
      return "base";
    case Role::generator:
      return "generator";
    case Role::extender:
      return "extender";
  }
  throw BugError("unknown role");
}

bool Session::stop_agreed() const {
  int64_t asked = stop_signal != 0 ? 1 : 0;
  groups.world->all_reduce_max(std::span(&asked, 1));
  return asked != 0;
}

bool Session::finished(const std::string& path) const {
  int64_t there = first() && std::filesystem::exists(path) ? 1 : 0;
  groups.world->broadcast(std::as_writable_bytes(std::span(&there, 1)), 0);
  return there != 0;
}

}  // namespace sl

#include "core/error.hpp"

#include <fmt/format.h>

#include <cstring>

namespace sl {

InputError::InputError(std::string_view what, std::string_view where, std::string_view remedy)
    : std::runtime_error(fmt::format("{}: {}; {}", where, what, remedy)) {}

BugError::BugError(std::string_view what, SourcePlace at)
    : std::logic_error(fmt::format("internal error: {} ({}:{})", what, at.file, at.line)) {}

SystemError::SystemError(std::string_view call, std::string_view path, int errno_value)
    : std::runtime_error(fmt::format("{}: {} failed: {}", path, call, std::strerror(errno_value))) {}

LibraryError::LibraryError(std::string_view library, std::string_view call, std::string_view reason,
                           SourcePlace at)
    : std::runtime_error(fmt::format("{} error: {} in {} ({}:{})", library, reason, call, at.file, at.line)) {
}

}  // namespace sl

// The exceptions of the program. Two kinds matter to a reader: BugError (ours) and InputError (the user's).
// The others name the library that failed. Nobody but main catches them for good.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace sl {

// Where in our source a call stands; as a default argument it is the caller's place.
struct SourcePlace {
  const char* file;
  int line;
  static constexpr SourcePlace current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// Something the user can mend. The message is one line: what is wrong, where, and what to do.
// main prints it and exits with code 2.
class InputError : public std::runtime_error {
 public:
  InputError(std::string_view what, std::string_view where, std::string_view remedy);
  explicit InputError(const std::string& line) : std::runtime_error(line) {}
};

// A broken promise between two parts of this program. Names the place.
class BugError : public std::logic_error {
 public:
  explicit BugError(std::string_view what, SourcePlace at = SourcePlace::current());
};

// The operating system refused: full disk, no permission, no memory. Carries errno's text.
class SystemError : public std::runtime_error {
 public:
  SystemError(std::string_view call, std::string_view path, int errno_value);
};

// A library call failed: `library` is "MPI", "HDF5", "CUDA" or "NCCL"; `call` is the text of the call.
class LibraryError : public std::runtime_error {
 public:
  LibraryError(std::string_view library, std::string_view call, std::string_view reason,
               SourcePlace at = SourcePlace::current());
};

// Throws BugError when `condition` is false.
inline void require(bool condition, std::string_view what, SourcePlace at = SourcePlace::current()) {
  if (!condition) throw BugError(what, at);
}

}  // namespace sl

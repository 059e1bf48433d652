// What the fuzz targets share: a folder for the files that the readers want, and which exceptions are
// expected.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.hpp"

namespace sl::fuzz {

// A folder of this process, in memory where the system has that. tools/fuzz.sh removes what a crash leaves.
inline const std::string& folder() {
  static const struct Folder {
    Folder() {
      const char* chosen = std::getenv("SELFLENGTHEN_FUZZ_FOLDER");
      path = std::string(chosen != nullptr ? chosen : "/dev/shm") + "/sl_fuzz_XXXXXX";
      if (::mkdtemp(path.data()) == nullptr) throw std::runtime_error("no folder for the fuzz targets");
    }
    ~Folder() {
      std::error_code ignored;
      std::filesystem::remove_all(path, ignored);
    }
    std::string path;
  } made;
  return made.path;
}

// Puts a file of these bytes into folder(); its path.
inline std::string put(const std::string& name, std::string_view bytes) {
  std::string path = folder() + "/" + name;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
  return path;
}

inline std::string_view text_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// An input of several files has lines "%%%" between them.
inline std::vector<std::string_view> parts_of(std::string_view input) {
  constexpr std::string_view line = "\n%%%\n";
  std::vector<std::string_view> parts;
  for (size_t at = input.find(line); at != std::string_view::npos; at = input.find(line)) {
    parts.push_back(input.substr(0, at));
    input.remove_prefix(at + line.size());
  }
  parts.push_back(input);
  return parts;
}

// Refusing the input by name is what a reader should do; every other exception goes on and is a finding.
template <typename Action>
bool accepted(const Action& action) {
  try {
    action();
    return true;
  } catch (const InputError&) {
  } catch (const SystemError&) {
  }
  return false;
}

}  // namespace sl::fuzz

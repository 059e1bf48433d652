// The file of GemmAlgorithms: one line a kind of product, three columns between tabs. An example, cut short:
//   NVIDIA H100 80GB HBM3, cuBLASLt 130002 <tab> 64 4608 3584 bf16 bf16 0 1 0 1 16 <tab> library 0500...
// Lines of other machines, and lines that cannot be read, are kept as they are.
#include <unistd.h>

#include <array>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>
#include <utility>

#include "kernels/cuda/gemm_algorithms.hpp"

namespace sl {
namespace {

std::string text_of(const GemmKind& kind) {
  std::ostringstream text;
  text << kind.rows << ' ' << kind.n << ' ' << kind.k << ' ' << name_of(kind.in) << ' ' << name_of(kind.out)
       << ' ' << kind.transpose_a << ' ' << kind.transpose_b << ' ' << kind.accumulate << ' ' << kind.bias
       << ' ' << kind.alignment;
  return text.str();
}

std::optional<DType> dtype_named(const std::string& name) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    if (name == name_of(dtype)) return dtype;
  }
  return std::nullopt;
}

std::optional<GemmKind> kind_from(const std::string& text) {
  std::istringstream words(text);
  GemmKind kind;
  std::string in, out;
  words >> kind.rows >> kind.n >> kind.k >> in >> out >> kind.transpose_a >> kind.transpose_b >>
      kind.accumulate >> kind.bias >> kind.alignment;
  const std::optional<DType> in_type = dtype_named(in), out_type = dtype_named(out);
  if (!words || !in_type || !out_type) return std::nullopt;
  kind.in = *in_type;
  kind.out = *out_type;
  return kind;
}

std::string text_of(const GemmChoice& choice) {
  if (choice.own) return "own";
  std::ostringstream text;
  text << "library " << std::hex << std::setfill('0');
  for (const uint64_t word : choice.library.data) text << std::setw(16) << word;
  return text.str();
}

std::optional<GemmChoice> choice_from(const std::string& text) {
  std::istringstream words(text);
  std::string who, what;
  words >> who >> what;
  GemmChoice choice;
  try {
    if (who == "own") {
      choice.own = true;
      return choice;
    } else if (who == "library" && what.size() == 16 * std::size(choice.library.data)) {
      for (size_t i = 0; i < std::size(choice.library.data); ++i) {
        choice.library.data[i] = std::stoull(what.substr(16 * i, 16), nullptr, 16);
      }
      return choice;
    }
  } catch (const std::logic_error&) {  // not a number
  }
  return std::nullopt;
}

// Machine and kind -> choice, as text: all but the last column, and the last one.
std::map<std::string, std::string> read_lines(const std::string& path) {
  std::map<std::string, std::string> lines;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const size_t tab = line.rfind('\t');
    if (tab != std::string::npos) lines[line.substr(0, tab)] = line.substr(tab + 1);
  }
  return lines;
}

}  // namespace

void GemmAlgorithms::read_cache() {
  for (const auto& [key, value] : read_lines(cache_path_)) {
    const size_t tab = key.find('\t');
    if (key.substr(0, tab) != machine_) continue;
    const std::optional<GemmKind> kind = kind_from(key.substr(tab + 1));
    const std::optional<GemmChoice> choice = choice_from(value);
    if (kind && choice) known_[*kind] = *choice;
  }
}

// Ranks that share the file may each replace it: at worst a measurement of another is lost, and repeated in a
// later run. A file that cannot be written costs no more than that either.
void GemmAlgorithms::write_cache() const {
  std::map<std::string, std::string> lines = read_lines(cache_path_);
  for (const auto& [kind, choice] : known_) lines[machine_ + "\t" + text_of(kind)] = text_of(choice);
  std::array<char, 256> host{};
  gethostname(host.data(), host.size() - 1);
  const std::string temporary = cache_path_ + "." + host.data() + "." + std::to_string(getpid());
  {
    std::ofstream file(temporary);
    for (const auto& [key, value] : lines) file << key << '\t' << value << '\n';
    if (!file.flush()) return;
  }
  std::error_code ignored;
  std::filesystem::rename(temporary, cache_path_, ignored);
}

}  // namespace sl

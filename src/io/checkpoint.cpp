#include "io/checkpoint.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <set>
#include <string_view>
#include <utility>

#include "core/activity.hpp"
#include "core/error.hpp"
#include "core/log.hpp"
#include "io/checksum.hpp"
#include "io/dataset.hpp"
#include "io/durable.hpp"

namespace sl {
namespace {

namespace fs = std::filesystem;

constexpr const char* checkpoint_format = "2";
constexpr const char* integer_prefix = "integer_";
constexpr int64_t most_of_tensor = int64_t{1} << 48;  // of a tensor that is believed
constexpr int64_t most_of_piece = int64_t{1} << 26;

struct Matrix {
  int64_t rows, columns;
};

Matrix matrix_of(const std::vector<int64_t>& shape) {
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return {rows, shape.back()};
}

// "1500x700" -> its dimensions; empty when it is none, or of too many numbers.
std::vector<int64_t> shape_of(std::string_view text) {
  std::vector<int64_t> shape;
  int64_t size = 1;
  for (const char *next = text.data(), *const end = next + text.size();; ++next) {
    int64_t dim = 0;
    const auto [after, error] = std::from_chars(next, end, dim);
    if (error != std::errc() || dim <= 0 || dim > most_of_tensor / size) return {};
    shape.push_back(dim);
    size *= dim;
    if (after == end) return shape;
    if (*after != 'x') return {};
    next = after;
  }
}

bool lies_within(const Strip& strip, const Matrix& whole) {
  const bool columns = strip.column >= 0 && strip.width > 0 && strip.width <= whole.columns - strip.column;
  return columns && strip.begin >= 0 && strip.count > 0 &&
         strip.count <= strip.width * whole.rows - strip.begin;
}

std::string beside(const std::string& path, const std::string& name) {
  return (fs::path(path).parent_path() / name).string();
}

int64_t last_row(const Strip& strip) { return (strip.begin + strip.count - 1) / strip.width; }

// Whether two strips of a tensor have no row, or no column, in common.
bool apart(const Strip& one, const Strip& two) {
  const auto before = [](const Strip& a, const Strip& b) {
    return last_row(a) < b.begin / b.width || a.column + a.width <= b.column;
  };
  return before(one, two) || before(two, one);
}

// The numbers that two strips of a tensor share go from one to the other; their count.
int64_t copy_shared(const Strip& from, const float* source, const Strip& to, float* target) {
  const int64_t left = std::max(from.column, to.column);
  const int64_t right = std::min(from.column + from.width, to.column + to.width);
  int64_t copied = 0;
  for (int64_t row = std::max(from.begin / from.width, to.begin / to.width);
       row <= std::min(last_row(from), last_row(to)); ++row) {
    // Columns of this row that a strip has.
    int64_t begin = left, end = right;
    for (const Strip* strip : {&from, &to}) {
      begin = std::max(begin, strip->column + strip->begin - row * strip->width);
      end = std::min(end, strip->column + strip->begin + strip->count - row * strip->width);
    }
    if (begin >= end) continue;
    const auto place = [&](const Strip& strip) {
      return row * strip.width + begin - strip.column - strip.begin;
    };
    std::memcpy(target + place(to), source + place(from), static_cast<size_t>(end - begin) * sizeof(float));
    copied += end - begin;
  }
  return copied;
}

template <typename T>
const std::vector<T>& column_of(const Table& table, const std::string& path, const char* name) {
  for (const auto& [found, column] : table.columns()) {
    const auto* values = std::get_if<std::vector<T>>(&column);
    if (found == name && values != nullptr) return *values;
  }
  throw InputError(fmt::format("lacks column '{}' of a checkpoint", name), path,
                   "give a checkpoint that this program has saved");
}

}  // namespace

std::string checkpoint_part(const std::string& path, int64_t tag, int rank) {
  return fmt::format("{}.{}.{:05}.part", fs::path(path).filename().string(), tag, rank);
}

std::set<std::string> checkpoint_parts(const std::string& path) {
  const fs::path index(path);
  const std::string begin = index.filename().string() + ".";
  const fs::path folder = index.has_parent_path() ? index.parent_path() : ".";
  std::set<std::string> names;
  std::error_code absent;
  for (const auto& entry : fs::directory_iterator(folder, absent)) {
    const std::string name = entry.path().filename();
    if (name.starts_with(begin) && name.find(".part", begin.size()) != std::string::npos) names.insert(name);
  }
  return names;
}

void write_checkpoint_index(const std::string& path, const CheckpointIndex& index,
                            const std::set<std::string>& before) {
  std::vector<std::string> tensors, shapes, parts;
  std::vector<int64_t> column, width, begin, count, at, crc32;
  for (const CheckpointPiece& piece : index.pieces) {
    require(lies_within(piece.strip, matrix_of(piece.shape)), "a piece outside of tensor " + piece.tensor);
    tensors.push_back(piece.tensor);
    shapes.push_back(fmt::format("{}", fmt::join(piece.shape, "x")));
    parts.push_back(piece.part);
    column.push_back(piece.strip.column);
    width.push_back(piece.strip.width);
    begin.push_back(piece.strip.begin);
    count.push_back(piece.strip.count);
    at.push_back(piece.at);
    crc32.push_back(piece.crc32);
  }
  const std::set<std::string> kept(parts.begin(), parts.end());
  Table table;
  table.add("tensor", std::move(tensors));
  table.add("shape", std::move(shapes));
  table.add("column", std::move(column));
  table.add("width", std::move(width));
  table.add("begin", std::move(begin));
  table.add("count", std::move(count));
  table.add("part", std::move(parts));
  table.add("at", std::move(at));
  table.add("crc32", std::move(crc32));
  table.attributes = {{"checkpoint_format", checkpoint_format}, {"kind", index.kind}};
  for (const auto& [name, value] : index.integers)
    table.attributes[integer_prefix + name] = std::to_string(value);
  write_table(path, table, MPI_COMM_SELF);
  for (const std::string& part : before) {
    if (!kept.contains(part)) ::unlink(beside(path, part).c_str());
  }
}

void remove_checkpoint(const std::string& path) {
  ::unlink(path.c_str());
  sync_folder_of(path);  // an index without its parts would be a damaged checkpoint
  for (const std::string& part : checkpoint_parts(path)) ::unlink(beside(path, part).c_str());
}

CheckpointFile::CheckpointFile(std::string path) : path_(std::move(path)) {
  const Table table = read_table(path_);
  const auto damaged = [&](const std::string& what) {
    return InputError(what, path_, "the file is damaged or not ours: remove it and run again");
  };
  const auto format = table.attributes.find("checkpoint_format");
  if (format == table.attributes.end() || format->second != checkpoint_format) {
    throw InputError("is no checkpoint of this program, or of another version", path_,
                     "give a checkpoint of a run folder");
  }
  for (const auto& [name, text] : table.attributes) {
    if (name == "kind") index_.kind = text;
    if (!name.starts_with(integer_prefix)) continue;
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size())
      throw damaged(fmt::format("'{}' is no whole number", name));
    index_.integers[name.substr(std::string_view(integer_prefix).size())] = value;
  }
  const auto& tensors = column_of<std::string>(table, path_, "tensor");
  const auto& shapes = column_of<std::string>(table, path_, "shape");
  const auto& parts = column_of<std::string>(table, path_, "part");
  const auto integers = [&](const char* name) { return column_of<int64_t>(table, path_, name).data(); };
  const int64_t* const column = integers("column");
  const int64_t* const width = integers("width");
  const int64_t* const begin = integers("begin");
  const int64_t* const count = integers("count");
  const int64_t* const at = integers("at");
  const int64_t* const crc32 = integers("crc32");
  for (size_t i = 0; i < tensors.size(); ++i) {
    CheckpointPiece piece{.tensor = tensors[i],
                          .shape = shape_of(shapes[i]),
                          .strip = {column[i], width[i], begin[i], count[i]},
                          .at = at[i],
                          .part = parts[i],
                          .crc32 = static_cast<uint32_t>(crc32[i])};
    const bool sound = !piece.shape.empty() && lies_within(piece.strip, matrix_of(piece.shape)) &&
                       piece.strip.count <= most_of_piece && piece.at >= 0 && piece.at < most_of_tensor &&
                       fs::path(piece.part).filename() == piece.part;
    if (!sound || shapes_.try_emplace(piece.tensor, piece.shape).first->second != piece.shape)
      throw damaged(fmt::format("piece {} of tensor '{}' is none", i, piece.tensor));
    pieces_[piece.tensor].push_back(i);
    index_.pieces.push_back(std::move(piece));
  }
}

std::vector<float> CheckpointFile::read_piece(const CheckpointPiece& piece) const {
  activity().progress();
  const std::string path = beside(path_, piece.part);
  const auto refuse = [&](const std::string& what) {
    return InputError(fmt::format("{} tensor '{}'", what, piece.tensor), path,
                      fmt::format("the checkpoint cannot be used: remove {}", path_));
  };
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw refuse(fmt::format("cannot be opened ({}) for", std::strerror(errno)));
  // What is not there is not allocated.
  const off_t from = static_cast<off_t>(piece.at) * static_cast<off_t>(sizeof(float));
  const auto bytes = static_cast<size_t>(piece.strip.count) * sizeof(float);
  const off_t size = ::lseek(file, 0, SEEK_END);
  std::vector<float> values(size < from + static_cast<off_t>(bytes) ? 0
                                                                    : static_cast<size_t>(piece.strip.count));
  auto* const into = reinterpret_cast<char*>(values.data());
  size_t filled = 0;
  while (!values.empty() && filled < bytes) {
    const ssize_t got = ::pread(file, into + filled, bytes - filled, from + static_cast<off_t>(filled));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    filled += static_cast<size_t>(got);
  }
  ::close(file);
  if (filled < bytes) throw refuse("is cut short, or unreadable, in");
  if (checksum({into, bytes}) != piece.crc32) throw refuse("has a wrong checksum in");
  return values;
}

void CheckpointFile::read(const std::string& tensor, const Strip& wanted, float* into) const {
  const auto found = pieces_.find(tensor);
  if (found == pieces_.end())
    throw InputError(fmt::format("lacks tensor '{}'", tensor), path_, "save it again");
  require(lies_within(wanted, matrix_of(shapes_.at(tensor))), "numbers outside of tensor " + tensor);
  int64_t have = 0;
  for (const size_t i : found->second) {
    const CheckpointPiece& piece = index_.pieces[i];
    if (apart(piece.strip, wanted)) continue;
    have += copy_shared(piece.strip, read_piece(piece).data(), wanted, into);
  }
  if (have != wanted.count) {
    throw InputError(fmt::format("has not all of tensor '{}'", tensor), path_,
                     "the file is damaged or not ours: remove it and run again");
  }
}

std::vector<float> CheckpointFile::read(const std::string& tensor) const {
  const auto found = shapes_.find(tensor);
  if (found == shapes_.end())
    throw InputError(fmt::format("lacks tensor '{}'", tensor), path_, "save it again");
  const Matrix whole = matrix_of(found->second);
  std::vector<float> values(static_cast<size_t>(whole.rows * whole.columns));
  read(tensor, {0, whole.columns, 0, whole.rows * whole.columns}, values.data());
  return values;
}

void CheckpointFile::check(int64_t first, int64_t stride) const {
  for (size_t i = static_cast<size_t>(first); i < index_.pieces.size(); i += static_cast<size_t>(stride))
    (void)read_piece(index_.pieces[i]);
}

bool holds_checkpoint(const std::string& path, int64_t mine, int64_t stride) {
  if (::access(path.c_str(), F_OK) != 0) return false;
  try {
    CheckpointFile(path).check(mine, stride);
    return true;
  } catch (const InputError& damage) {
    spdlog::warn("{}; its training begins anew", damage.what());
    return false;
  }
}

}  // namespace sl

// A file (or folder) of named weights that can be read in parts, as float32, whatever it is stored as.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sl {

struct WeightInfo {
  std::string name;
  std::vector<int64_t> shape;  // row-major, outermost first
  std::string storage;         // "F32", "BF16", "Q4_1", ...
};

// A range of rows and columns of a matrix; a vector is one row.
struct Block {
  int64_t row_begin = 0, row_end = 0, column_begin = 0, column_end = 0;

  bool inside(int64_t rows, int64_t columns) const {
    return 0 <= row_begin && row_begin <= row_end && row_end <= rows && 0 <= column_begin &&
           column_begin <= column_end && column_end <= columns;
  }
};

class WeightFile {
 public:
  virtual ~WeightFile() = default;
  virtual const std::string& path() const = 0;
  virtual const std::vector<WeightInfo>& tensors() const = 0;
  virtual const WeightInfo* find(std::string_view name) const = 0;  // nullptr when there is none
  // Fills out (rows x columns, dense). Touches no more of the file than the block needs. BugError when there
  // is no such tensor or the block lies outside it. Dimensions before the last count as rows.
  virtual void read(std::string_view name, Block block, float* out) const = 0;
};

}  // namespace sl

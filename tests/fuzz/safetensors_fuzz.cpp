// A safetensors file: its header, and every number of every tensor that the header tells of. An input that
// begins with '{' is a header and, behind a line of "%%%", the data; the 8 bytes of the header's length are
// put before it.
#include <cstring>

#include "fuzz.hpp"
#include "io/safetensors.hpp"

namespace sl {
namespace {

std::string file_of(std::string_view input) {
  if (!input.starts_with("{")) return std::string(input);
  const auto parts = fuzz::parts_of(input);
  const uint64_t length = parts[0].size();
  std::string file(sizeof(length), '\0');
  std::memcpy(file.data(), &length, sizeof(length));
  for (const std::string_view part : parts) file += part;
  return file;
}

void read_all(const WeightFile& file) {
  for (const WeightInfo& tensor : file.tensors()) {
    const int64_t columns = tensor.shape.empty() ? 1 : tensor.shape.back();
    int64_t rows = 1;
    for (size_t i = 0; i + 1 < tensor.shape.size(); ++i) rows *= tensor.shape[i];
    std::vector<float> values(static_cast<size_t>(rows * columns));
    file.read(tensor.name, {0, rows, 0, columns}, values.data());
    if (columns > 2) file.read(tensor.name, {0, rows, 1, columns - 1}, values.data());
  }
}

}  // namespace
}  // namespace sl

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace sl;
  const std::string path = fuzz::put("model.safetensors", file_of(fuzz::text_of(data, size)));
  fuzz::accepted([&] { read_all(*open_safetensors(path)); });
  fuzz::accepted([&] { check_sealed_safetensors(path, path, "beside"); });
  return 0;
}

// A GGUF file, opened as a model (configuration, tokenizer, chat format, fingerprint), and every number of
// every tensor.
#include "fuzz.hpp"
#include "io/gguf.hpp"
#include "model/source.hpp"

namespace sl {
namespace {

void read_all(const GgufFile& file) {
  for (const WeightInfo& tensor : file.tensors()) {
    const int64_t columns = tensor.shape.back();
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
  const std::string path = fuzz::put("model.gguf", fuzz::text_of(data, size));
  if (!fuzz::accepted([&] { read_all(GgufFile(path)); })) return 0;
  fuzz::accepted([&] {
    const ModelSource source = open_model(path);
    source.tokenizer->encode("Hello  w\xC3\xB6rld, 12345!\n");
  });
  return 0;
}

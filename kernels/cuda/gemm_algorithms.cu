#include "kernels/cuda/gemm_algorithms.hpp"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/gemm_few_rows.hpp"
#include "kernels/cuda/gemm_library.hpp"

namespace sl {
namespace {

constexpr int library_candidates = 8;

// Device memory for the time of a measurement; undefined when there is none left.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : bytes_(bytes) {
    if (cudaMalloc(&data_, static_cast<size_t>(bytes)) == cudaSuccess) return;
    cudaGetLastError();  // no memory is an answer here
    data_ = nullptr;
  }
  ~Scratch() { cudaFree(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  explicit operator bool() const { return data_ != nullptr; }
  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Reads more than the L2 cache holds, so that the next kernel finds its operands in memory, as in a model
// whose layers have other weights each.
__global__ void sweep(const uint4* data, int64_t count, uint32_t* never_written) {
  cuda::start_next();
  cuda::wait_for_previous();
  uint32_t seen = 0;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += threads) {
    const uint4 x = data[i];
    seen |= x.x | x.y | x.z | x.w;
  }
  if (seen == 0xFFFFFFFFU) *never_written = seen;  // the data are zeros
}

// Times candidates as they run in a step: between other kernels, with operands that are not in the cache.
class ColdTimer {
 public:
  explicit ColdTimer(const Context& context) : context_(context), swept_(int64_t{128} << 20) {
    SL_CUDA(cudaEventCreate(&begin_));
    SL_CUDA(cudaEventCreate(&end_));
    if (swept_) {
      SL_CUDA(cudaMemsetAsync(swept_.data(), 0, static_cast<size_t>(swept_.bytes()), context.cuda->stream));
    }
    sweep_seconds_ = seconds([] { return true; });
  }
  ~ColdTimer() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  ColdTimer(const ColdTimer&) = delete;
  ColdTimer& operator=(const ColdTimer&) = delete;

  // Seconds that one more call of `candidate` costs; infinite when it cannot run.
  double operator()(const std::function<bool()>& candidate) { return seconds(candidate) - sweep_seconds_; }

 private:
  double seconds(const std::function<bool()>& candidate) {
    constexpr int rounds = 3, repetitions = 3;
    constexpr double long_enough = 3e-4;                               // for noise not to matter
    if (!candidate()) return std::numeric_limits<double>::infinity();  // and the first call's own costs
    double best = std::numeric_limits<double>::infinity();
    for (int round = 0; round < rounds && (round == 0 || best < long_enough); ++round) {
      SL_CUDA(cudaEventRecord(begin_, context_.cuda->stream));
      for (int i = 0; i < repetitions; ++i) {
        clear_cache();
        candidate();
      }
      clear_cache();
      SL_CUDA(cudaEventRecord(end_, context_.cuda->stream));
      SL_CUDA(cudaEventSynchronize(end_));
      float milliseconds = 0.0F;
      SL_CUDA(cudaEventElapsedTime(&milliseconds, begin_, end_));
      best = std::min(best, 1e-3 * static_cast<double>(milliseconds) / repetitions);
    }
    return best;
  }

  void clear_cache() {
    if (!swept_) return;
    const int64_t count = swept_.bytes() / static_cast<int64_t>(sizeof(uint4));
    cuda::launch_kernel(context_, sweep, dim3(static_cast<uint32_t>(4 * context_.cuda->multiprocessors)),
                        dim3(512), 0, static_cast<const uint4*>(swept_.data()), count,
                        static_cast<uint32_t*>(swept_.data()));
  }

  const Context& context_;
  Scratch swept_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
  double sweep_seconds_ = 0.0;
};

// Bytes from the first element of a matrix to behind its last.
int64_t extent(const Tensor& matrix) {
  return ((matrix.rows() - 1) * matrix.row_stride() + matrix.columns()) * size_of(matrix.dtype());
}

int alignment_of(const Tensor& tensor) {
  uint64_t bits = reinterpret_cast<uintptr_t>(tensor.raw()) | 16U;
  if (tensor.rank() == 2 && tensor.rows() > 1)
    bits |= static_cast<uint64_t>(tensor.row_stride() * size_of(tensor.dtype()));
  return 1 << std::countr_zero(bits);
}

}  // namespace

int64_t row_bucket(int64_t rows) {
  if (rows <= 16) return rows;
  if (rows <= 256) return (rows + 15) / 16 * 16;
  return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows)));
}

GemmKind kind_of(const Gemm& op, int64_t m, int64_t n, int64_t k) {
  int alignment = std::min({alignment_of(op.a), alignment_of(op.b), alignment_of(op.out)});
  if (op.bias.defined()) alignment = std::min(alignment, alignment_of(op.bias));
  return {.rows = row_bucket(m),
          .n = n,
          .k = op.transpose_a ? row_bucket(k) : k,  // gradients of weights sum over the rows of a batch
          .in = op.a.dtype(),
          .out = op.out.dtype(),
          .transpose_a = op.transpose_a,
          .transpose_b = op.transpose_b,
          .accumulate = op.beta != 0.0F,
          .bias = op.bias.defined(),
          .alignment = alignment};
}

GemmAlgorithms::GemmAlgorithms(std::string cache_path) : cache_path_(std::move(cache_path)) {
  int device = 0;
  SL_CUDA(cudaGetDevice(&device));
  cudaDeviceProp properties = {};
  SL_CUDA(cudaGetDeviceProperties(&properties, device));
  machine_ = std::string(properties.name) + ", cuBLASLt " + std::to_string(cublasLtGetVersion());
  if (!cache_path_.empty()) read_cache();
}

GemmChoice GemmAlgorithms::choose(const Context& context, const Gemm& op, int64_t m, int64_t n, int64_t k) {
  const GemmKind kind = kind_of(op, m, n, k);
  const LibraryProduct product(context, op, m, n, k);
  const bool own_fits = m <= most_few_rows && few_rows_supported(context, op);
  const bool measured = !context.deterministic;
  if (measured) {
    const auto known = known_.find(kind);
    if (known != known_.end()) {
      const GemmChoice& choice = known->second;
      if (choice.own ? own_fits : product.supports(choice.library)) return choice;
    }
  }
  const auto likely = [&]() -> GemmChoice {
    if (own_fits) return {.own = true};
    return {.library = product.candidates(1).front().algorithm};
  };
  if (context.cuda->capturing || !measured) return likely();

  // Candidates overwrite out where its old content does not matter.
  const bool reads_out = op.beta != 0.0F && !op.addend.defined();
  const Scratch scratch(reads_out ? extent(op.out) : 1);
  if (!scratch) return likely();
  void* out = reads_out ? scratch.data() : op.out.raw();
  ColdTimer time(context);
  GemmChoice best;
  double best_seconds = std::numeric_limits<double>::infinity();
  const auto consider = [&](const GemmChoice& choice, double handicap,
                            const std::function<bool()>& candidate) {
    const double seconds = handicap * time(candidate);
    if (seconds >= best_seconds) return;
    best_seconds = seconds;
    best = choice;
  };
  // Among other operations our kernel gains what it does not show alone: it starts to fetch weights while the
  // operation before still runs. The several library candidates, too, have the luckiest of their
  // measurements.
  constexpr double own_handicap = 0.95;
  if (own_fits) {
    consider({.own = true}, own_handicap, [&] {
      run_few_rows(context, op, out);
      return true;
    });
  }
  for (const LibraryCandidate& candidate : product.candidates(library_candidates)) {
    consider({.library = candidate.algorithm}, 1.0,
             [&] { return product.run(candidate.algorithm, out) == CUBLAS_STATUS_SUCCESS; });
  }
  known_[kind] = best;
  if (!cache_path_.empty()) write_cache();
  return best;
}

}  // namespace sl

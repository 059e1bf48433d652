// The operations: every computation on tensors in the program is one of these structs, run by run(context,
// op). kernels/cpu/ is the readable reference (fp32, plain loops, BLAS for products) and the specification;
// kernels/cuda/ must agree with it. All tensors of one op are on the context's device; an op keeps no tensor.
//
// Shape letters
//   T rows (tokens) of a batch     S sequences            R rows for which logits are made
//   H hidden size                  F ffn rows here        V vocabulary rows here (this tensor-parallel rank)
//   Q query heads here             K key-value heads here D head dimension
//   P pages of the pool            G tokens a page        M pages a sequence at most
//   E low-rank numbers a projection, of all adapters together
// "here" is after tensor-parallel sharding. Index tensors are i32. Float tensors have the context's storage
// dtype (f32 on hosts; bf16 or f32 on a GPU), unless f32 is said; sums are f32 at least.
// A packed qkv row holds Q query heads, then K key heads, then K value heads, each of D numbers.
#pragma once

#include <cstdint>
#include <span>

#include "core/buffer.hpp"
#include "core/context.hpp"
#include "core/tensor.hpp"

namespace sl {

// out = alpha * op(a) x op(b) + beta * addend (+ bias to every row), the addend being out itself where none
// is given. op(a) is (m, k), op(b) is (k, n), out is (m, n); op transposes when the flag is set. A linear
// layer with weight w stored (n, k) is {a = x, b = w, transpose_b}. Any of the three may be a column range of
// a wider matrix. `out` is of the storage dtype or f32.
struct Gemm {
  Tensor a, b, out;
  bool transpose_a = false;
  bool transpose_b = false;
  float alpha = 1.0F;
  float beta = 0.0F;
  Tensor bias{};    // (n) or undefined
  Tensor addend{};  // (m, n) of out's dtype and row stride, or undefined
};

// What low-rank adapters (Hu et al. 2021) add to the output of a linear layer: y = W x + scale * B (A x). The
// rows of A of all adapters stand behind those of W, so the layer's product yields A x too, in `low`; who
// reads the output next adds the rest to each row t, from the numbers begin .. end = ranges(t) of its own
// adapter: out(t, o) += sum over r of low(t, r) * b(o, r). Where one product serves several projections
// (queries, keys and values; gate and up), each has E numbers in a row of low, one projection after the
// other, and its columns of b.
struct LowRank {
  Tensor low{};     // T, projections * E
  Tensor b{};       // E / 2, 2 * outputs: PackLowRank
  Tensor ranges{};  // T, 2: begin and end, multiples of 8; equal where the row has no adapter
  bool defined() const { return low.defined(); }
};

// The form of B that LowRank wants, with pairs of the rank together: scale * b(o, r) at (r / 2, 2 o + r % 2);
// zeros for r beyond those of b.
struct PackLowRank {
  Tensor b;  // outputs, r
  float scale = 1.0F;
  Tensor out;  // N, 2 * outputs; r <= 2N
};

// Gradients of y = scale * low B^T: grad_b += scale * grad_out^T low, grad_low = scale * grad_out B. grad_low
// may be low itself.
struct LowRankBackward {
  Tensor grad_out;  // T, O
  Tensor low;       // T, r
  Tensor b;         // O, r
  float scale = 1.0F;
  Tensor grad_b;    // O, r, f32
  Tensor grad_low;  // T, r
  bool defined() const { return grad_out.defined(); }
};
struct LowRankBackwards {  // of projections of one input, whose T and r are the same
  std::span<const LowRankBackward> all;
};

// out(t) = table(tokens(t) - first_row), or zeros where that row is on another rank.
struct Embedding {
  Tensor tokens;  // T
  Tensor table;   // V, H
  int64_t first_row = 0;
  Tensor out;  // T, H, f32
};

// grad_table(tokens(t) - first_row) += grad_out(t), for the rows of this rank.
struct EmbeddingBackward {
  Tensor tokens;    // T
  Tensor grad_out;  // T, H
  int64_t first_row = 0;
  Tensor grad_table;  // V, H
};

// residual += delta (when defined, with what its adapters add); out = residual / rms(residual) * weight, rms
// = sqrt(mean(x^2) + epsilon).
struct AddRmsNorm {
  Tensor residual;  // T, H, f32, updated in place
  Tensor delta{};   // T, H or undefined
  Tensor weight;    // H
  float epsilon = 0.0F;
  Tensor out;          // T, H
  LowRank adapters{};  // of delta
};

// Gradient of out = rmsnorm(x) * weight: grad_x += ..., grad_weight += ... (when defined).
struct RmsNormBackward {
  Tensor x;       // T, H: the residual after the addition
  Tensor weight;  // H
  float epsilon = 0.0F;
  Tensor grad_out;       // T, H
  Tensor grad_x;         // T, H, accumulated into
  Tensor grad_weight{};  // H, accumulated into, or undefined
  Tensor rounded{};      // T, H, or undefined: grad_x after, in the storage dtype
  Tensor normalised{};   // T, H, or undefined: out once more, as AddRmsNorm gives it
};

// Rotates the first `heads` heads of each row in place (query and key heads): element i of the first half of
// a head pairs with element i of the second half (the convention of Hugging Face checkpoints), by the angle
// positions(t) * frequencies(i); both results times `magnitude` (YaRN's attention factor, else 1). `inverse`
// turns back: the gradient. Formula: RoFormer (Su et al. 2021).
struct Rope {
  Tensor qkv;          // T, (Q + 2K) * D
  Tensor positions;    // T
  Tensor frequencies;  // D / 2, radians a position
  int64_t heads = 0;   // Q + K
  int64_t head_dim = 0;
  float magnitude = 1.0F;
  bool inverse = false;
};

// Adds what adapters add, rotates the query and key heads of each row in place, as Rope, then writes its key
// and value heads to the page slot slots(t) = page * G + offset; a negative slot is skipped.
struct RopeStoreKv {
  Tensor qkv;          // T, (Q + 2K) * D
  Tensor positions;    // T
  Tensor frequencies;  // D / 2, f32
  float magnitude = 1.0F;
  Tensor slots;                   // T
  Tensor key_pages, value_pages;  // P, K, G, D
  LowRank adapters{};             // of queries, keys and values
};

// How PagedAttention cuts a batch into pieces of work: made on the device, once a step for all layers, from
// the same offsets and lengths. The CPU needs none of it.
struct PlanPagedAttention {
  Tensor query_offsets;    // S + 1
  Tensor context_lengths;  // S
  int64_t query_heads = 0, key_heads = 0;
  Tensor plan;  // attention_workspace().plan, i32
};
struct AttentionWorkspace {
  int64_t plan = 0;     // i32 numbers
  int64_t scratch = 0;  // f32 numbers
};
// What batches of at most so many rows, sequences and tokens a sequence need. Zeros on hosts.
AttentionWorkspace attention_workspace(Device device, int64_t rows, int64_t sequences, int64_t positions,
                                       int64_t query_heads, int64_t key_heads, int64_t head_dim);

// Causal attention of a mixed batch over KV pages: sequence s owns rows query_offsets(s) ..
// query_offsets(s+1) of qkv, which are the last ones of its context_lengths(s) tokens; their keys and values
// are already stored. GQA: query head h reads key-value head h / (Q / K).
struct PagedAttention {
  Tensor qkv;                     // T, (Q + 2K) * D
  Tensor key_pages, value_pages;  // P, K, G, D
  Tensor query_offsets;           // S + 1
  Tensor context_lengths;         // S
  Tensor page_tables;             // S, M
  int64_t query_heads = 0;
  int64_t longest_query = 0;  // rows of a sequence in this batch, at most; 1: all are decoding
  float scale = 1.0F;
  Tensor out;                // T, Q * D
  Tensor plan{}, scratch{};  // of PlanPagedAttention, and attention_workspace().scratch
};

// Causal attention of packed sequences (training): sequence s is rows offsets(s) .. offsets(s+1).
struct PackedAttention {
  Tensor qkv;      // T, (Q + 2K) * D
  Tensor offsets;  // S + 1
  int64_t query_heads = 0, key_heads = 0;
  float scale = 1.0F;
  Tensor out;          // T, Q * D
  Tensor log_sum_exp;  // T, Q, f32: of the scaled scores, for the backward pass
};

struct PackedAttentionBackward {
  Tensor qkv, offsets;
  int64_t query_heads = 0, key_heads = 0;
  float scale = 1.0F;
  Tensor out, log_sum_exp;  // of the forward pass
  Tensor grad_out;          // T, Q * D
  Tensor grad_qkv;          // T, (Q + 2K) * D, overwritten
};

// out = silu(gate) * up, where a row of gate_up holds F gates, then F ups. silu(x) = x / (1 + exp(-x)).
struct SwiGlu {
  Tensor gate_up;      // T, 2F
  Tensor out;          // T, F
  LowRank adapters{};  // of gate and up: added first; gate_up is left as it was
  // Undefined, or of the one adapter of all rows, for the projection that reads out: down_low = out A^T.
  Tensor down_a{};    // r, F
  Tensor down_low{};  // T, r
};

struct SwiGluBackward {
  Tensor gate_up;       // T, 2F
  Tensor grad_out;      // T, F
  Tensor grad_gate_up;  // T, 2F, overwritten; may be gate_up itself
  Tensor product{};     // T, F, or undefined: silu(gate) * up, as SwiGlu gives it; may be grad_out itself
  LowRank adapters{};   // of gate and up: added first
  // Undefined, or the gradients of an adapter, which every row has, and has alone: what these operations on
  // the columns of grad_gate_up and of adapters.low would give after this one, and that of the A of the
  // projection that reads the product: down_grad_a += down_grad_low^T product. Then product is scratch.
  LowRankBackward gate{}, up{};
  Tensor down_grad_low{};  // T, r
  Tensor down_grad_a{};    // r, F, f32
};

struct GatherRows {  // out(i) = x(indices(i))
  Tensor x;          // T, H
  Tensor indices;    // R
  Tensor out;        // R, H
};

struct ScatterAddRows {  // out(indices(i)) += x(i); indices are distinct
  Tensor x;              // R, H
  Tensor indices;        // R
  Tensor out;            // T, H
};

struct Copy {  // out = scale * x, same shape; either may be a column range
  Tensor x, out;
  float scale = 1.0F;
};

// All of these, in no order: none reads or writes what another writes. For many small ones, which are
// launched together.
struct Copies {
  std::span<const Copy> all;
};

struct Add {  // out += scale * x, same shape
  Tensor x, out;
  float scale = 1.0F;
};

struct Fill {  // out = value
  Tensor out;
  float value = 0.0F;
};

// out(i) = uniform in [-width, width), from 24 bits of Philox at (stream, i): addressed, so the same on every
// device up to rounding to the dtype.
struct FillUniform {
  Tensor out;
  float width = 1.0F;
  uint64_t stream = 0;
};

// Per row of a slice of logits: the largest logit, the sum of exp(logit - largest), and the target's logit (0
// where the target row is on another rank). Combined over tensor-parallel ranks they give the
// log-probability.
struct CrossEntropyStats {
  Tensor logits;   // R, V, f32
  Tensor targets;  // R, global token ids; negative: no target
  int64_t first_row = 0;
  Tensor row_max, row_sum, target_logit;  // R, f32
};

// out(i, j) = weights(i) * (exp(logits(i, j) - log_sum_exp(i)) - [j + first_row == targets(i)]).
struct CrossEntropyGradient {
  Tensor logits;   // R, V, f32
  Tensor targets;  // R
  int64_t first_row = 0;
  Tensor log_sum_exp, weights;  // R, f32
  Tensor out;                   // R, V; may be logits itself
};

// Where tokens(t) is negative: tokens(t) = drawn(-1 - tokens(t)), the token that a row of the step before
// drew while this step was being planned.
struct FillInTokens {
  Tensor tokens;  // T
  Tensor drawn;   // R of the step before
};

// out(rows(i), ...) = 0.
struct ClearRows {
  Tensor rows;  // N
  Tensor out;   // a matrix of 4-byte numbers
};

// x(to(i), ...) = x(from(i), ...): the pages and the row of the bitmap that one sequence takes over from
// another. No row is copied to twice, or copied both from and to.
struct CopyRows {
  Tensor from, to;  // N
  Tensor x;         // a matrix, of any dtype
};

// Sets the bit of token tokens(t) in row slots(t) of the bitmap; a negative slot is skipped.
struct MarkSeen {
  Tensor tokens, slots;  // T
  Tensor seen;           // slots, ceil(vocabulary / 32), u32
};

// Draws one token a row. Order as in vLLM and Transformers: repetition penalty over the seen tokens (positive
// logits divided, negative multiplied), temperature, top-k, top-p; then the inverse of the cumulated
// probabilities at uniform_at(stream, position) in order of token id. Temperature 0: the first largest logit.
// A row with a slot sets the bit of the token it drew; the slots of one call differ. Logits with NaN or
// +infinity, or nothing finite, cannot be drawn from: on hosts an exception says so; on a GPU the row's token
// is -1 instead of an exception (also for a temperature or penalty out of range), and no bit is set.
// logits is scratch after.
struct SampleTokens {
  Tensor logits;                             // R, V (whole vocabulary), f32
  Tensor seen;                               // slots, ceil(V / 32), u32
  Tensor slots;                              // R: row of `seen`; negative: no penalty, nothing is set
  Tensor temperature, top_p, penalty;        // R, f32
  Tensor top_k;                              // R, i32; 0: off
  Tensor stream_low, stream_high, position;  // R, u32: the address of the draw
  Tensor banned;  // B, i32: tokens that rows with ban(i) != 0 must not draw (min_tokens)
  Tensor ban;     // R, i32
  Tensor out;     // R, i32
};

// The N best tokens of each row, best first, the smaller id first among equals, and their scores. As in the
// beam search of Transformers the score is the log-probability (log-softmax of the logits), then multiplied
// by the penalty where the token was seen, then -infinity where it is banned. Logits that SampleTokens cannot
// draw from are treated as there: an exception on hosts, on a GPU -1 for all tokens of the row. logits is
// scratch after.
struct BestTokens {
  Tensor logits;   // R, V (whole vocabulary), f32
  Tensor seen;     // slots, ceil(V / 32), u32
  Tensor slots;    // R: row of `seen`; negative: no penalty
  Tensor penalty;  // R, f32
  Tensor banned;   // B, i32: tokens that rows with ban(i) != 0 must not have (min_tokens)
  Tensor ban;      // R, i32
  Tensor tokens;   // R, N, i32; N at most V and most_best_tokens
  Tensor scores;   // R, N, f32
};
constexpr int64_t most_best_tokens = 128;

// AdamW (Loshchilov and Hutter 2019) with bias correction, as torch.optim.AdamW orders it: decay, then step.
struct AdamW {
  Tensor parameter, gradient, first_moment, second_moment;  // same shape, f32
  Tensor rounded{};  // the same shape in the storage dtype, or undefined: the parameter after
  float learning_rate = 0.0F, beta1 = 0.9F, beta2 = 0.999F, epsilon = 1e-8F, weight_decay = 0.0F;
  float gradient_scale = 1.0F;  // the gradient is multiplied by this first (clipping, averaging)
  int64_t step = 1;             // from 1
};

struct SumOfSquares {  // *result += sum of x^2, in double; returns when the value is on the host
  Tensor x;
  double* result = nullptr;
};

// Every operation. clang-format never settles on a layout for this list, so it is off.
// clang-format off
#define SL_FOR_EACH_OP(DO) \
  DO(Gemm) DO(Embedding) DO(EmbeddingBackward) DO(AddRmsNorm) DO(RmsNormBackward) DO(Rope) \
  DO(RopeStoreKv) DO(PlanPagedAttention) DO(PagedAttention) DO(PackedAttention) DO(PackedAttentionBackward) DO(SwiGlu) \
  DO(SwiGluBackward) DO(PackLowRank) DO(LowRankBackwards) DO(GatherRows) DO(ScatterAddRows) DO(Copy) DO(Copies) DO(Add) DO(Fill) \
  DO(FillUniform) DO(CrossEntropyStats) DO(CrossEntropyGradient) DO(FillInTokens) DO(ClearRows) DO(CopyRows) DO(MarkSeen) \
  DO(SampleTokens) DO(BestTokens) DO(AdamW) DO(SumOfSquares)
// clang-format on

// One file of that purpose in kernels/cpu and kernels/cuda defines the specialisation for its device.
#define SL_DECLARE_LAUNCH(Op)                                     \
  template <Device device>                                        \
  void launch(const Context& context, const Op& op);              \
  template <>                                                     \
  void launch<Device::cpu>(const Context& context, const Op& op); \
  template <>                                                     \
  void launch<Device::cuda>(const Context& context, const Op& op);
SL_FOR_EACH_OP(SL_DECLARE_LAUNCH)
#undef SL_DECLARE_LAUNCH

// Runs one operation where the context says. On the CPU it has finished on return.
template <typename Op>
void run(const Context& context, const Op& op) {
  if (context.device == Device::cuda) {
#if SELFLENGTHEN_CUDA
    launch<Device::cuda>(context, op);
    return;
#else
    throw BugError("an operation was sent to a CUDA device, which this build does not have");
#endif
  }
  DeviceTurn turn(context.device);
  launch<Device::cpu>(context, op);
}

}  // namespace sl

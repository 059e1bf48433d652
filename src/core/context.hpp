// Context: on which device operations run, and how. Passed to every operation; cheap to copy.
#pragma once

#include "core/tensor.hpp"

namespace sl {

struct CudaState;  // stream and library handles of a GPU: kernels/cuda/state.hpp

struct Context {
  Device device = Device::cpu;
  // Products and attention in a reduction order that depends on a row alone, not on the batch around it, so
  // that a row's bits do not change with its neighbours. Costs a little speed.
  bool deterministic = false;
  // What weights, activations, adapters and KV pages are stored as: f32 on hosts, bf16 or f32 on a GPU. The
  // residual stream, logits and all sums are f32 everywhere.
  DType storage = DType::f32;
  CudaState* cuda = nullptr;  // of the device, when it is a GPU; outlives the context

  Placement storage_place() const { return {device, storage}; }
};

}  // namespace sl

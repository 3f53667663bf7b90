// The CUDA side of group_norm_silu: what the registration calls. Needs no CUDA header.

#pragma once

#include "group_norm_silu.h"

namespace pdfast {

// How one call is cut up. A cluster of `cluster` blocks owns one image's `slab` channels, of all
// images' `total` slabs one after another.
struct Plan {
  int slab, cluster, threads;
  int64_t grid, total, shared_bytes;
  bool resident;  // the slab stays in shared memory: x (and dy) are read from memory once
  int vector;     // elements per global access: 16 bytes' worth, or 1
};

// Enqueue on `stream` (a cudaStream_t) of the current device. No allocation, no synchronization, no
// memset; safe under graph capture. Throw std::runtime_error where a launch is refused.
void forward_cuda(const Forward& call, void* stream);
void backward_cuda(const Backward& call, void* stream);

}  // namespace pdfast

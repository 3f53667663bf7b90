// The CUDA side of group_norm_silu, as the registration calls it. Needs no CUDA header.

#pragma once

#include "group_norm_silu.h"

namespace pdfast {

// How one call is cut up. A cluster of `cluster` blocks owns `slab` channels of one image; there
// are `total` slabs in all images, and a cluster takes one after another.
struct Plan {
  int slab, cluster, threads;
  int64_t grid, total, shared_bytes;
  bool resident;  // the slab stays in shared memory: x (and dy) are read from memory once
  int vector;     // elements per global access: 16 bytes' worth, or 1
};

// Enqueue on `stream` (a cudaStream_t) of the current device, without allocation, synchronization
// or memset, so safe under graph capture. Throw std::runtime_error where a launch is refused.
void forward_cuda(const Forward& call, void* stream);
void backward_cuda(const Backward& call, void* stream);

}  // namespace pdfast

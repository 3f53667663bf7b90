// Types shared by group_norm_silu's two machines: CUDA and its emulation on the host.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "group_norm_silu_plan.h"

#ifdef __CUDACC__
#define PDFAST_DEVICE __device__ __forceinline__
#else
#define PDFAST_DEVICE inline
#endif

namespace pdfast {

// bfloat16 and float16 as bits: the same source works on the host, and the operators of cuda_bf16.h
// and cuda_fp16.h are not needed, which PyTorch's build switches off.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

// A thread's place among the rows and columns of its block.
struct Place {
  int tid, rank, row, col;
  int warp_row, team;  // the row within a warp's rows, and the partial result that the thread is in
  int first, count;    // the first pixel that it visits, and their number
  int group, channel;  // its column's first channel in a chunk: group, and place in the group
  int part, share;     // in the merge of partial statistics: its part of group `share`'s
  bool active;

  PDFAST_DEVICE Place(const Geometry& g, int tid, int rank) : tid(tid), rank(rank), count(0) {
    share = g.by_split.of(tid), part = tid - share * g.split;
    const int lane = tid % kWarp;
    if (g.cols <= kWarp) {
      team = tid / kWarp;
      warp_row = g.by_cols.of(lane), col = lane - warp_row * g.cols;
      row = team * g.warp_rows + warp_row;
      active = warp_row < g.warp_rows;
    } else {
      team = row = g.by_cols.of(tid), warp_row = 0, col = tid - row * g.cols;
      active = row < g.rows;
    }
    group = g.chunks > 1 ? 0 : g.by_group.of(col * g.vector);
    channel = col * g.vector - group * g.per_group;
    const int left = g.hw - rank * g.pixels, pixels = left < g.pixels ? left : g.pixels;
    first = rank * g.pixels + row;
    if (active && row < pixels) count = unsigned(pixels - row + g.rows - 1) / unsigned(g.rows);
  }

  // Whether the thread writes the results that its warp's rows have in common.
  PDFAST_DEVICE bool leads() const { return active && warp_row == 0; }
};

// Four floats in one shared access.
struct alignas(16) Quad {
  float value[4];
};

// One global access: 16 bytes, or one element.
template <class T, int V>
struct alignas(16) Pack {
  static_assert(V * sizeof(T) == 16);
  uint32_t word[4];
};
template <class T>
struct Pack<T, 1> {
  T value;
};

}  // namespace pdfast

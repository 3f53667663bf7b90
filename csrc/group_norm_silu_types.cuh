// Types that both machines under group_norm_silu.cu share.

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

// bfloat16 and float16 as bits: the same source on the host, and no operator of cuda_bf16.h or
// cuda_fp16.h, which PyTorch's build switches off.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
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

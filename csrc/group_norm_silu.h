// group_norm_silu: GroupNorm, then optional FiLM, then optional SiLU, over channels-last images.
//
//   xhat = (x - mean) * rstd                     mean, rstd over one image's group of channels
//   u    = (xhat * weight + bias) * (1 + scale) + shift
//   y    = silu ? u / (1 + exp(-u)) : u
//
// This header is the whole interface of the op's core. It and the files behind it include nothing
// of PyTorch: a sanitizer driver and the host build of the CUDA kernels link them alone.

#pragma once

#include <cstdint>

namespace pdfast {

enum class Dtype : int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

// Sizes: n images of hw pixels and c channels, stored as [n][hw][c] without gaps; groups divides c.
struct Sizes {
  int64_t n, hw, c, groups;
};

// Types: x, y, dy and dx are `x`; weight and bias (c) and their gradients are `param`; film and
// dfilm (n, 2c), scale then shift, are `film`. `param` and `film` are either `x` or f32 (f64 goes
// with f64 only). The statistics, (n, groups), and the sums are f32 (f64 where x is f64).
struct Types {
  Dtype x, param, film;
};

struct Forward {
  Sizes size;
  Types type;
  const void *x, *weight, *bias, *film;  // film: null without FiLM
  void *y, *mean, *rstd;
  double eps;
  int32_t silu;
};

struct Backward {
  Sizes size;
  Types type;
  const void *dy, *x, *mean, *rstd, *weight, *bias, *film;
  void *dx, *dweight, *dbias, *dfilm;  // dfilm: null without FiLM
  // Scratch, (n, 2, c): what each image adds to dbias and dweight, to be summed in their order.
  void* sums;
  int32_t silu;
};

}  // namespace pdfast

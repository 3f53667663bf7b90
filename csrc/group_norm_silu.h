// group_norm_silu: GroupNorm of a sum, then optional FiLM, then optional SiLU, over channels-last
// images.
//
//   s    = x + addend + residual                 either may be absent; skip's channels follow s's
//   xhat = (s - mean) * rstd                     mean, rstd over one image's group of channels
//   u    = (xhat * weight + bias) * (1 + scale) + shift
//   y    = silu ? u / (1 + exp(-u)) : u
//
// This header is the whole interface of the op's core. The core does not include PyTorch, so a
// sanitizer driver and the host build of the CUDA kernels link it alone.

#pragma once

#include <cstdint>

namespace pdfast {

enum class Dtype : int32_t { f32 = 0, f64 = 1, bf16 = 2, f16 = 3 };

// Sizes: n images of hw pixels and c channels, stored as [n][hw][c] without gaps; groups divides c.
struct Sizes {
  int64_t n, hw, c, groups;
};

// Types: `x` is of the images; `param` of weight and bias (c) and their gradients; `film` of film
// and dfilm (n, 2c), scale then shift; `addend` of addend and daddend. The last three are each `x`
// or f32 (with f64 images, only f64). The statistics, (n, groups), and the sums are f32 (f64 where
// x is f64).
struct Types {
  Dtype x, param, film, addend;
};

// Layout of the tensors. Of the c channels, the first `first` are x's and the others skip's, each
// stored without gaps; first = c: no skip. The strides are in elements, from one image to the next;
// addend's is 0 where all images share one row, (first).
struct Layout {
  int64_t first, addend_stride, film_stride;
};

// Arguments of the forward:
//   size, type, at     see above
//   x                  (n, hw, first)
//   skip               (n, hw, c - first), or null
//   addend             (n, first) or (first), or null
//   residual           (n, hw, first), or null
//   weight, bias       (c)
//   film               (n, 2c), scale then shift, or null
//   y                  output (n, hw, c)
//   sum                output s (n, hw, first), or null
//   mean, rstd         output (n, groups)
//   eps                is added to the variance
//   silu               whether to apply SiLU
// With a residual or an output `sum`, s is rounded to x's type before its statistics are taken;
// with an addend alone it is not.
struct Forward {
  Sizes size;
  Types type;
  Layout at;
  const void *x, *skip, *addend, *residual, *weight, *bias, *film;
  void *y, *sum, *mean, *rstd;
  double eps;
  int32_t silu;
};

// Arguments of the backward; those of the forward mean the same. x + addend is the sum s: where the
// forward wrote s, x is s and addend is null.
//   dy                 gradient of y (n, hw, c)
//   dsum               gradient of s from elsewhere, added to dx (n, hw, first), or null
//   dx                 output gradient of s (n, hw, first)
//   dskip              output (n, hw, c - first), or null
//   dweight, dbias     output (c)
struct Backward {
  Sizes size;
  Types type;
  Layout at;
  const void *dy, *dsum, *x, *skip, *addend, *mean, *rstd, *weight, *bias, *film;
  void *dx, *dskip, *dweight, *dbias;
  void *dfilm, *daddend;  // outputs (n, 2c), and (n, first) or (first); null where not wanted
  // Scratch, (n, 3, c): each image's terms of dbias, dweight and daddend, to be summed in the
  // images' order. The CPU's kernel has no daddend, and uses (n, 2, c).
  void* sums;
  int32_t daddend_rows;  // n, or 1: summed over the images
  int32_t silu;
};

}  // namespace pdfast

// group_norm_silu: a sum, its GroupNorm, then optional FiLM, then optional SiLU, over channels-last
// images.
//
//   s    = x + addend + residual                 either may be absent; beside it, skip's channels
//   xhat = (s - mean) * rstd                     mean, rstd over one image's group of channels
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

// Types: the images are `x`; weight and bias (c) and their gradients are `param`; film and dfilm
// (n, 2c), scale then shift, are `film`; addend and daddend are `addend`. Each of these is either
// `x` or f32 (f64 goes with f64 only). The statistics, (n, groups), and the sums are f32 (f64 where
// x is f64).
struct Types {
  Dtype x, param, film, addend;
};

// Where the tensors lie. The first `first` of the c channels are x's, the others skip's, each of
// them stored without gaps; first = c: no skip. The strides are in elements, from one image to the
// next; addend's is 0 where one row, (first), is of all images.
struct Layout {
  int64_t first, addend_stride, film_stride;
};

// Null where absent: skip, addend, residual, film, sum. With a residual or where `sum` is written
// (n, hw, first), the sum is rounded to x's type before its statistics are taken; with an addend
// alone it is not.
struct Forward {
  Sizes size;
  Types type;
  Layout at;
  const void *x, *skip, *addend, *residual, *weight, *bias, *film;
  void *y, *sum, *mean, *rstd;
  double eps;
  int32_t silu;
};

// x and addend are such that x + addend is the sum: where the forward wrote it, x is the sum and
// addend null. dsum, null or (n, hw, first): what else reaches the sum, and is added to dx.
struct Backward {
  Sizes size;
  Types type;
  Layout at;
  const void *dy, *dsum, *x, *skip, *addend, *mean, *rstd, *weight, *bias, *film;
  void *dx, *dskip, *dweight, *dbias;
  void *dfilm, *daddend;  // null where not wanted; dfilm (n, 2c), daddend (n, first) or (first)
  // Scratch, (n, 3, c): what each image adds to dbias, dweight and daddend, to be summed in their
  // order.
  void* sums;
  int32_t daddend_rows;  // n, or 1: summed over the images
  int32_t silu;
};

}  // namespace pdfast

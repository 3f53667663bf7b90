// The ops pdfast::group_norm_silu and its backward below autograd: what the registration calls.

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

namespace pdfast {

using Optional = std::optional<at::Tensor>;
using OptionalType = std::optional<at::ScalarType>;
using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using Gradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// y, the sum (empty unless keep_sum), mean, rstd.
Outputs forward(const at::Tensor& x, const Optional& addend, const Optional& residual,
                const Optional& skip, const at::Tensor& weight, const at::Tensor& bias,
                const Optional& film, int64_t groups, double eps, bool silu, bool keep_sum);

// dx, dskip, dweight, dbias, dfilm, daddend; what does not apply is empty. daddend has the addend's
// type or, without one, `daddend_type`, by default that of the statistics.
Gradients backward(const at::Tensor& dy, const Optional& dsum, const at::Tensor& x,
                   const Optional& addend, const Optional& skip, const at::Tensor& mean,
                   const at::Tensor& rstd, const at::Tensor& weight, const at::Tensor& bias,
                   const Optional& film, int64_t groups, bool silu, int64_t daddend_rows,
                   OptionalType daddend_type);

// The sum over pixels of a gradient of the sum, and over images where `rows` is 1, not n.
at::Tensor addend_gradient(const at::Tensor& dsum, int64_t rows, at::ScalarType type);

}  // namespace pdfast

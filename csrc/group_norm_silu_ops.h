// The ops pdfast::group_norm_silu and its backward below autograd, for the registration.

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

// Returns y, the sum (empty unless keep_sum), mean and rstd.
Outputs forward(const at::Tensor& x, const Optional& addend, const Optional& residual,
                const Optional& skip, const at::Tensor& weight, const at::Tensor& bias,
                const Optional& film, int64_t groups, double eps, bool silu, bool keep_sum);

// Returns dx, dskip, dweight, dbias, dfilm and daddend; those that do not apply are empty. daddend
// has the addend's type or, without an addend, `daddend_type`, by default that of the statistics.
Gradients backward(const at::Tensor& dy, const Optional& dsum, const at::Tensor& x,
                   const Optional& addend, const Optional& skip, const at::Tensor& mean,
                   const at::Tensor& rstd, const at::Tensor& weight, const at::Tensor& bias,
                   const Optional& film, int64_t groups, bool silu, int64_t daddend_rows,
                   OptionalType daddend_type);

// Sums a gradient of the sum over pixels, and over images if `rows` is 1 rather than n.
at::Tensor addend_gradient(const at::Tensor& dsum, int64_t rows, at::ScalarType type);

}  // namespace pdfast

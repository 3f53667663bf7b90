// pdfast::group_norm_silu and its backward as PyTorch ops: checks, allocation, threads, autograd.
// Their fake (shape-only) implementations are in kernels/group_norm_silu.py.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <string>
#include <tuple>

#include "group_norm_silu_cpu.h"
#ifdef PDFAST_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "group_norm_silu_cuda.h"
#endif

namespace pdfast {

cpu::Isa cpu_isa = cpu::best_isa();  // module.cpp lets tests choose another

namespace {

using at::Tensor;
using Film = std::optional<Tensor>;
using Outputs = std::tuple<Tensor, Tensor, Tensor>;
using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor>;
constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;

// ---- what the caller may pass

Dtype dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case at::kFloat: return Dtype::f32;
    case at::kDouble: return Dtype::f64;
    case at::kBFloat16: return Dtype::bf16;
    case at::kHalf: return Dtype::f16;
    default:
      TORCH_CHECK_TYPE(false, name, " must be float32, bfloat16, float16 or float64, not ",
                       t.scalar_type());
  }
}

at::ScalarType statistics_of(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

void check_like(const Tensor& t, const Tensor& x, const char* name, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(t.device() == x.device(), name, " is on ", t.device(), ", but x on ",
                    x.device());
  TORCH_CHECK_VALUE(t.sizes() == shape, name, " must have shape ", shape, ", not ", t.sizes());
  const bool plain = t.scalar_type() == at::kFloat && x.scalar_type() != at::kDouble;
  TORCH_CHECK_TYPE(plain || t.scalar_type() == x.scalar_type(), name, " must be ",
                   x.scalar_type(), " as x", x.scalar_type() == at::kDouble ? "" : ", or Float",
                   ", not ", t.scalar_type());
}

// Raises ValueError or TypeError, naming the argument; returns the sizes.
Sizes check(const Tensor& x, const Tensor& weight, const Tensor& bias, const Film& film,
            int64_t groups) {
  TORCH_CHECK_VALUE(x.dim() == 4, "x must have shape (N, C, H, W), not ", x.sizes());
  TORCH_CHECK_VALUE(x.numel() > 0, "x is empty: its shape is ", x.sizes());
  TORCH_CHECK_VALUE(x.device().is_cpu() || x.device().is_cuda(),
                    "x must be on a CPU or a CUDA device, not on ", x.device());
  const Dtype dtype = dtype_of(x, "x");
  TORCH_CHECK_TYPE(x.device().is_cpu() || dtype != Dtype::f64, "x may be float64 on a CPU only");
  const int64_t n = x.size(0), c = x.size(1);
  TORCH_CHECK_VALUE(groups >= 1 && c % groups == 0, "groups must divide the ", c,
                    " channels of x, and ", groups, " does not");
  check_like(weight, x, "weight", {c});
  check_like(bias, x, "bias", {c});
  TORCH_CHECK_TYPE(weight.scalar_type() == bias.scalar_type(), "bias must be ",
                   weight.scalar_type(), " as weight, not ", bias.scalar_type());
  if (film) check_like(*film, x, "film", {n, 2 * c});
  return {n, x.size(2) * x.size(3), c, groups};
}

const void* data_or_null(const Film& t) { return t ? t->const_data_ptr() : nullptr; }

Film contiguous(const Film& t) { return t ? Film(t->contiguous()) : t; }

// ---- forward and backward below autograd

Outputs forward(const Tensor& x_, const Tensor& weight_, const Tensor& bias_, const Film& film_,
                int64_t groups, double eps, bool silu) {
  const Sizes size = check(x_, weight_, bias_, film_, groups);
  TORCH_CHECK_VALUE(std::isfinite(eps) && eps >= 0, "eps must be finite and at least 0, not ", eps);
  const Tensor x = x_.contiguous(kChannelsLast), weight = weight_.contiguous(),
               bias = bias_.contiguous();
  const Film film = contiguous(film_);
  const auto statistics =
      x.options().dtype(statistics_of(x)).memory_format(at::MemoryFormat::Contiguous);
  Tensor y = at::empty_like(x, kChannelsLast), mean = at::empty({size.n, groups}, statistics),
         rstd = at::empty({size.n, groups}, statistics);
  const Types type{dtype_of(x, "x"), dtype_of(weight, "weight"),
                   film ? dtype_of(*film, "film") : dtype_of(x, "x"), dtype_of(x, "x")};
  const Layout at{size.c, 0, 2 * size.c};
  const Forward p{size, type, at, x.const_data_ptr(), nullptr, nullptr, nullptr,
                  weight.const_data_ptr(), bias.const_data_ptr(), data_or_null(film),
                  y.mutable_data_ptr(), nullptr, mean.mutable_data_ptr(), rstd.mutable_data_ptr(),
                  eps, silu};
#ifdef PDFAST_CUDA
  if (x.is_cuda()) {
    const c10::cuda::CUDAGuard guard(x.device());
    forward_cuda(p, c10::cuda::getCurrentCUDAStream().stream());
    return {y, mean, rstd};
  }
#endif
  const cpu::Tasks tasks = cpu::tasks_of(size, type.x);
  const auto run = cpu::kernels_of(cpu_isa).forward;
  at::parallel_for(0, tasks.total, tasks.grain,
                   [&](int64_t begin, int64_t end) { run(p, tasks, begin, end); });
  return {y, mean, rstd};
}

Gradients backward(const Tensor& dy_, const Tensor& x_, const Tensor& mean, const Tensor& rstd,
                   const Tensor& weight_, const Tensor& bias_, const Film& film_, int64_t groups,
                   bool silu) {
  const Sizes size = check(x_, weight_, bias_, film_, groups);
  check_like(dy_, x_, "dy", x_.sizes());
  TORCH_CHECK_TYPE(dy_.scalar_type() == x_.scalar_type(), "dy must be ", x_.scalar_type(),
                   " as x, not ", dy_.scalar_type());
  for (const auto& [t, name] : {std::pair(&mean, "mean"), std::pair(&rstd, "rstd")}) {
    check_like(*t, x_, name, {size.n, groups});
    TORCH_CHECK_TYPE(t->scalar_type() == statistics_of(x_), name,
                     " must be as group_norm_silu returned it, not ", t->scalar_type());
    TORCH_CHECK_VALUE(t->is_contiguous(), name, " must be contiguous");
  }
  const Tensor dy = dy_.contiguous(kChannelsLast), x = x_.contiguous(kChannelsLast),
               weight = weight_.contiguous(), bias = bias_.contiguous();
  const Film film = contiguous(film_);
  Tensor dx = at::empty_like(x, kChannelsLast), dweight = at::empty_like(weight),
         dbias = at::empty_like(bias),
         dfilm = film ? at::empty_like(*film) : at::empty({0}, weight.options()),
         sums = at::empty({size.n, 3, size.c}, mean.options());
  const Types type{dtype_of(x, "x"), dtype_of(weight, "weight"),
                   film ? dtype_of(*film, "film") : dtype_of(x, "x"), dtype_of(x, "x")};
  const Layout at{size.c, 0, 2 * size.c};
  const Backward p{size, type, at, dy.const_data_ptr(), nullptr, x.const_data_ptr(), nullptr,
                   nullptr, mean.const_data_ptr(), rstd.const_data_ptr(), weight.const_data_ptr(),
                   bias.const_data_ptr(), data_or_null(film), dx.mutable_data_ptr(), nullptr,
                   dweight.mutable_data_ptr(), dbias.mutable_data_ptr(),
                   film ? dfilm.mutable_data_ptr() : nullptr, nullptr, sums.mutable_data_ptr(), 0,
                   silu};
#ifdef PDFAST_CUDA
  if (x.is_cuda()) {
    const c10::cuda::CUDAGuard guard(x.device());
    backward_cuda(p, c10::cuda::getCurrentCUDAStream().stream());
    return {dx, dweight, dbias, dfilm};
  }
#endif
  const cpu::Tasks tasks = cpu::tasks_of(size, type.x);
  const auto run = cpu::kernels_of(cpu_isa).backward;
  at::parallel_for(0, tasks.total, tasks.grain,
                   [&](int64_t begin, int64_t end) { run(p, tasks, begin, end); });
  cpu::reduce_images(p, 0, size.c);
  return {dx, dweight, dbias, dfilm};
}

// ---- autograd

Outputs call_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const Film& film,
                     int64_t groups, double eps, bool silu) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pdfast::group_norm_silu", "")
                             .typed<decltype(call_forward)>();
  const at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(x, weight, bias, film, groups, eps, silu);
}

const auto& backward_op() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pdfast::group_norm_silu_backward", "")
                             .typed<decltype(backward)>();
  return op;
}

bool any_requires_grad(std::initializer_list<const Tensor*> tensors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const Tensor* t : tensors) {
    if (t->defined() && t->requires_grad()) return true;
  }
  return false;
}

class Forward_ : public torch::autograd::Function<Forward_> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const Tensor& x, const Tensor& weight,
                                                const Tensor& bias, const Film& film,
                                                int64_t groups, double eps, bool silu) {
    auto [y, mean, rstd] = call_forward(x, weight, bias, film, groups, eps, silu);
    ctx->save_for_backward({x, weight, bias, film.value_or(Tensor()), mean, rstd});
    ctx->saved_data["groups"] = groups;
    ctx->saved_data["silu"] = silu;
    ctx->mark_non_differentiable({mean, rstd});
    ctx->set_materialize_grads(false);  // no zeros for those two
    return {y, mean, rstd};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    if (!grads[0].defined()) return torch::autograd::variable_list(7);
    const auto saved = ctx->get_saved_variables();
    const Film film = saved[3].defined() ? Film(saved[3]) : Film();
    auto [dx, dweight, dbias, dfilm] = backward_op().call(
        grads[0], saved[0], saved[4], saved[5], saved[1], saved[2], film,
        ctx->saved_data["groups"].toInt(), ctx->saved_data["silu"].toBool());
    return {dx, dweight, dbias, film ? dfilm : Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Outputs forward_autograd(const Tensor& x, const Tensor& weight, const Tensor& bias,
                         const Film& film, int64_t groups, double eps, bool silu) {
  const Tensor none;
  if (!any_requires_grad({&x, &weight, &bias, film ? &*film : &none})) {
    return call_forward(x, weight, bias, film, groups, eps, silu);
  }
  const auto out = Forward_::apply(x, weight, bias, film, groups, eps, silu);
  return {out[0], out[1], out[2]};
}

// The backward's own backward is no part of training: refused when it is asked for, not before.
class Backward_ : public torch::autograd::Function<Backward_> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext*,
                                                const Tensor& dy, const Tensor& x,
                                                const Tensor& mean, const Tensor& rstd,
                                                const Tensor& weight, const Tensor& bias,
                                                const Film& film, int64_t groups, bool silu) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [dx, dweight, dbias, dfilm] =
        backward_op().call(dy, x, mean, rstd, weight, bias, film, groups, silu);
    return {dx, dweight, dbias, dfilm};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext*,
                                                 const torch::autograd::variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false,
                                "group_norm_silu has no second derivative: call backward without "
                                "create_graph, or use pdfast.kernels.group_norm_silu.reference");
  }
};

Gradients backward_autograd(const Tensor& dy, const Tensor& x, const Tensor& mean,
                            const Tensor& rstd, const Tensor& weight, const Tensor& bias,
                            const Film& film, int64_t groups, bool silu) {
  const Tensor none;
  if (any_requires_grad({&dy, &x, &weight, &bias, film ? &*film : &none})) {
    const auto out = Backward_::apply(dy, x, mean, rstd, weight, bias, film, groups, silu);
    return {out[0], out[1], out[2], out[3]};
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return backward_op().call(dy, x, mean, rstd, weight, bias, film, groups, silu);
}

}  // namespace
}  // namespace pdfast

TORCH_LIBRARY(pdfast, m) {
  m.def(
      "group_norm_silu(Tensor x, Tensor weight, Tensor bias, Tensor? film, int groups, float eps, "
      "bool silu) -> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "group_norm_silu_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor weight, "
      "Tensor bias, Tensor? film, int groups, bool silu) "
      "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dfilm)");
}

TORCH_LIBRARY_IMPL(pdfast, CPU, m) {
  m.impl("group_norm_silu", pdfast::forward);
  m.impl("group_norm_silu_backward", pdfast::backward);
}

#ifdef PDFAST_CUDA
TORCH_LIBRARY_IMPL(pdfast, CUDA, m) {
  m.impl("group_norm_silu", pdfast::forward);
  m.impl("group_norm_silu_backward", pdfast::backward);
}
#endif

TORCH_LIBRARY_IMPL(pdfast, Autograd, m) {
  m.impl("group_norm_silu", pdfast::forward_autograd);
  m.impl("group_norm_silu_backward", pdfast::backward_autograd);
}

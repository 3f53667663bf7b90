// pdfast::group_norm_silu and its backward as PyTorch ops: autograd and the registration.

#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "group_norm_silu_ops.h"

namespace pdfast {

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const auto& forward_op() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pdfast::group_norm_silu", "")
                             .typed<decltype(forward)>();
  return op;
}

const auto& backward_op() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("pdfast::group_norm_silu_backward", "")
                             .typed<decltype(backward)>();
  return op;
}

Optional optional(const Tensor& t) { return t.defined() ? Optional(t) : Optional(); }

bool requires_grad(const Tensor& t) { return t.requires_grad(); }
bool requires_grad(const Optional& t) { return t && t->requires_grad(); }

template <typename... Tensors>
bool any_requires_grad(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
}

// Saved for the backward: the sum where it is written, else x and the addend. With a residual the
// sum is always written, so the residual need not be saved.
class Forward_ : public torch::autograd::Function<Forward_> {
 public:
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Optional& addend,
                               const Optional& residual, const Optional& skip,
                               const Tensor& weight, const Tensor& bias, const Optional& film,
                               int64_t groups, double eps, bool silu, bool keep_sum) {
    keep_sum |= residual.has_value();
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [y, sum, mean, rstd] = forward_op().call(x, addend, residual, skip, weight, bias, film,
                                                  groups, eps, silu, keep_sum);
    const Tensor absent;
    ctx->save_for_backward({keep_sum ? sum : x, keep_sum ? absent : addend.value_or(absent),
                            skip.value_or(absent), mean, rstd, weight, bias,
                            film.value_or(absent)});
    auto& data = ctx->saved_data;
    data["groups"] = groups;
    data["silu"] = silu;
    data["residual"] = residual.has_value();
    data["addend_rows"] = int64_t{0};
    if (requires_grad(addend)) {
      data["addend_rows"] = addend->dim() == 1 ? int64_t{1} : addend->size(0);
      data["addend_sizes"] = addend->sizes().vec();
      data["addend_type"] = addend->scalar_type();
    }
    ctx->mark_non_differentiable({mean, rstd});
    ctx->set_materialize_grads(false);  // no zeros for mean, rstd, or an unused sum
    return {y, sum, mean, rstd};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const Tensor &dy = grads[0], &dsum = grads[1];
    if (!dy.defined() && !dsum.defined()) return variable_list(11);
    auto& data = ctx->saved_data;
    const int64_t rows = data["addend_rows"].toInt();
    const auto type = rows ? OptionalType(data["addend_type"].toScalarType()) : OptionalType();
    Tensor dx = dsum, dskip, dweight, dbias, dfilm, daddend;
    if (dy.defined()) {
      const auto saved = ctx->get_saved_variables();
      std::tie(dx, dskip, dweight, dbias, dfilm, daddend) = backward_op().call(
          dy, optional(dsum), saved[0], optional(saved[1]), optional(saved[2]), saved[3], saved[4],
          saved[5], saved[6], optional(saved[7]), data["groups"].toInt(), data["silu"].toBool(),
          rows, type);
      if (!saved[2].defined()) dskip = Tensor();
      if (!saved[7].defined()) dfilm = Tensor();
    } else if (rows) {
      daddend = addend_gradient(dsum, rows, *type);
    }
    daddend = rows ? daddend.view(data["addend_sizes"].toIntVector()) : Tensor();
    return {dx,    daddend, data["residual"].toBool() ? dx : Tensor(),
            dskip, dweight, dbias, dfilm, Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

Outputs forward_autograd(const Tensor& x, const Optional& addend, const Optional& residual,
                         const Optional& skip, const Tensor& weight, const Tensor& bias,
                         const Optional& film, int64_t groups, double eps, bool silu,
                         bool keep_sum) {
  if (any_requires_grad(x, addend, residual, skip, weight, bias, film)) {
    const auto out = Forward_::apply(x, addend, residual, skip, weight, bias, film, groups, eps,
                                     silu, keep_sum);
    return {out[0], keep_sum ? out[1] : at::empty({0}, x.options()), out[2], out[3]};
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return forward_op().call(x, addend, residual, skip, weight, bias, film, groups, eps, silu,
                           keep_sum);
}

// Training needs no second derivative: the backward refuses its own backward when that is called.
class Backward_ : public torch::autograd::Function<Backward_> {
 public:
  static variable_list forward(AutogradContext*, const Tensor& dy, const Optional& dsum,
                               const Tensor& x, const Optional& addend, const Optional& skip,
                               const Tensor& mean, const Tensor& rstd, const Tensor& weight,
                               const Tensor& bias, const Optional& film, int64_t groups, bool silu,
                               int64_t daddend_rows, OptionalType daddend_type) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [dx, dskip, dweight, dbias, dfilm, daddend] =
        backward_op().call(dy, dsum, x, addend, skip, mean, rstd, weight, bias, film, groups, silu,
                           daddend_rows, daddend_type);
    return {dx, dskip, dweight, dbias, dfilm, daddend};
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false,
                                "group_norm_silu has no second derivative: call backward without "
                                "create_graph, or use pdfast.kernels.group_norm_silu.reference");
  }
};

Gradients backward_autograd(const Tensor& dy, const Optional& dsum, const Tensor& x,
                            const Optional& addend, const Optional& skip, const Tensor& mean,
                            const Tensor& rstd, const Tensor& weight, const Tensor& bias,
                            const Optional& film, int64_t groups, bool silu, int64_t daddend_rows,
                            OptionalType daddend_type) {
  if (any_requires_grad(dy, dsum, x, addend, skip, weight, bias, film)) {
    const auto out = Backward_::apply(dy, dsum, x, addend, skip, mean, rstd, weight, bias, film,
                                      groups, silu, daddend_rows, daddend_type);
    return {out[0], out[1], out[2], out[3], out[4], out[5]};
  }
  const at::AutoDispatchBelowADInplaceOrView guard;
  return backward_op().call(dy, dsum, x, addend, skip, mean, rstd, weight, bias, film, groups, silu,
                            daddend_rows, daddend_type);
}

}  // namespace
}  // namespace pdfast

TORCH_LIBRARY(pdfast, m) {
  m.def(
      "group_norm_silu(Tensor x, Tensor? addend, Tensor? residual, Tensor? skip, Tensor weight, "
      "Tensor bias, Tensor? film, int groups, float eps, bool silu, bool keep_sum) "
      "-> (Tensor y, Tensor sum, Tensor mean, Tensor rstd)");
  m.def(
      "group_norm_silu_backward(Tensor dy, Tensor? dsum, Tensor x, Tensor? addend, Tensor? skip, "
      "Tensor mean, Tensor rstd, Tensor weight, Tensor bias, Tensor? film, int groups, bool silu, "
      "int daddend_rows, ScalarType? daddend_type=None) -> (Tensor dx, Tensor dskip, "
      "Tensor dweight, Tensor dbias, Tensor dfilm, Tensor daddend)");
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

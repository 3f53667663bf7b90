// pdfast::group_norm_silu and its backward on tensors: checks, allocation, threads, and the cases
// that are composed of PyTorch's ops because no kernel covers them.
// Autograd and the registration are in group_norm_silu_autograd.cpp, the fake (shape-only)
// implementations in kernels/group_norm_silu.py.

#include <ATen/Parallel.h>
#include <ATen/ops/add.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <cmath>
#include <string>

#include "group_norm_silu_cpu.h"
#include "group_norm_silu_ops.h"
#ifdef PDFAST_CUDA
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "group_norm_silu_cuda.h"
#endif

namespace pdfast {

cpu::Isa cpu_isa = cpu::best_isa();  // module.cpp lets tests choose another

namespace {

using at::Tensor;
constexpr auto kChannelsLast = at::MemoryFormat::ChannelsLast;
constexpr int64_t kVectorBytes = 16;  // that the CUDA kernels read at a time

// ---- checks of the arguments

Dtype dtype_of(at::ScalarType type, const char* name) {
  switch (type) {
    case at::kFloat: return Dtype::f32;
    case at::kDouble: return Dtype::f64;
    case at::kBFloat16: return Dtype::bf16;
    case at::kHalf: return Dtype::f16;
    default:
      TORCH_CHECK_TYPE(false, name, " must be float32, bfloat16, float16 or float64, not ", type);
  }
}

// The type in which x is computed: that of the statistics, and of a sum before it is rounded.
at::ScalarType wide_of(const Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

void check_type(at::ScalarType type, const Tensor& x, const char* name) {
  const bool plain = type == at::kFloat && x.scalar_type() != at::kDouble;
  TORCH_CHECK_TYPE(plain || type == x.scalar_type(), name, " must be ", x.scalar_type(), " as x",
                   x.scalar_type() == at::kDouble ? "" : ", or Float", ", not ", type);
}

void check_place(const Tensor& t, const Tensor& x, const char* name, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(t.device() == x.device(), name, " is on ", t.device(), ", but x on ",
                    x.device());
  TORCH_CHECK_VALUE(t.sizes() == shape, name, " must have shape ", shape, ", not ", t.sizes());
}

void check_like(const Tensor& t, const Tensor& x, const char* name, at::IntArrayRef shape) {
  check_place(t, x, name, shape);
  check_type(t.scalar_type(), x, name);
}

void check_images(const Tensor& t, const Tensor& x, const char* name, at::IntArrayRef shape) {
  check_place(t, x, name, shape);
  TORCH_CHECK_TYPE(t.scalar_type() == x.scalar_type(), name, " must be ", x.scalar_type(),
                   " as x, not ", t.scalar_type());
}

// Raises ValueError or TypeError, naming the argument; returns the sizes.
Sizes check(const Tensor& x, const Optional& addend, const Optional& skip, const Tensor& weight,
            const Tensor& bias, const Optional& film, int64_t groups) {
  TORCH_CHECK_VALUE(x.dim() == 4, "x must have shape (N, C, H, W), not ", x.sizes());
  TORCH_CHECK_VALUE(x.numel() > 0, "x is empty: its shape is ", x.sizes());
  TORCH_CHECK_VALUE(x.device().is_cpu() || x.device().is_cuda(),
                    "x must be on a CPU or a CUDA device, not on ", x.device());
  const Dtype dtype = dtype_of(x.scalar_type(), "x");
  TORCH_CHECK_TYPE(x.device().is_cpu() || dtype != Dtype::f64, "x may be float64 on a CPU only");
  const int64_t n = x.size(0), first = x.size(1);
  int64_t c = first;
  if (addend) {
    TORCH_CHECK_VALUE(addend->dim() == 1 || addend->dim() == 2, "addend must have shape (", first,
                      ") or (", n, ", ", first, "), not ", addend->sizes());
    addend->dim() == 1 ? check_like(*addend, x, "addend", {first})
                       : check_like(*addend, x, "addend", {n, first});
  }
  if (skip) {
    TORCH_CHECK_VALUE(skip->dim() == 4 && skip->size(1) > 0,
                      "skip must have shape (N, C, H, W), none of them 0, not ", skip->sizes());
    check_images(*skip, x, "skip", {n, skip->size(1), x.size(2), x.size(3)});
    c += skip->size(1);
  }
  TORCH_CHECK_VALUE(groups >= 1 && c % groups == 0, "groups must divide the ", c, " channels of x",
                    skip ? " and skip" : "", ", and ", groups, " does not");
  check_like(weight, x, "weight", {c});
  check_like(bias, x, "bias", {c});
  TORCH_CHECK_TYPE(weight.scalar_type() == bias.scalar_type(), "bias must be ",
                   weight.scalar_type(), " as weight, not ", bias.scalar_type());
  if (film) check_like(*film, x, "film", {n, 2 * c});
  return {n, x.size(2) * x.size(3), c, groups};
}

// ---- layouts

bool aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % kVectorBytes == 0;
}

// Images as the kernels read them, dense and channels-last; `vectors`: read only by whole vectors.
Tensor laid_out(const Tensor& t, bool vectors = false) {
  const Tensor dense = t.contiguous(kChannelsLast);
  return vectors && !aligned(dense) ? dense.clone() : dense;
}

Optional laid_out(const Optional& t, bool vectors = false) {
  return t ? Optional(laid_out(*t, vectors)) : std::nullopt;
}

// A tensor (k) or (n, k), copied unless its rows have no gaps and, on CUDA, are whole vectors.
Tensor rows(const Tensor& t) {
  bool usable = t.stride(-1) == 1;
  if (t.is_cuda() && t.dim() == 2) {
    usable &= aligned(t) && t.stride(0) * t.element_size() % kVectorBytes == 0;
  }
  return usable ? t : t.contiguous();
}

Optional rows(const Optional& t) { return t ? Optional(rows(*t)) : std::nullopt; }

int64_t row_stride(const Optional& t) { return t && t->dim() == 2 ? t->stride(0) : 0; }

const void* data_or_null(const Optional& t) { return t ? t->const_data_ptr() : nullptr; }

void* mutable_or_null(const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; }

Tensor images(const Tensor& like, int64_t channels) {
  return at::empty({like.size(0), channels, like.size(2), like.size(3)},
                   like.options().memory_format(kChannelsLast));
}

Tensor none(const Tensor& like) { return at::empty({0}, like.options()); }

// ---- the kernels

// The inputs of both passes, laid out in memory as the kernels read them.
struct Operands {
  Tensor x;
  Optional skip, addend;
  Tensor weight, bias;
  Optional film;
  Sizes size;
  Types type;
  Layout at;

  Operands(const Tensor& x_, const Optional& skip_, const Optional& addend_, const Tensor& weight_,
           const Tensor& bias_, const Optional& film_, int64_t groups)
      : x(laid_out(x_, skip_.has_value())),
        skip(laid_out(skip_, true)),
        addend(rows(addend_)),
        weight(weight_.contiguous()),
        bias(bias_.contiguous()),
        film(rows(film_)),
        size{x.size(0), x.size(2) * x.size(3), weight.size(0), groups},
        type{kind(x), kind(weight), film ? kind(*film) : kind(x), addend ? kind(*addend) : kind(x)},
        at{x.size(1), row_stride(addend), row_stride(film)} {}

  static Dtype kind(const Tensor& t) { return dtype_of(t.scalar_type(), "x"); }
};

template <typename Problem, typename Run>
void run_on_cpu(const Problem& p, Run run) {
  const cpu::Tasks tasks = cpu::tasks_of(p.size, p.type.x);
  at::parallel_for(0, tasks.total, tasks.grain,
                   [&](int64_t begin, int64_t end) { run(p, tasks, begin, end); });
}

Outputs run_forward(const Operands& in, const Optional& residual_, double eps, bool silu,
                    bool keep_sum) {
  const Tensor& x = in.x;
  const Optional residual = laid_out(residual_);
  const auto statistics = x.options().dtype(wide_of(x));
  Tensor y = images(x, in.size.c), sum = keep_sum ? at::empty_like(x, kChannelsLast) : none(x),
         mean = at::empty({in.size.n, in.size.groups}, statistics),
         rstd = at::empty({in.size.n, in.size.groups}, statistics);
  const Forward p{in.size, in.type, in.at, x.const_data_ptr(), data_or_null(in.skip),
                  data_or_null(in.addend), data_or_null(residual), in.weight.const_data_ptr(),
                  in.bias.const_data_ptr(), data_or_null(in.film), y.mutable_data_ptr(),
                  mutable_or_null(sum), mean.mutable_data_ptr(), rstd.mutable_data_ptr(), eps,
                  silu};
#ifdef PDFAST_CUDA
  if (x.is_cuda()) {
    const c10::cuda::CUDAGuard guard(x.device());
    forward_cuda(p, c10::cuda::getCurrentCUDAStream().stream());
    return {y, sum, mean, rstd};
  }
#endif
  run_on_cpu(p, cpu::kernels_of(cpu_isa).forward);
  return {y, sum, mean, rstd};
}

Gradients run_backward(const Operands& in, const Tensor& dy_, const Optional& dsum_,
                       const Tensor& mean, const Tensor& rstd, bool silu, int64_t daddend_rows,
                       at::ScalarType daddend_type) {
  const Tensor& x = in.x;
  const Tensor dy = laid_out(dy_, in.skip.has_value());
  const Optional dsum = laid_out(dsum_);
  Tensor dx = at::empty_like(x, kChannelsLast),
         dskip = in.skip ? at::empty_like(*in.skip, kChannelsLast) : none(x),
         dweight = at::empty_like(in.weight), dbias = at::empty_like(in.bias),
         dfilm = in.film ? at::empty({in.size.n, 2 * in.size.c}, in.film->options())
                         : none(in.weight),
         daddend = none(in.weight), sums = at::empty({in.size.n, 3, in.size.c}, mean.options());
  Types type = in.type;
  if (daddend_rows) {
    const auto options = x.options().dtype(daddend_type);
    daddend = daddend_rows == 1 ? at::empty({in.at.first}, options)
                                : at::empty({in.size.n, in.at.first}, options);
    type.addend = dtype_of(daddend_type, "daddend");
  }
  const Backward p{in.size, type, in.at, dy.const_data_ptr(), data_or_null(dsum),
                   x.const_data_ptr(), data_or_null(in.skip), data_or_null(in.addend),
                   mean.const_data_ptr(), rstd.const_data_ptr(), in.weight.const_data_ptr(),
                   in.bias.const_data_ptr(), data_or_null(in.film), dx.mutable_data_ptr(),
                   mutable_or_null(dskip), dweight.mutable_data_ptr(), dbias.mutable_data_ptr(),
                   mutable_or_null(dfilm), mutable_or_null(daddend), sums.mutable_data_ptr(),
                   static_cast<int32_t>(daddend_rows), silu};
#ifdef PDFAST_CUDA
  if (x.is_cuda()) {
    const c10::cuda::CUDAGuard guard(x.device());
    backward_cuda(p, c10::cuda::getCurrentCUDAStream().stream());
    return {dx, dskip, dweight, dbias, dfilm, daddend};
  }
#endif
  run_on_cpu(p, cpu::kernels_of(cpu_isa).backward);
  cpu::reduce_images(p, 0, in.size.c);
  return {dx, dskip, dweight, dbias, dfilm, daddend};
}

// ---- composed of PyTorch's ops: on a CPU, and on CUDA where a vector would straddle x and skip

bool has_kernel(const Tensor& x, const Optional& addend, const Optional& residual,
                const Optional& skip) {
  if (!x.is_cuda()) return !addend && !residual && !skip;
  const int64_t vector = kVectorBytes / x.element_size();
  return !skip || (x.size(1) % vector == 0 && skip->size(1) % vector == 0);
}

// x + addend + residual, rounded to x's type at most once; x itself if both are absent.
Tensor sum_of(const Tensor& x, const Optional& addend, const Optional& residual, bool rounded) {
  Tensor s = laid_out(x);
  if (!addend && !residual) return s;
  const at::ScalarType wide = wide_of(x);
  s = s.to(wide);
  if (addend) s = at::add(s, addend->to(wide).unsqueeze(-1).unsqueeze(-1));
  if (residual) s = at::add(s, laid_out(*residual).to(wide));
  return laid_out(rounded ? s.to(x.scalar_type()) : s);
}

// The sum and skip's channels as one tensor, and the parameters in a type that goes with it: if the
// sum was widened, so are they.
Operands joined(const Tensor& s, const Optional& skip, const Tensor& weight, const Tensor& bias,
                const Optional& film, int64_t groups, bool widened) {
  const auto wide = [&](const Tensor& t) { return widened ? t.to(s.scalar_type()) : t; };
  const Tensor x = skip ? at::cat({s, wide(laid_out(*skip))}, 1) : s;
  return Operands(x, {}, {}, wide(weight), wide(bias), film ? Optional(wide(*film)) : film, groups);
}

}  // namespace

Tensor addend_gradient(const Tensor& dsum, int64_t rows, at::ScalarType type) {
  const auto wide = wide_of(dsum);
  return (rows == 1 ? dsum.sum({0, 2, 3}, false, wide) : dsum.sum({2, 3}, false, wide)).to(type);
}

Outputs forward(const Tensor& x, const Optional& addend, const Optional& residual,
                const Optional& skip, const Tensor& weight, const Tensor& bias,
                const Optional& film, int64_t groups, double eps, bool silu, bool keep_sum) {
  check(x, addend, skip, weight, bias, film, groups);
  if (residual) check_images(*residual, x, "residual", x.sizes());
  TORCH_CHECK_VALUE(std::isfinite(eps) && eps >= 0, "eps must be finite and at least 0, not ", eps);
  TORCH_CHECK_VALUE(!keep_sum || addend || residual,
                    "keep_sum needs an addend or a residual: without one the sum is x");
  if (has_kernel(x, addend, residual, skip)) {
    return run_forward({x, skip, addend, weight, bias, film, groups}, residual, eps, silu,
                       keep_sum);
  }
  const Tensor s = sum_of(x, addend, residual, residual || keep_sum);
  const bool widened = s.scalar_type() != x.scalar_type();
  auto [y, _, mean, rstd] = run_forward(joined(s, skip, weight, bias, film, groups, widened), {},
                                        eps, silu, false);
  return {y.to(x.scalar_type()), keep_sum ? s : none(x), mean, rstd};
}

Gradients backward(const Tensor& dy, const Optional& dsum, const Tensor& x, const Optional& addend,
                   const Optional& skip, const Tensor& mean, const Tensor& rstd,
                   const Tensor& weight, const Tensor& bias, const Optional& film, int64_t groups,
                   bool silu, int64_t daddend_rows, OptionalType daddend_type) {
  const Sizes size = check(x, addend, skip, weight, bias, film, groups);
  check_images(dy, x, "dy", {size.n, size.c, x.size(2), x.size(3)});
  if (dsum) check_images(*dsum, x, "dsum", x.sizes());
  for (const auto& [t, name] : {std::pair(&mean, "mean"), std::pair(&rstd, "rstd")}) {
    check_place(*t, x, name, {size.n, groups});
    TORCH_CHECK_TYPE(t->scalar_type() == wide_of(x), name,
                     " must be as group_norm_silu returned it, not ", t->scalar_type());
    TORCH_CHECK_VALUE(t->is_contiguous(), name, " must be contiguous");
  }
  TORCH_CHECK_VALUE(daddend_rows == 0 || daddend_rows == 1 || daddend_rows == size.n,
                    "daddend_rows must be 0, 1 or ", size.n, ", not ", daddend_rows);
  const auto type = addend ? addend->scalar_type() : daddend_type.value_or(wide_of(x));
  check_type(type, x, "daddend_type");
  if (has_kernel(x, addend, {}, skip) && (x.is_cuda() || (!dsum && !daddend_rows))) {
    return run_backward({x, skip, addend, weight, bias, film, groups}, dy, dsum, mean, rstd, silu,
                        daddend_rows, type);
  }
  Tensor s = sum_of(x, addend, {}, false);
  if (dsum || daddend_rows) s = s.to(wide_of(x));  // round dx only once, after adding dsum
  const bool widened = s.scalar_type() != x.scalar_type();
  auto [dx, dskip, dweight, dbias, dfilm, daddend] =
      run_backward(joined(s, skip, weight, bias, film, groups, widened), dy.to(s.scalar_type()), {},
                   mean, rstd, silu, 0, type);
  const int64_t first = x.size(1);
  dskip = skip ? laid_out(dx.narrow(1, first, size.c - first)).to(x.scalar_type()) : none(x);
  if (skip) dx = dx.narrow(1, 0, first);
  if (dsum) dx = at::add(dx, dsum->to(dx.scalar_type()));
  dx = laid_out(dx);
  if (daddend_rows) daddend = addend_gradient(dx, daddend_rows, type);
  return {dx.to(x.scalar_type()),        dskip, dweight.to(weight.scalar_type()),
          dbias.to(bias.scalar_type()),  film ? dfilm.to(film->scalar_type()) : none(weight),
          daddend_rows ? daddend : none(weight)};
}

}  // namespace pdfast

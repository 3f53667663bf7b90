// The CPU kernels of group_norm_silu, built once for every instruction set: each including file
// defines PDFAST_ISA (a namespace) and PDFAST_VECTOR_BYTES. Vectors are the compiler's own
// extension, so one source serves all. Lanes are channels, which are adjacent in channels-last
// memory, so any number of channels per group works alike.
//
// Forward: two passes for exact statistics, and one to apply them; x comes from memory once, and
// later passes find the slab in L2. Backward: one pass for du and its sums, one for dx. A pass sums
// 64 pixels in the working type, then in double, so that large images lose no digits. Results do
// not depend on the number of threads.

#include "group_norm_silu_vectors.h"

namespace pdfast::cpu {
namespace PDFAST_ISA {

constexpr int64_t kBlock = 64;  // pixels summed in the working type

// A slab of one image, as a task sees it; `data` points at its first pixel's first channel.
struct Slab {
  int64_t image, c0, channels, offset;
};

inline Slab slab_of(const Sizes& size, const Tasks& tasks, int64_t task) {
  const int64_t image = task / tasks.per_image, c0 = task % tasks.per_image * tasks.slab;
  const int64_t left = size.c - c0;
  return {image, c0, left < tasks.slab ? left : tasks.slab, image * size.hw * size.c + c0};
}

// Arrays of one number per channel of a slab, padded to whole vectors.
template <typename A>
class Scratch {
 public:
  Scratch(int64_t channels, int arrays)
      : stride_((channels + 63) / 64 * 64), memory_(new A[stride_ * arrays]()) {}
  A* operator[](int k) { return memory_.get() + k * stride_; }

 private:
  int64_t stride_;
  std::unique_ptr<A[]> memory_;
};

// Calls body(first channel, lanes) for the vectors of one pixel; the last vector may be partial.
template <int L, typename F>
inline void each_vector(int64_t channels, F body) {
  int64_t j = 0;
  for (; j + L <= channels; j += L) body(j, L);
  if (j < channels) body(j, static_cast<int>(channels - j));
}

// Sums per channel over all pixels: term(pixel, j, lanes, s1, s2) adds to two accumulators.
template <typename A, typename F>
inline void sum_pixels(int64_t hw, int64_t channels, Scratch<double>& total, F term) {
  using V = typename Lanes<A>::V;
  constexpr int L = Lanes<A>::L;
  double *t1 = total[0], *t2 = total[1];
  std::memset(t1, 0, channels * sizeof(double));
  std::memset(t2, 0, channels * sizeof(double));
  for (int64_t begin = 0; begin < hw; begin += kBlock) {
    const int64_t end = begin + kBlock < hw ? begin + kBlock : hw;
    each_vector<L>(channels, [&](int64_t j, int lanes) {
      V s1[4] = {}, s2[4] = {};  // four chains, because an addition takes four cycles
      int64_t p = begin;
      for (; p + 4 <= end; p += 4) {
        for (int k = 0; k < 4; ++k) term(p + k, j, lanes, s1[k], s2[k]);
      }
      for (; p < end; ++p) term(p, j, lanes, s1[0], s2[0]);
      A sum1[L], sum2[L];
      store(sum1, (s1[0] + s1[1]) + (s1[2] + s1[3]), L);
      store(sum2, (s2[0] + s2[1]) + (s2[2] + s2[3]), L);
      for (int k = 0; k < L; ++k) t1[j + k] += sum1[k], t2[j + k] += sum2[k];
    });
  }
}

// Reads channels `begin` .. of a tensor into the working type. fill() takes the type at run time.
template <typename T>
inline void widen_row(Work<T>* out, const void* p, int64_t begin, int64_t channels) {
  constexpr int L = Lanes<Work<T>>::L;
  const T* row = static_cast<const T*>(p) + begin;
  each_vector<L>(channels, [&](int64_t j, int n) { store(out + j, load(row + j, n), L); });
}
inline void fill(double* out, const void* p, Dtype, int64_t begin, int64_t channels) {
  widen_row<double>(out, p, begin, channels);
}
inline void fill(float* out, const void* p, Dtype type, int64_t begin, int64_t channels) {
  if (type == Dtype::f32) return widen_row<float>(out, p, begin, channels);
  if (type == Dtype::bf16) return widen_row<bf16>(out, p, begin, channels);
  widen_row<f16>(out, p, begin, channels);
}
template <typename T>
inline void narrow_row(void* p, const Work<T>* in, int64_t begin, int64_t channels) {
  constexpr int L = Lanes<Work<T>>::L;
  T* row = static_cast<T*>(p) + begin;
  each_vector<L>(channels, [&](int64_t j, int n) { store(row + j, load(in + j, L), n); });
}
inline void drain(void* p, const double* in, Dtype, int64_t begin, int64_t channels) {
  narrow_row<double>(p, in, begin, channels);
}
inline void drain(void* p, const float* in, Dtype type, int64_t begin, int64_t channels) {
  if (type == Dtype::f32) return narrow_row<float>(p, in, begin, channels);
  if (type == Dtype::bf16) return narrow_row<bf16>(p, in, begin, channels);
  narrow_row<f16>(p, in, begin, channels);
}

// Per-channel parameters of a slab: u = xhat * (weight * scale) + (bias * scale + shift), where
// scale includes FiLM's 1.
template <typename A>
struct Params {
  A *weight, *bias, *scale, *shift;

  template <typename Problem>
  Params(const Problem& p, const Slab& slab, Scratch<A>& work, int first)
      : weight(work[first]), bias(work[first + 1]), scale(work[first + 2]), shift(work[first + 3]) {
    fill(weight, p.weight, p.type.param, slab.c0, slab.channels);
    fill(bias, p.bias, p.type.param, slab.c0, slab.channels);
    if (p.film) {
      const int64_t row = slab.image * p.at.film_stride + slab.c0;
      fill(scale, p.film, p.type.film, row, slab.channels);
      fill(shift, p.film, p.type.film, row + p.size.c, slab.channels);
    }
    for (int64_t k = 0; k < slab.channels; ++k) scale[k] = p.film ? 1 + scale[k] : 1;
    if (!p.film) std::memset(shift, 0, slab.channels * sizeof(A));
  }
};

template <typename F>
inline double sum_of(F term, int64_t begin, int64_t count) {
  double sum = 0;
  for (int64_t k = begin; k < begin + count; ++k) sum += term(k);
  return sum;
}

constexpr int kArrays = 9, kDoubles = 4;  // per-channel arrays of a task

// flatten: inlines all calls of a task, so that its loops stay in registers.
template <typename T>
__attribute__((flatten)) void forward_task(const Forward& p, const Slab& slab,
                                            Scratch<Work<T>>& work, Scratch<double>& total) {
  using A = Work<T>;
  using V = typename Lanes<A>::V;
  constexpr int L = Lanes<A>::L;
  const int64_t hw = p.size.hw, c = p.size.c, per_group = c / p.size.groups;
  const int64_t first_group = slab.image * p.size.groups + slab.c0 / per_group;
  const double count = static_cast<double>(hw) * per_group;
  const T* x = static_cast<const T*>(p.x) + slab.offset;
  T* y = static_cast<T*>(p.y) + slab.offset;
  const Params<A> params(p, slab, work, 0);
  A *center = work[4], *a = work[5], *b = work[6];
  double *rstd = total[2], *missed = total[3];
  const auto total1 = [&](int64_t k) { return total[0][k]; };
  const auto total2 = [&](int64_t k) { return total[1][k]; };

  sum_pixels<A>(hw, slab.channels, total, [&](int64_t q, int64_t j, int n, V& s1, V&) {
    s1 += load(x + q * c + j, n);
  });
  for (int64_t g = 0; g < slab.channels; g += per_group) {
    const A mean = static_cast<A>(sum_of(total1, g, per_group) / count);
    for (int64_t k = g; k < g + per_group; ++k) center[k] = mean;
  }

  sum_pixels<A>(hw, slab.channels, total, [&](int64_t q, int64_t j, int n, V& s1, V& s2) {
    const V d = load(x + q * c + j, n) - load(center + j, L);
    s1 += d;
    s2 += d * d;
  });
  for (int64_t g = 0; g < slab.channels; g += per_group) {
    const double rest = sum_of(total1, g, per_group) / count;  // what the rounded mean missed
    const double variance = sum_of(total2, g, per_group) / count - rest * rest;
    const double inverse = 1 / std::sqrt(variance + p.eps);
    static_cast<A*>(p.mean)[first_group + g / per_group] = static_cast<A>(center[g] + rest);
    static_cast<A*>(p.rstd)[first_group + g / per_group] = static_cast<A>(inverse);
    for (int64_t k = g; k < g + per_group; ++k) rstd[k] = inverse, missed[k] = rest;
  }
  for (int64_t k = 0; k < slab.channels; ++k) {
    const double gain = double(params.weight[k]) * params.scale[k] * rstd[k];
    a[k] = static_cast<A>(gain);
    b[k] = static_cast<A>(double(params.bias[k]) * params.scale[k] + params.shift[k] -
                          missed[k] * gain);
  }

  const auto apply = [&](auto silu) {
    for (int64_t q = 0; q < hw; ++q) {
      each_vector<L>(slab.channels, [&](int64_t j, int n) {
        const V d = load(x + q * c + j, n) - load(center + j, L);
        const V u = d * load(a + j, L) + load(b + j, L);
        if constexpr (decltype(silu)::value) {
          store(y + q * c + j, u * sigmoid<A>(u), n);
        } else {
          store(y + q * c + j, u, n);
        }
      });
    }
  };
  p.silu ? apply(std::true_type{}) : apply(std::false_type{});
}

template <typename T>
__attribute__((flatten)) void backward_task(const Backward& p, const Slab& slab,
                                             Scratch<Work<T>>& work, Scratch<double>& total) {
  using A = Work<T>;
  using V = typename Lanes<A>::V;
  constexpr int L = Lanes<A>::L;
  // Where it loses no digits, dx holds du between the passes; elsewhere du is computed again.
  constexpr bool keep = std::is_same_v<T, A>;
  const int64_t hw = p.size.hw, c = p.size.c, per_group = c / p.size.groups;
  const int64_t first_group = slab.image * p.size.groups + slab.c0 / per_group;
  const double count = static_cast<double>(hw) * per_group;
  const T* x = static_cast<const T*>(p.x) + slab.offset;
  const T* dy = static_cast<const T*>(p.dy) + slab.offset;
  T* dx = static_cast<T*>(p.dx) + slab.offset;
  const Params<A> params(p, slab, work, 0);
  A *mean = work[4], *a = work[5], *b = work[6];
  double* rstd = total[2];
  for (int64_t g = 0; g < slab.channels; g += per_group) {
    for (int64_t k = g; k < g + per_group; ++k) {
      mean[k] = static_cast<const A*>(p.mean)[first_group + g / per_group];
      rstd[k] = static_cast<const A*>(p.rstd)[first_group + g / per_group];
    }
  }
  for (int64_t k = 0; k < slab.channels; ++k) {
    a[k] = static_cast<A>(double(params.weight[k]) * params.scale[k] * rstd[k]);
    b[k] = static_cast<A>(double(params.bias[k]) * params.scale[k] + params.shift[k]);
  }

  const auto passes = [&](auto silu) {
    const auto du_of = [&](int64_t q, int64_t j, int n, V d) {
      const V du = load(dy + q * c + j, n);
      if constexpr (!decltype(silu)::value) return du;
      const V u = d * load(a + j, L) + load(b + j, L);
      const V s = sigmoid<A>(u);
      return du * (s * (1 + u * (1 - s)));
    };
    sum_pixels<A>(hw, slab.channels, total, [&](int64_t q, int64_t j, int n, V& s1, V& s2) {
      const V d = load(x + q * c + j, n) - load(mean + j, L);
      const V du = du_of(q, j, n, d);
      if constexpr (keep) store(dx + q * c + j, du, n);
      s1 += du;
      s2 += du * d;
    });
    for (int64_t k = 0; k < slab.channels; ++k) total[1][k] *= rstd[k];  // now of du * xhat

    // dx = a du - constant - (x - mean) slope
    A *constant = work[7], *slope = work[8];
    for (int64_t g = 0; g < slab.channels; g += per_group) {
      const A of_1 = static_cast<A>(
          sum_of([&](int64_t k) { return a[k] * total[0][k]; }, g, per_group) / count);
      const A of_xhat = static_cast<A>(
          sum_of([&](int64_t k) { return a[k] * total[1][k]; }, g, per_group) * rstd[g] / count);
      for (int64_t k = g; k < g + per_group; ++k) constant[k] = of_1, slope[k] = of_xhat;
    }
    A* terms = static_cast<A*>(p.sums) + slab.image * 2 * c + slab.c0;  // of dbias, then dweight
    for (int64_t k = 0; k < slab.channels; ++k) {
      terms[k] = static_cast<A>(params.scale[k] * total[0][k]);
      terms[c + k] = static_cast<A>(params.scale[k] * total[1][k]);
    }

    for (int64_t q = 0; q < hw; ++q) {
      each_vector<L>(slab.channels, [&](int64_t j, int n) {
        const V d = load(x + q * c + j, n) - load(mean + j, L);
        V du;
        if constexpr (keep) {
          du = load(dx + q * c + j, n);
        } else {
          du = du_of(q, j, n, d);
        }
        const V rest = load(constant + j, L) + d * load(slope + j, L);
        store(dx + q * c + j, du * load(a + j, L) - rest, n);
      });
    }
  };
  p.silu ? passes(std::true_type{}) : passes(std::false_type{});

  if (p.dfilm) {
    A *dscale = work[7], *dshift = work[8];
    for (int64_t k = 0; k < slab.channels; ++k) {
      dshift[k] = static_cast<A>(total[0][k]);
      dscale[k] = static_cast<A>(params.weight[k] * total[1][k] + params.bias[k] * total[0][k]);
    }
    const int64_t row = slab.image * 2 * c + slab.c0;
    drain(p.dfilm, dscale, p.type.film, row, slab.channels);
    drain(p.dfilm, dshift, p.type.film, row + c, slab.channels);
  }
}

template <typename T, typename Problem, typename Task>
inline void run(const Problem& p, const Tasks& tasks, int64_t begin, int64_t end, Task task) {
  Scratch<Work<T>> work(tasks.slab, kArrays);
  Scratch<double> total(tasks.slab, kDoubles);
  for (int64_t k = begin; k < end; ++k) task(p, slab_of(p.size, tasks, k), work, total);
}

inline void forward(const Forward& p, const Tasks& tasks, int64_t begin, int64_t end) {
  switch (p.type.x) {
    case Dtype::f32: return run<float>(p, tasks, begin, end, forward_task<float>);
    case Dtype::f64: return run<double>(p, tasks, begin, end, forward_task<double>);
    case Dtype::bf16: return run<bf16>(p, tasks, begin, end, forward_task<bf16>);
    case Dtype::f16: return run<f16>(p, tasks, begin, end, forward_task<f16>);
  }
}

inline void backward(const Backward& p, const Tasks& tasks, int64_t begin, int64_t end) {
  switch (p.type.x) {
    case Dtype::f32: return run<float>(p, tasks, begin, end, backward_task<float>);
    case Dtype::f64: return run<double>(p, tasks, begin, end, backward_task<double>);
    case Dtype::bf16: return run<bf16>(p, tasks, begin, end, backward_task<bf16>);
    case Dtype::f16: return run<f16>(p, tasks, begin, end, backward_task<f16>);
  }
}

}  // namespace PDFAST_ISA

#define PDFAST_PASTE(isa) isa##_kernels
#define PDFAST_NAME(isa) PDFAST_PASTE(isa)
const Kernels* PDFAST_NAME(PDFAST_ISA)() {
  static const Kernels kernels{PDFAST_ISA::forward, PDFAST_ISA::backward};
  return &kernels;
}

}  // namespace pdfast::cpu

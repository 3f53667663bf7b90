// Vectors for group_norm_silu_simd.h, which describes how it is included: types, loads and stores,
// 16-bit conversions, and SiLU's exp. They are the compiler's own vector extension.

#include "group_norm_silu_simd_head.h"

namespace pdfast::cpu {
namespace PDFAST_ISA {

struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Working type A: float, or double for double data. L lanes; I the integers of A's width.
template <typename A>
struct Lanes;
template <>
struct Lanes<float> {
  static constexpr int L = PDFAST_VECTOR_BYTES / 4;
  typedef float V __attribute__((vector_size(PDFAST_VECTOR_BYTES)));
  typedef int32_t I __attribute__((vector_size(PDFAST_VECTOR_BYTES)));
  typedef uint32_t U __attribute__((vector_size(PDFAST_VECTOR_BYTES)));
  typedef uint16_t H __attribute__((vector_size(PDFAST_VECTOR_BYTES / 2)));
};
template <>
struct Lanes<double> {
  static constexpr int L = PDFAST_VECTOR_BYTES / 8;
  typedef double V __attribute__((vector_size(PDFAST_VECTOR_BYTES)));
  typedef int64_t I __attribute__((vector_size(PDFAST_VECTOR_BYTES)));
};
template <typename T>
using Work = std::conditional_t<std::is_same_v<T, double>, double, float>;

using VF = Lanes<float>::V;
using IF = Lanes<float>::I;
using UF = Lanes<float>::U;
using HF = Lanes<float>::H;

// ---- 16-bit types. Rounding to nearest even; NaN stays NaN.

inline VF widen(UF h, bf16) { return (VF)(h << 16); }

inline VF widen(UF h, f16) {
  const UF magnitude = h & 0x7fff;
  const UF normal = (magnitude << 13) + (112u << 23);
  const VF subnormal = __builtin_convertvector((IF)magnitude, VF) * 0x1p-24f;
  UF bits = magnitude < 0x400u ? (UF)subnormal : normal;
  bits = magnitude >= 0x7c00u ? normal + (112u << 23) : bits;
  return (VF)(bits | ((h & 0x8000) << 16));
}

inline UF narrow(VF x, bf16) {
  const UF u = (UF)x;
  const UF rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  return x != x ? (u >> 16) | 0x40 : rounded;
}

inline UF narrow(VF x, f16) {
  const UF u = (UF)x, magnitude = u & 0x7fffffff;
  const UF shifted = magnitude - (112u << 23);
  const UF normal = (shifted + 0xfff + ((shifted >> 13) & 1)) >> 13;
  // Adding 0.5 rounds to multiples of 2^-24, the step of float16's subnormal numbers.
  const UF subnormal = (UF)((VF)magnitude + 0.5f) - 0x3f000000u;
  const UF infinite = magnitude > 0x7f800000u ? UF{} + 0x7e00u : UF{} + 0x7c00u;
  UF bits = magnitude < 0x38800000u ? subnormal : normal;
  bits = magnitude >= 0x47800000u ? infinite : bits;
  return bits | ((u >> 16) & 0x8000);
}

// ---- Loads and stores of the first `count` of L lanes; the others are zero, or not written.

template <typename T>
inline auto load(const T* p, int count) {
  using A = Work<T>;
  using V = typename Lanes<A>::V;
  if constexpr (std::is_same_v<T, A>) {
    V v{};
    if (count == Lanes<A>::L) {
      std::memcpy(&v, p, sizeof v);
    } else {
      std::memcpy(&v, p, count * sizeof(T));
    }
    return v;
  } else {
    HF h{};
    if (count == Lanes<A>::L) {
      std::memcpy(&h, p, sizeof h);
    } else {
      std::memcpy(&h, p, count * sizeof(T));
    }
    return widen(__builtin_convertvector(h, UF), T{});
  }
}

template <typename T>
inline void store(T* p, typename Lanes<Work<T>>::V v, int count) {
  using A = Work<T>;
  if constexpr (std::is_same_v<T, A>) {
    if (count == Lanes<A>::L) {
      std::memcpy(p, &v, sizeof v);
    } else {
      std::memcpy(p, &v, count * sizeof(T));
    }
  } else {
    const HF h = __builtin_convertvector(narrow(v, T{}), HF);
    if (count == Lanes<A>::L) {
      std::memcpy(p, &h, sizeof h);
    } else {
      std::memcpy(p, &h, count * sizeof(T));
    }
  }
}

// ---- Arithmetic that the vector extension lacks, by the instruction set.

template <typename V>
inline V clamp(V x, V low, V high) {  // NaN stays NaN
  x = x < low ? low : x;
  return x > high ? high : x;
}
template <typename V>
inline V reciprocal(V x) {
  return 1 / x;
}
#if PDFAST_VECTOR_BYTES == 64
inline VF clamp(VF x, VF low, VF high) {  // min and max return the second if either is NaN
  return (VF)_mm512_min_ps((__m512)high, _mm512_max_ps((__m512)low, (__m512)x));
}
// A Newton step squares the estimate's error of 2^-14, in half of a division's time.
inline VF reciprocal(VF x) {
  const VF r = (VF)_mm512_rcp14_ps((__m512)x);
  return r + r * (1 - x * r);
}
#elif PDFAST_VECTOR_BYTES == 32
inline VF clamp(VF x, VF low, VF high) {
  return (VF)_mm256_min_ps((__m256)high, _mm256_max_ps((__m256)low, (__m256)x));
}
#elif defined(__SSE2__)
inline VF clamp(VF x, VF low, VF high) {
  return (VF)_mm_min_ps((__m128)high, _mm_max_ps((__m128)low, (__m128)x));
}
#endif

// exp(x) = 2^n exp(r), |r| <= ln 2 / 2, by Taylor's series to the type's precision (the next term
// is below 1e-8, 1e-17), x clamped to where 2^n and 1 / (1 + exp(x)) are normal numbers.
template <typename A, int Degree>
struct Series {
  A term[Degree + 1];
  constexpr Series() : term() {
    double factorial = 1;
    for (int k = 0; k <= Degree; ++k) {
      term[k] = static_cast<A>(1 / factorial);
      factorial *= k + 1;
    }
  }
};
template <typename A>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  // Adding `shift` leaves n + 127 in the low bits: the exponent of 2^n.
  static constexpr float limit = 87.0f, shift = 0x1.8p23f + 127, log2e = 0x1.715476p0f;
  static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;  // sum: ln 2
  static constexpr int mantissa = 23, degree = 7;
  static constexpr Series<float, degree> series{};
};
template <>
struct ExpConstants<double> {
  static constexpr double limit = 708.0, shift = 0x1.8p52 + 1023, log2e = 0x1.71547652b82fep0;
  static constexpr double ln2_high = 0x1.62e42fefa38p-1, ln2_low = 0x1.ef35793c7673p-45;
  static constexpr int mantissa = 52, degree = 13;
  static constexpr Series<double, degree> series{};
};

template <typename A>
inline typename Lanes<A>::V exp(typename Lanes<A>::V x) {
  using V = typename Lanes<A>::V;
  using K = ExpConstants<A>;
  x = clamp(x, V{} - K::limit, V{} + K::limit);
  const V shifted = x * K::log2e + K::shift;
  const V n = shifted - K::shift;
  const V r = (x - n * K::ln2_high) - n * K::ln2_low;
  V p = V{} + K::series.term[K::degree];
  for (int k = K::degree - 1; k >= 0; --k) p = p * r + K::series.term[k];
  return p * (V)((typename Lanes<A>::I)shifted << K::mantissa);
}

template <typename A>
inline typename Lanes<A>::V sigmoid(typename Lanes<A>::V u) {
  const typename Lanes<A>::V s = reciprocal(1 + exp<A>(-u));
  return u < -ExpConstants<A>::limit ? typename Lanes<A>::V{} : s;  // exp is clamped there
}

}  // namespace PDFAST_ISA
}  // namespace pdfast::cpu

// The machine under group_norm_silu.cu: CUDA. group_norm_silu_host.h defines the same names.

#pragma once

#include "group_norm_silu_types.cuh"

namespace pdfast {

PDFAST_DEVICE float to_float(float x) { return x; }
PDFAST_DEVICE float to_float(Bf16 x) { return __uint_as_float(uint32_t{x.bits} << 16); }
PDFAST_DEVICE float to_float(F16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

PDFAST_DEVICE void from_float(float x, float& y) { y = x; }
PDFAST_DEVICE void from_float(float x, Bf16& y) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
}
PDFAST_DEVICE void from_float(float x, F16& y) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
}

// Two elements in a word, the first in its low half.
PDFAST_DEVICE uint32_t join(float low, float high, Bf16) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
PDFAST_DEVICE uint32_t join(float low, float high, F16) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
PDFAST_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }
PDFAST_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }

// 16-bit types use ex2.approx and rcp.approx: off by 2^-22 and 2^-23 at most (PTX ISA, "Floating
// Point Instructions"), a thousandth of the rounding of y. float32 uses expf (1 ulp) and an exactly
// rounded reciprocal. It has half as many elements per byte, so it can afford the extra
// instructions. The host build adds the documented bounds to every call, and the tests hold them to
// the acceptance rule.
template <class T>
PDFAST_DEVICE float sigmoid(float u) {
  if constexpr (sizeof(T) == 4) return __frcp_rn(1.0f + expf(-u));
  float e, s;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(u * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(s) : "f"(1.0f + e));
  return s;
}

// a / b, off by 2^-23 at most. The arguments are counts, so neither tiny nor huge.
PDFAST_DEVICE float quotient(float a, float b) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
  return a * inverse;
}
// 1 / sqrt(a) by rsqrt.approx and one Newton step: off by an ulp.
PDFAST_DEVICE float inverse_root(float a) {
  float root;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(a));
  return root + root * (0.5f - 0.5f * a * root * root);
}

template <class T, int V>
PDFAST_DEVICE Pack<T, V> load(const T* from) {
  if constexpr (V > 1) {
    const uint4 raw = __ldg(reinterpret_cast<const uint4*>(from));
    return {{raw.x, raw.y, raw.z, raw.w}};
  } else {
    return {*from};
  }
}

template <class T, int V>
PDFAST_DEVICE void store(T* to, const Pack<T, V>& pack) {
  if constexpr (V > 1) {
    // In assembly: nvcc 13.0 makes four stores of 4 bytes out of a uint4's.
    const uint32_t* w = pack.word;
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
                 : "memory");
  } else {
    *to = pack.value;
  }
}

// A number that the compiler keeps in a register; otherwise it would compute it again for each use.
PDFAST_DEVICE int in_register(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

extern __shared__ __align__(16) unsigned char pdfast_shared[];

// A thread's place in its block, its block's place in the cluster, and their shared memory.
struct Thread : Place {
  PDFAST_DEVICE Thread(const Geometry& g)
      : Place(g, threadIdx.x, g.cluster > 1 ? blockIdx.x % g.cluster : 0),
        floats_(pdfast_shared + g.resident_bytes) {
    resident_ = in_register(uint32_t(__cvta_generic_to_shared(pdfast_shared)) + 16 * tid);
  }

  PDFAST_DEVICE float& at(int index) const { return reinterpret_cast<float*>(floats_)[index]; }
  // Four floats from `index` on, which is a multiple of four.
  PDFAST_DEVICE Quad quad(int index) const { return *reinterpret_cast<const Quad*>(&at(index)); }
  PDFAST_DEVICE void put(int index, const Quad& quad) const {
    *reinterpret_cast<Quad*>(&at(index)) = quad;
  }

  // The float at the same index in block `other` of this cluster.
  PDFAST_DEVICE float remote(int other, int index) const {
#if __CUDA_ARCH__ >= 900
    float value;
    const uint32_t here = uint32_t(__cvta_generic_to_shared(&at(index)));
    asm volatile(
        "{ .reg .u32 there;\n\t"
        "mapa.shared::cluster.u32 there, %1, %2;\n\t"
        "ld.shared::cluster.f32 %0, [there]; }"
        : "=f"(value)
        : "r"(here), "r"(other)
        : "memory");
    return value;
#else
    return at(index);
#endif
  }

  PDFAST_DEVICE Quad remote_quad(int other, int index) const {
#if __CUDA_ARCH__ >= 900
    float a, b, c, d;
    const uint32_t here = uint32_t(__cvta_generic_to_shared(&at(index)));
    asm volatile(
        "{ .reg .u32 there;\n\t"
        "mapa.shared::cluster.u32 there, %4, %5;\n\t"
        "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [there]; }"
        : "=f"(a), "=f"(b), "=f"(c), "=f"(d)
        : "r"(here), "r"(other)
        : "memory");
    return {{a, b, c, d}};
#else
    return quad(index);
#endif
  }

  // An address in shared memory: 16 resident bytes of this thread alone. They are kThreads apart in
  // any block, so that finding them takes no multiplication.
  PDFAST_DEVICE uint32_t slot(int index) const { return resident_ + 16 * kThreads * index; }
  template <class P>
  PDFAST_DEVICE P held(int index) const {
    P pack;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(pack.word[0]), "=r"(pack.word[1]), "=r"(pack.word[2]), "=r"(pack.word[3])
                 : "r"(slot(index)));
    return pack;
  }
  template <class P>
  PDFAST_DEVICE void hold(int index, const P& pack) const {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(slot(index)), "r"(pack.word[0]),
                 "r"(pack.word[1]), "r"(pack.word[2]), "r"(pack.word[3]));
  }

 private:
  uint32_t resident_;
  unsigned char* floats_;
};

// Copies 16 bytes from global to shared memory, bypassing the registers and L1.
PDFAST_DEVICE void copy_async(uint32_t to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
// Waits for all copies of this thread.
PDFAST_DEVICE void arrived() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// The blocks that own one slab, as this thread sees them, and the barriers between phases.
template <class State>
struct Cluster {
  const Geometry& g;
  Thread thread;
  State state;

  PDFAST_DEVICE Cluster(const Geometry& geometry) : g(geometry), thread(geometry) {}

  // The cluster's number in the grid.
  PDFAST_DEVICE int index() const {
    return g.cluster > 1 ? int(blockIdx.x) / g.cluster : int(blockIdx.x);
  }

  template <class Phase>
  PDFAST_DEVICE void each(Phase phase) {
    phase(thread, state);
  }
  // Calls take(thread, state, other) with the K floats at part(state) of the lane that is
  // `distance` lanes further in the warp, or of the lane itself where the warp ends before.
  template <int K, class Part, class Take>
  PDFAST_DEVICE void from_above(int distance, Part part, Take take) {
    float other[K];
    const float* mine = part(state);
    for (int k = 0; k < K; ++k) other[k] = __shfl_down_sync(0xffffffffu, mine[k], distance);
    take(thread, state, other);
  }
  // Separates phases where no thread reads what another wrote.
  PDFAST_DEVICE void no_barrier() {}
  PDFAST_DEVICE void sync_block() { __syncthreads(); }
  PDFAST_DEVICE void sync_cluster() {
#if __CUDA_ARCH__ >= 900
    if (g.cluster > 1) {
      asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
      return;
    }
#endif
    __syncthreads();
  }
  // A block must not end while others read its shared memory.
  PDFAST_DEVICE void leave() {
    if (g.cluster > 1) sync_cluster();
  }
};

}  // namespace pdfast

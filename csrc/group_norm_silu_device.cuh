// The machine under group_norm_silu.cu: CUDA's. group_norm_silu_host.h has the same names.

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

// For 16-bit types ex2.approx and rcp.approx: off by 2^-22 and 2^-23 at most (PTX ISA, "Floating
// Point Instructions"), a thousandth of what rounding y costs. float32 takes expf (1 ulp) and an
// exactly rounded reciprocal: half as many elements a byte, so there is time. The host build adds
// the documented bounds to every call, and the tests hold them to the acceptance rule.
template <class T>
PDFAST_DEVICE float sigmoid(float u) {
  if constexpr (sizeof(T) == 4) return __frcp_rn(1.0f + expf(-u));
  float e, s;
  asm("ex2.approx.f32 %0, %1;" : "=f"(e) : "f"(u * -1.4426950408889634f));
  asm("rcp.approx.f32 %0, %1;" : "=f"(s) : "f"(1.0f + e));
  return s;
}

PDFAST_DEVICE float quotient(float a, float b) { return __fdividef(a, b); }

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
    // Said outright: nvcc 13.0 makes four stores of 4 bytes out of a uint4's.
    const uint32_t* w = pack.word;
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3])
                 : "memory");
  } else {
    *to = pack.value;
  }
}

extern __shared__ __align__(16) unsigned char pdfast_shared[];

// This thread's place in its block, the block's in the cluster, and their shared memory.
struct Thread {
  int tid, rank, row, col;
  bool active;

  PDFAST_DEVICE Thread(const Geometry& g)
      : tid(threadIdx.x), rank(blockIdx.x % g.cluster), row(tid / g.cols), col(tid % g.cols),
        active(row < g.rows), floats_(pdfast_shared + g.resident_bytes) {}

  PDFAST_DEVICE float& at(int index) const { return reinterpret_cast<float*>(floats_)[index]; }

  // The same float of block `other` of this cluster.
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

  // 16 resident bytes.
  PDFAST_DEVICE unsigned char* slot(int index) const { return pdfast_shared + 16 * index; }
  template <class P>
  PDFAST_DEVICE P held(int index) const {
    const uint4 raw = *reinterpret_cast<const uint4*>(slot(index));
    return {{raw.x, raw.y, raw.z, raw.w}};
  }

 private:
  unsigned char* floats_;
};

// 16 bytes from global to shared memory, past the registers and L1.
PDFAST_DEVICE void copy_async(void* to, const void* from) {
  const uint32_t there = uint32_t(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(there), "l"(from) : "memory");
}
PDFAST_DEVICE void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` commit groups are under way.
PDFAST_DEVICE void arrived(int pending) {
  static_assert(kStages == 4);
  switch (pending) {
    case 0: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
    case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
    case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
    default: asm volatile("cp.async.wait_group 3;" ::: "memory");
  }
}

// The blocks that own one slab, as this thread sees them, and the barriers between phases.
template <class State>
struct Cluster {
  const Geometry& g;
  Thread thread;
  State state;

  PDFAST_DEVICE Cluster(const Geometry& geometry) : g(geometry), thread(geometry) {}

  template <class Phase>
  PDFAST_DEVICE void each(Phase phase) {
    phase(thread, state);
  }
  PDFAST_DEVICE void sync_block() { __syncthreads(); }
  PDFAST_DEVICE void sync_cluster() {
    if (g.cluster > 1) {
      depart();
      await();
    } else {
      __syncthreads();
    }
  }
  // A block must not end while others read its shared memory: depart after the last such read,
  // await before the end.
  PDFAST_DEVICE void depart() {
#if __CUDA_ARCH__ >= 900
    if (g.cluster > 1) asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
  }
  PDFAST_DEVICE void await() {
#if __CUDA_ARCH__ >= 900
    if (g.cluster > 1) asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
  }
};

}  // namespace pdfast

// Small kernels with known results, to test the emulator in tests/sass.

#include <cstdint>

// Lanes of a warp leave the loop one by one, and continue together after it.
extern "C" __global__ void loop(const int* times, int* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  int total = 0;
#pragma unroll 1
  for (int k = 0; k < times[i]; ++k) total = total * 3 + k;
  out[i] = total;
}

// A jump that a table decides for each lane, and a loop around lanes that diverge there.
extern "C" __global__ void branches(const int* kind, int* out) {
  const int i = threadIdx.x;
#pragma unroll 1
  for (int round = 0; round < 3; ++round) {
    switch (kind[i] + round) {
      case 0: out[i] = out[i] * kind[i + 1]; break;
      case 1: out[i] = out[i] / 3 + kind[0]; break;
      case 2: out[i] = __popc(out[i]) + 100; break;
      case 3: out[i] = kind[i + 1] - (out[i] ^ 77); break;
      case 4: out[i] = __clz(out[i]) - kind[i + 1]; break;
      case 5: out[i] = int(__brev(out[i])) >> 3; break;
      case 6: out[i] = max(out[i], kind[0]); break;
      default: out[i] += 1;
    }
  }
}

extern "C" __global__ void lanes(const int* in, int* out) {
  const int i = threadIdx.x, n = blockDim.x;
  const int value = in[i];
  int sum = value, scan = value;
  for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(~0u, scan, step);
    if (i % 32 >= step) scan += below;
  }
  out[i] = sum;
  out[n + i] = scan;
  out[2 * n + i] = __shfl_down_sync(~0u, value, 3, 8);
  out[3 * n + i] = __shfl_sync(~0u, value, i * 5 + 1, 16);
  out[4 * n + i] = int(__ballot_sync(~0u, value > 0));
  out[5 * n + i] = __all_sync(~0u, value != 7) + 2 * __any_sync(~0u, value == 7);
  out[6 * n + i] = __reduce_max_sync(~0u, value);
  // Half of each warp, and a number of rounds that is not known in advance.
  int half = value;
  if (i % 2) {
#pragma unroll 1
    for (int k = 0; k < (in[0] & 3); ++k) half += __shfl_xor_sync(0xaaaaaaaau, half, 2 << k);
  }
  out[7 * n + i] = half;
}

template <int Stride>
__device__ void transpose(const float* in, float* out) {
  __shared__ float tile[32 * Stride];
  for (int k = threadIdx.x; k < 1024; k += blockDim.x) tile[k / 32 * Stride + k % 32] = in[k];
  __syncthreads();
  for (int k = threadIdx.x; k < 1024; k += blockDim.x) out[k] = tile[k % 32 * Stride + k / 32];
}
extern "C" __global__ void transpose_32(const float* in, float* out) { transpose<32>(in, out); }
extern "C" __global__ void transpose_33(const float* in, float* out) { transpose<33>(in, out); }

// Reads 16 bytes a lane, `step` of them apart.
extern "C" __global__ void wide(const float4* in, float4* out, int step) {
  extern __shared__ float4 vectors[];
  vectors[threadIdx.x * step] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = vectors[(threadIdx.x ^ 1) * step];
}

extern "C" __global__ void divide(const int64_t* a, const int64_t* b, int64_t* out) {
  const int i = threadIdx.x, n = blockDim.x;
  const int c = int(a[i]), d = int(b[i]);
  out[i] = a[i] / b[i];
  out[n + i] = int64_t(uint64_t(a[i]) % uint64_t(b[i]));
  out[2 * n + i] = d ? c / d : 0;
  out[3 * n + i] = d ? uint32_t(c) % uint32_t(d) : 0;
  out[4 * n + i] = a[i] * b[i] + (a[i] >> 7) - (a[i] << 9);
  out[5 * n + i] = __mul64hi(a[i], b[i]);
  out[6 * n + i] = a[i] < b[i] ? 1 : a[i] == b[i];
}

extern "C" __global__ void floats(const float* a, const float* b, const float* c, float* out) {
  const int i = threadIdx.x, n = blockDim.x;
  out[i] = a[i] / b[i];
  out[n + i] = sqrtf(fabsf(a[i]));
  out[2 * n + i] = fmaf(a[i], b[i], c[i]);
  out[3 * n + i] = __fadd_rz(a[i], b[i]);
  out[4 * n + i] = expf(c[i]);
  out[5 * n + i] = fminf(a[i], b[i]) - fmaxf(b[i], c[i]);
  out[6 * n + i] = float(int(c[i])) + float(uint64_t(fabsf(c[i]) * 1e6f));
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(a[i]), "f"(c[i]));
  out[7 * n + i] = __uint_as_float(pair);
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b[i]), "f"(c[i]));
  out[8 * n + i] = __uint_as_float(pair);
  float single;
  asm("cvt.f32.f16 %0, %1;" : "=f"(single) : "h"(uint16_t(pair)));
  out[9 * n + i] = single;
}

// Pairs of 16-bit numbers.
extern "C" __global__ void halves(const uint32_t* a, const uint32_t* b, const uint32_t* c,
                                  uint32_t* out) {
  const int i = threadIdx.x, n = blockDim.x;
  uint32_t r;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a[i]), "r"(b[i]), "r"(c[i]));
  out[i] = r;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a[i]), "r"(b[i]));
  out[n + i] = r;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a[i]), "r"(b[i]));
  out[2 * n + i] = r;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a[i]), "r"(b[i]), "r"(c[i]));
  out[3 * n + i] = r;
}

// Each block reads its neighbour's shared memory.
extern "C" __global__ void __cluster_dims__(4) neighbours(const int* in, int* out) {
  __shared__ int own[64];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  own[threadIdx.x] = in[i];
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
  const uint32_t here = uint32_t(__cvta_generic_to_shared(&own[63 - threadIdx.x]));
  int value;
  asm volatile(
      "{ .reg .u32 there;\n"
      "mapa.shared::cluster.u32 there, %1, %2;\n"
      "ld.shared::cluster.s32 %0, [there]; }"
      : "=r"(value)
      : "r"(here), "r"((blockIdx.x + 1) % 4)
      : "memory");
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
  out[i] = value;
}

// Copies in two groups; waits for all but `Pending` of them.
template <int Pending>
__device__ void copy(const int4* in, int4* out) {
  extern __shared__ int4 copied[];
  for (int k = 0; k < 2; ++k) {
    const int at = k * blockDim.x + threadIdx.x;
    const uint32_t there = uint32_t(__cvta_generic_to_shared(&copied[at]));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(there), "l"(in + at));
    asm volatile("cp.async.commit_group;");
  }
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
  __syncthreads();
  for (int k = threadIdx.x; k < 2 * blockDim.x; k += blockDim.x) out[k] = copied[k];
}
extern "C" __global__ void copy_all(const int4* in, int4* out) { copy<0>(in, out); }
extern "C" __global__ void copy_half(const int4* in, int4* out) { copy<1>(in, out); }

// The two halves of a block meet at separate barriers, then the whole block votes.
extern "C" __global__ void meet(const int* in, int* out, int count) {
  __shared__ int values[128];
  const int i = threadIdx.x, half = i / 64;
  values[i] = in[i];
  asm volatile("bar.sync %0, %1;" ::"r"(half + 1), "r"(count) : "memory");
  const int other = values[i ^ 63];
  out[i] = other + 1000 * __syncthreads_count(other > 50);
}

extern "C" __global__ void add_atomically(int* out) { atomicAdd(out, int(threadIdx.x)); }

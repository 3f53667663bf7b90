// The AVX512 build of group_norm_silu. Standard headers are included before the target changes, so
// that none of their inline functions is compiled for instructions that the machine may lack.

#include "group_norm_silu_simd_head.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#endif
#define PDFAST_ISA avx512
#define PDFAST_VECTOR_BYTES 64
#include "group_norm_silu_simd.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
const pdfast::cpu::Kernels* pdfast::cpu::avx512_kernels() { return nullptr; }
#endif

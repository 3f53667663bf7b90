// The headers that group_norm_silu_simd.h needs; group_norm_silu_avx2.cpp explains why.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "group_norm_silu_cpu.h"

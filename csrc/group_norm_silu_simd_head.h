// What group_norm_silu_simd.h needs of other headers; see there.

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

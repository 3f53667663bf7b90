// CPU dispatch of group_norm_silu, the portable build, and the code that needs no vectors.

#include "group_norm_silu_cpu.h"

#include <algorithm>

#define PDFAST_ISA portable
#define PDFAST_VECTOR_BYTES 16
#include "group_norm_silu_simd.h"

namespace pdfast::cpu {

namespace {

constexpr int64_t kSlabBytes = 1024 * 1024;  // stays in L2; whole pixels read faster than parts
constexpr int64_t kRunBytes = 256;           // fewest contiguous bytes of a pixel worth a slab
constexpr int64_t kTasks = 16;               // with fewer, images are cut to occupy the threads
constexpr int64_t kGrainElements = 16 * 1024;

// Writes dbias and dweight: column sums of the images' terms, in double.
template <typename A>
void reduce(const Backward& p, int64_t begin, int64_t end) {
  constexpr int64_t kColumns = 64;
  const int64_t c = p.size.c;
  for (int64_t k0 = begin; k0 < end; k0 += kColumns) {
    const int64_t columns = std::min(kColumns, end - k0);
    double dbias[kColumns] = {}, dweight[kColumns] = {};
    for (int64_t i = 0; i < p.size.n; ++i) {
      const A* terms = static_cast<const A*>(p.sums) + i * 2 * c + k0;
      for (int64_t k = 0; k < columns; ++k) dbias[k] += terms[k], dweight[k] += terms[c + k];
    }
    A out[kColumns];
    for (int64_t k = 0; k < columns; ++k) out[k] = static_cast<A>(dbias[k]);
    portable::drain(p.dbias, out, p.type.param, k0, columns);
    for (int64_t k = 0; k < columns; ++k) out[k] = static_cast<A>(dweight[k]);
    portable::drain(p.dweight, out, p.type.param, k0, columns);
  }
}

}  // namespace

Tasks tasks_of(const Sizes& size, Dtype dtype) {
  const int64_t bytes = dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
  const int64_t per_group = size.c / size.groups;
  const int64_t shared = (size.n * size.c + kTasks - 1) / kTasks;
  const int64_t fit = std::min(kSlabBytes / (size.hw * bytes), shared);
  const int64_t channels = std::max(fit, kRunBytes / bytes);
  const int64_t groups = std::clamp<int64_t>(channels / per_group, 1, size.groups);
  Tasks tasks{};
  tasks.slab = groups * per_group;
  tasks.per_image = (size.groups + groups - 1) / groups;
  tasks.total = size.n * tasks.per_image;
  tasks.grain = std::max<int64_t>(1, kGrainElements / (size.hw * tasks.slab));
  return tasks;
}

bool supported(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx512:
      return avx512_kernels() && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
    case Isa::avx2:
      return avx2_kernels() && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::portable:
      return true;
  }
#endif
  return isa == Isa::portable;
}

Isa best_isa() {
  static const Isa best = supported(Isa::avx512) ? Isa::avx512
                          : supported(Isa::avx2) ? Isa::avx2
                                                 : Isa::portable;
  return best;
}

const char* name_of(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "portable";
}

Kernels kernels_of(Isa isa) {
  return *(isa == Isa::avx512 ? avx512_kernels()
           : isa == Isa::avx2 ? avx2_kernels()
                              : portable_kernels());
}

void reduce_images(const Backward& p, int64_t begin, int64_t end) {
  p.type.x == Dtype::f64 ? reduce<double>(p, begin, end) : reduce<float>(p, begin, end);
}

}  // namespace pdfast::cpu

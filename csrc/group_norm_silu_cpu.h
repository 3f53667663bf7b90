// The CPU side of group_norm_silu, as the op's registration and the sanitizer driver call it.

#pragma once

#include "group_norm_silu.h"

namespace pdfast::cpu {

// Instruction sets, each a build of the same source (group_norm_silu_simd.h).
enum class Isa : int32_t { portable = 0, avx2 = 1, avx512 = 2 };

// The work is cut into tasks of one image's slab of whole groups. They may run in any order on any
// threads, with the same bits. A slab should stay in a core's L2 cache between passes.
struct Tasks {
  int64_t slab;      // channels of a task (the last of an image may have fewer)
  int64_t per_image;
  int64_t total;     // images times per_image
  int64_t grain;     // fewest tasks worth a thread
};

struct Kernels {
  void (*forward)(const Forward&, const Tasks&, int64_t begin, int64_t end);
  void (*backward)(const Backward&, const Tasks&, int64_t begin, int64_t end);
};

Tasks tasks_of(const Sizes& size, Dtype dtype);
bool supported(Isa isa);         // by this machine, and built in
Isa best_isa();                  // the widest supported
const char* name_of(Isa isa);
Kernels kernels_of(Isa isa);     // isa must be supported

// Sums dweight and dbias of channels begin .. end - 1 over the images, in their order.
void reduce_images(const Backward& p, int64_t begin, int64_t end);

// The builds; null where the compiler's target lacks the instruction set.
const Kernels* portable_kernels();
const Kernels* avx2_kernels();
const Kernels* avx512_kernels();

}  // namespace pdfast::cpu

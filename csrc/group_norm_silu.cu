// group_norm_silu on CUDA: GroupNorm, FiLM and SiLU, forward and backward, channels-last.
//
// Fused: the sum x + addend + residual; joining the two tensors of a skip connection; mean,
// variance, normalization, weight and bias, scale and shift, SiLU. Backward: SiLU recomputed, both
// group sums, dx with the sum's other gradient added, and the sums behind dscale, dshift, dweight,
// dbias and the addend's gradient. Bytes, in tensors of x's size: eager PyTorch moves about 9
// forward (statistics 1, apply 2, FiLM 4, SiLU 2). This op moves 2 forward (read x, write y) and 3
// backward (read x and dy, write dx), one more for each of residual, sum and dsum, and float32
// statistics of 8 bytes a group. Bound: memory. Loses: a slab that does not fit the shared memory
// of a cluster is read twice; channels that are not a multiple of 16 bytes go one element at a
// time; for a few small images the launch dominates.
//
// A cluster of blocks owns one image's slab of channels, then the next slab. The grid has no more
// blocks than run at once, and each block copies its next slab while it writes the current one. A
// block's part of a slab stays in shared memory as an extension of its threads' registers: a thread
// reads only what it copied itself, so only the statistics need barriers. These are computed in one
// pass of sums about a pivot near the mean (forward.cuh). They are merged by shuffles in a warp,
// then over the warps in shared memory, then over the blocks of a cluster through distributed
// shared memory, always in the same order: there are no atomics, and results do not depend on
// timing.

#include "group_norm_silu_backward.cuh"
#include "group_norm_silu_forward.cuh"
#include "group_norm_silu_launch.cuh"

namespace pdfast {
namespace {

// Resident slabs whose vectors lie in one group are compiled for each kind of sum, for SiLU in
// bfloat16, in which GPUs train. All other cases read these choices from the call at run time, to
// keep the kernels few.
template <template <class, int, bool, bool, int, int> class Body, class T, class Call>
void run_typed(const Call& call, const Geometry& g, Where where) {
  constexpr int kVector = 16 / sizeof(T);
  if (g.vector == 1) return run<Body<T, 1, false, true, kAsk, kAsk>>(call, g, where);
  if (!g.resident) return run<Body<T, kVector, false, false, kAsk, kAsk>>(call, g, where);
  if (!g.fold) return run<Body<T, kVector, true, false, kAsk, kAsk>>(call, g, where);
  if constexpr (std::is_same_v<T, Bf16>) {
    if (call.silu) {
      switch (sum_of(call)) {
        case kNone: return run<Body<T, kVector, true, true, 1, kNone>>(call, g, where);
        case kAddend: return run<Body<T, kVector, true, true, 1, kAddend>>(call, g, where);
        default: return run<Body<T, kVector, true, true, 1, kRounded>>(call, g, where);
      }
    }
  }
  run<Body<T, kVector, true, true, kAsk, kAsk>>(call, g, where);
}

// Calls use(T{}) for the element type that `type` names; choose() has refused float64.
template <class Use>
void with_type(Dtype type, Use use) {
  if (type == Dtype::f32) {
    use(float{});
  } else if (type == Dtype::bf16) {
    use(Bf16{});
  } else {
    use(F16{});
  }
}

bool aligned(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16) return false;
  }
  return true;
}
bool aligned(const Forward& f) {
  return aligned({f.x, f.skip, f.residual, f.y, f.sum});
}
bool aligned(const Backward& b) {
  return aligned({b.dy, b.dsum, b.x, b.skip, b.dx, b.dskip});
}

Kept kept(const Forward&) { return {false, 1, false}; }
Kept kept(const Backward& b) { return {true, b.dsum ? 3 : 2, b.daddend != nullptr}; }

void forward(const Forward& f, const Limits& limits, Where where) {
  const Geometry g = choose(f.size, f.type, f.at, kept(f), limits);
  with_type(f.type.x, [&](auto t) { run_typed<ForwardBody, decltype(t)>(f, g, where); });
}

void backward(const Backward& b, const Limits& limits, Where where) {
  const Geometry g = choose(b.size, b.type, b.at, kept(b), limits);
  with_type(b.type.x, [&](auto t) {
    run_typed<BackwardBody, decltype(t)>(b, g, where);
    run<ParamBody<decltype(t)>>(b, ParamBody<decltype(t)>::geometry(b.size), where);
  });
}

}  // namespace

#ifdef __CUDACC__

void forward_cuda(const Forward& call, void* stream) {
  forward(call, limits(aligned(call)), static_cast<cudaStream_t>(stream));
}

void backward_cuda(const Backward& call, void* stream) {
  backward(call, limits(aligned(call)), static_cast<cudaStream_t>(stream));
}

#endif

}  // namespace pdfast

#ifdef PDFAST_HOST

// Entry points for ctypes. `order`: run each phase's threads from the last to the first. The
// limits' alignment flag is combined with the pointers' own. They return an error message, or null.
namespace {

thread_local std::string error;

template <class Do>
const char* guarded(Do act) {
  try {
    act();
    return nullptr;
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
}

}  // namespace

extern "C" const char* host_forward(const pdfast::Forward* call, pdfast::Limits limits, int order) {
  limits.aligned &= pdfast::aligned(*call);
  return guarded([&] { pdfast::forward(*call, limits, order != 0); });
}

extern "C" const char* host_backward(const pdfast::Backward* call, pdfast::Limits limits,
                                     int order) {
  limits.aligned &= pdfast::aligned(*call);
  return guarded([&] { pdfast::backward(*call, limits, order != 0); });
}

extern "C" const char* host_plan(const pdfast::Sizes* size, const pdfast::Types* type, int backward,
                                 pdfast::Limits limits, pdfast::Plan* out) {
  return guarded([&] {
    *out = pdfast::plan(*size, *type, backward != 0, limits);
  });
}

// A launch as the machine code receives it: its plan, and the kernel's second argument. Pass 0 is
// forward, 1 backward, 2 the sums of the parameters' gradients; `call` is a Forward or a Backward.
// `bytes`: the size of the buffer at `out`, then the number of bytes written to it.
extern "C" const char* host_launch(const void* call, int pass, pdfast::Limits limits,
                                   pdfast::Plan* plan, void* out, int64_t* bytes) {
  return guarded([&] {
    const auto* f = static_cast<const pdfast::Forward*>(call);
    const auto* b = static_cast<const pdfast::Backward*>(call);
    const pdfast::Geometry g =
        pass == 0   ? pdfast::choose(f->size, f->type, f->at, pdfast::kept(*f), limits)
        : pass == 1 ? pdfast::choose(b->size, b->type, b->at, pdfast::kept(*b), limits)
                    : pdfast::ParamBody<float>::geometry(b->size);
    if (*bytes < int64_t{sizeof g}) pdfast::refuse("no room for the geometry.");
    std::memcpy(out, &g, sizeof g);
    *bytes = sizeof g;
    *plan = pdfast::summarize(g);
  });
}

#endif

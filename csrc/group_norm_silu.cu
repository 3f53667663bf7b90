// group_norm_silu on CUDA: GroupNorm, FiLM and SiLU, forward and backward, channels-last.
//
// Fused: mean, variance, normalization, weight and bias, scale and shift, SiLU; backward: SiLU
// recomputed, both group sums, dx, dscale, dshift, and the sums behind dweight and dbias.
// Bytes, in tensors of x's size: eager PyTorch moves about 9 forward (statistics 1, apply 2, FiLM
// 4, SiLU 2); this moves 2 forward (read x, write y) and 3 backward (read x and dy, write dx),
// besides float32 statistics of 8 bytes a group. Bound: memory. Where it loses: a slab that fits no
// cluster's shared memory is read twice; channels that are no multiple of 16 bytes go one element
// at a time; for few small images the launch is the cost.
//
// A cluster of blocks owns one image's slab of channels. Each block's part of it stays in shared
// memory as an extension of its threads' registers: a thread reads there only what it copied
// itself. Statistics are two-pass: in a thread over a few vectors at a time, relative to a pivot
// (the median of three of the group's values), merged as in Chan, Golub and LeVeque, "Updating
// Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979; over threads the mean
// first, then deviations and squares about it. Partial sums meet in shared memory, blocks of a
// cluster read each other's (distributed shared memory), always in the same order: no atomics, and
// no result depends on what runs when.

#include "group_norm_silu_backward.cuh"
#include "group_norm_silu_forward.cuh"
#include "group_norm_silu_launch.cuh"

namespace pdfast {
namespace {

template <template <class, int, bool, bool> class Body, class T, class Call>
void run_typed(const Call& call, const Geometry& g, Where where) {
  constexpr int kVector = 16 / sizeof(T);
  if (g.vector == 1) {
    run<Body<T, 1, false, false>>(call, g, where);
  } else if (!g.resident) {
    run<Body<T, kVector, false, false>>(call, g, where);
  } else if (call.silu) {
    run<Body<T, kVector, true, true>>(call, g, where);
  } else {
    run<Body<T, kVector, true, false>>(call, g, where);
  }
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

void forward(const Forward& f, const Limits& limits, Where where) {
  const Geometry g = choose(f.size, f.type, false, limits);
  with_type(f.type.x, [&](auto t) { run_typed<ForwardBody, decltype(t)>(f, g, where); });
}

void backward(const Backward& b, const Limits& limits, Where where) {
  const Geometry g = choose(b.size, b.type, true, limits);
  with_type(b.type.x, [&](auto t) {
    run_typed<BackwardBody, decltype(t)>(b, g, where);
    run<ParamBody<decltype(t)>>(b, ParamBody<decltype(t)>::geometry(b.size), where);
  });
}

}  // namespace

Plan plan(const Sizes& size, const Types& type, bool backward, int shared_limit, bool clusters,
          int sms, bool aligned) {
  return summarize(choose(size, type, backward, {shared_limit, sms, clusters, aligned, 0}));
}

#ifdef __CUDACC__

void forward_cuda(const Forward& call, void* stream) {
  forward(call, limits(aligned({call.x, call.y})), static_cast<cudaStream_t>(stream));
}

void backward_cuda(const Backward& call, void* stream) {
  backward(call, limits(aligned({call.x, call.dy, call.dx})), static_cast<cudaStream_t>(stream));
}

#endif

}  // namespace pdfast

#ifdef PDFAST_HOST

// For ctypes. `order`: run each phase's threads from the last to the first. The limits' alignment
// bit is taken together with the pointers' own. Returns the error, or null.
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
  limits.aligned &= pdfast::aligned({call->x, call->y});
  return guarded([&] { pdfast::forward(*call, limits, order != 0); });
}

extern "C" const char* host_backward(const pdfast::Backward* call, pdfast::Limits limits,
                                     int order) {
  limits.aligned &= pdfast::aligned({call->x, call->dy, call->dx});
  return guarded([&] { pdfast::backward(*call, limits, order != 0); });
}

extern "C" const char* host_plan(const pdfast::Sizes* size, const pdfast::Types* type, int backward,
                                 pdfast::Limits limits, pdfast::Plan* out) {
  return guarded([&] {
    *out = pdfast::summarize(pdfast::choose(*size, *type, backward != 0, limits));
  });
}

// A launch as machine code takes it: its plan, and the kernel's second argument. Pass 0 is forward, 1
// backward, 2 the parameters' sums. `bytes`: the room at `out`, then what was written there.
extern "C" const char* host_launch(const pdfast::Sizes* size, const pdfast::Types* type, int pass,
                                   pdfast::Limits limits, pdfast::Plan* plan, void* out,
                                   int64_t* bytes) {
  return guarded([&] {
    const pdfast::Geometry g = pass == 2 ? pdfast::ParamBody<float>::geometry(*size)
                                         : pdfast::choose(*size, *type, pass == 1, limits);
    if (*bytes < int64_t{sizeof g}) pdfast::refuse("no room for the geometry.");
    std::memcpy(out, &g, sizeof g);
    *bytes = sizeof g;
    *plan = pdfast::summarize(g);
  });
}

#endif

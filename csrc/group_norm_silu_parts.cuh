// Shared parts of group_norm_silu's forward and backward. A kernel's body is a sequence of phases,
// `cluster.each(...)`, run by every thread of a cluster of blocks (often a single block), with
// barriers between them. What a thread keeps across a barrier is in its State: registers on the
// device, an array on the host.

#pragma once

#ifdef __CUDACC__
#include "group_norm_silu_device.cuh"
#else
#include "group_norm_silu_host.h"
#endif

namespace pdfast {

// Kinds of sum that a body is compiled for. kAsk: read it from the call, to keep the kernels few.
constexpr int kAsk = -1;
constexpr int kNone = 0;     // x alone
constexpr int kAddend = 1;   // x + addend, which is not written anywhere
constexpr int kRounded = 2;  // forward: the sum is rounded to x's type; backward: x is that sum

inline PDFAST_BOTH int sum_of(const Forward& f) {
  return f.residual || f.sum ? kRounded : f.addend ? kAddend : kNone;
}
inline PDFAST_BOTH int sum_of(const Backward& b) {
  return b.addend ? kAddend : b.dsum || b.daddend ? kRounded : kNone;
}

template <class T, int V>
PDFAST_DEVICE void unpack(const Pack<T, V>& pack, float (&out)[V]) {
  if constexpr (V == 1) {
    out[0] = to_float(pack.value);
  } else if constexpr (sizeof(T) == 4) {
    for (int v = 0; v < V; ++v) out[v] = float_of(pack.word[v]);
  } else {
    for (int k = 0; k < 4; ++k) {
      out[2 * k] = to_float(T{uint16_t(pack.word[k] & 0xffff)});
      out[2 * k + 1] = to_float(T{uint16_t(pack.word[k] >> 16)});
    }
  }
}

template <class T, int V>
PDFAST_DEVICE Pack<T, V> packed(const float (&in)[V]) {
  Pack<T, V> pack;
  if constexpr (V == 1) {
    from_float(in[0], pack.value);
  } else if constexpr (sizeof(T) == 4) {
    for (int v = 0; v < V; ++v) pack.word[v] = bits_of(in[v]);
  } else {
    for (int k = 0; k < 4; ++k) pack.word[k] = join(in[2 * k], in[2 * k + 1], T{});
  }
  return pack;
}

// A parameter, stored as T or float32.
template <class T>
PDFAST_DEVICE float load_param(const void* from, Dtype type, int64_t i) {
  if (type == Dtype::f32) return static_cast<const float*>(from)[i];
  return to_float(static_cast<const T*>(from)[i]);
}

template <class T>
PDFAST_DEVICE void store_param(void* to, Dtype type, int64_t i, float value) {
  if (type == Dtype::f32) {
    static_cast<float*>(to)[i] = value;
  } else {
    from_float(value, static_cast<T*>(to)[i]);
  }
}

// The slab that a cluster works on. The cluster's next slab is a stride further.
struct Position {
  int image, slab;

  PDFAST_DEVICE Position(const Geometry& g, int first)
      : image(unsigned(first) / unsigned(g.slabs)), slab(first - image * g.slabs) {}
  PDFAST_DEVICE void advance(const Geometry& g) {
    image += g.stride_images, slab += g.stride_slabs;
    if (slab >= g.slabs) slab -= g.slabs, ++image;
  }
};

// The vectors that a thread visits in one chunk of a slab: `count` pixels of an image, g.rows
// apart, from `pixel` on, at one of the c channels, which belongs to x or to skip.
struct Walk {
  int image, pixel;
  int channel, own, pitch;  // own: the channel within its tensor; pitch: that tensor's channels
  int count;
  bool second;

  PDFAST_DEVICE Walk(const Geometry& g, const Thread& thread, Position at, int vector, int chunk)
      : image(at.image), pixel(thread.first) {
    const int in_slab = (chunk * g.cols + thread.col) * vector;
    channel = at.slab * g.slab + (in_slab < g.slab ? in_slab : 0);
    second = channel >= g.first;
    own = second ? channel - g.first : channel;
    pitch = second ? g.c - g.first : g.first;
    count = in_slab < g.slab ? thread.count : 0;
  }
};

// The same vectors in a tensor, visited one after another. It starts one step before the first: an
// address that is moved before each use needs no second register.
template <class T>
struct Line {
  T* at;
  int64_t step;

  PDFAST_DEVICE Line(T* first, int64_t step) : at(first - step), step(step) {}
  PDFAST_DEVICE T* next() { return at += step; }
  PDFAST_DEVICE T* ahead(int count) const { return at + (count + 1) * step; }
};
// A line in a tensor of all c channels: y or its gradient.
template <class T>
PDFAST_DEVICE Line<T> whole(const Geometry& g, const Walk& walk, T* base) {
  const int64_t within = int64_t{walk.pixel} * g.c + walk.channel;
  return {base + walk.image * (g.hw * g.c) + within, int64_t{g.rows} * g.c};
}
// A line in x or skip, or in tensors of their shapes.
template <class T>
PDFAST_DEVICE Line<T> part(const Geometry& g, const Walk& walk, T* first, T* second) {
  const int64_t within = int64_t{walk.pixel} * walk.pitch + walk.own;
  return {(walk.second ? second : first) + walk.image * (g.hw * walk.pitch) + within,
          int64_t{g.rows} * walk.pitch};
}

// A channel's coefficients: weight (1 + scale), bias (1 + scale) + shift, and the addend. Some
// threads read them for all, into shared memory.
struct Coefs {
  float weight, bias, addend;
};
template <class T, class Call>
PDFAST_DEVICE Coefs coefs_of(const Call& call, int image, int channel) {
  Coefs out;
  out.weight = load_param<T>(call.weight, call.type.param, channel);
  out.bias = load_param<T>(call.bias, call.type.param, channel);
  if (call.film) {
    const int64_t at = image * call.at.film_stride + channel;
    const float scale = 1.0f + load_param<T>(call.film, call.type.film, at);
    out.weight *= scale;
    out.bias = out.bias * scale + load_param<T>(call.film, call.type.film, at + call.size.c);
  }
  out.addend = 0.0f;
  if (call.addend && channel < call.at.first) {
    out.addend = load_param<T>(call.addend, call.type.addend,
                               image * call.at.addend_stride + channel);
  }
  return out;
}

// Calls use(e, channel) for the channels of a chunk, which the threads share. The last threads go
// first, since the first have other work.
template <class Use>
PDFAST_DEVICE void each_channel(const Geometry& g, const Thread& thread, Position at, int chunk,
                                Use use) {
#pragma unroll 1
  for (int e = g.threads - 1 - thread.tid; e < g.width; e += g.threads) {
    const int in_slab = chunk * g.width + e;
    if (in_slab < g.slab) use(e, at.slab * g.slab + in_slab);
  }
}

// Reads V floats from `index` on in shared memory.
template <int V>
PDFAST_DEVICE void load_floats(const Thread& thread, int index, float (&out)[V]) {
  if constexpr (V == 1) {
    out[0] = thread.at(index);
  } else {
#pragma unroll
    for (int k = 0; k < V; k += 4) {
      const Quad quad = thread.quad(index + k);
      for (int v = 0; v < 4; ++v) out[k + v] = quad.value[v];
    }
  }
}
template <int V>
PDFAST_DEVICE void store_floats(const Thread& thread, int index, const float (&in)[V]) {
  if constexpr (V % 4) {
    for (int v = 0; v < V; ++v) thread.at(index + v) = in[v];
  } else {
#pragma unroll
    for (int k = 0; k < V; k += 4) {
      thread.put(index + k, {{in[k], in[k + 1], in[k + 2], in[k + 3]}});
    }
  }
}

// Groups of a thread's channels v = 0, 1, ..., in order.
struct GroupOf {
  int group, channel;

  PDFAST_DEVICE GroupOf(const Thread& thread) : group(thread.group), channel(thread.channel) {}
  PDFAST_DEVICE void advance(const Geometry& g) {
    ++channel;
    if (g.chunks == 1 && channel == g.per_group) channel = 0, ++group;
  }
};

// Sums the K values at part(state) over the rows of a warp, into the first row.
template <int K, class State, class Part>
PDFAST_DEVICE void sum_rows(Cluster<State>& cluster, Part part) {
  const Geometry& g = cluster.g;
  // If the number of rows is a power of two, what a row adds from beyond them is never used.
  // Otherwise a row may be added later, and must not change until then.
  const bool halves = (g.warp_rows & (g.warp_rows - 1)) == 0;
#pragma unroll 1
  for (int d = g.tree; d > 0; d /= 2) {
    cluster.template from_above<K>(
        d * g.cols, part, [&](const Thread& thread, State& s, const float(&other)[K]) {
          float* mine = part(s);
          if (halves || thread.warp_row + d < g.warp_rows) {
            for (int k = 0; k < K; ++k) mine[k] += other[k];
          }
        });
  }
  cluster.no_barrier();
}

}  // namespace pdfast

// What forward and backward of group_norm_silu share. A kernel's body is a row of phases,
// `cluster.each(...)`, run by every thread of a cluster of blocks (often of one), with barriers
// between them. What a thread keeps across a barrier lies in its State: registers on the device, an
// array on the host.

#pragma once

#ifdef __CUDACC__
#include "group_norm_silu_device.cuh"
#else
#include "group_norm_silu_host.h"
#endif

namespace pdfast {

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

// weight * (1 + scale) and bias * (1 + scale) + shift
struct Affine {
  float weight, bias;
};
template <class T>
PDFAST_DEVICE Affine film(Affine plain, const void* film, Dtype type, int64_t image, int64_t c,
                          int64_t channel) {
  if (!film) return plain;
  const float scale = 1.0f + load_param<T>(film, type, 2 * c * image + channel);
  const float shift = load_param<T>(film, type, 2 * c * image + c + channel);
  return {plain.weight * scale, plain.bias * scale + shift};
}

PDFAST_DEVICE int64_t pixels_of(const Geometry& g, int rank) {
  const int64_t left = g.hw - rank * g.pixels;
  return left < 0 ? 0 : left < g.pixels ? left : g.pixels;
}

// The vectors a thread visits in one chunk: `count` of them, `step` elements apart.
struct Walk {
  int64_t first, step;
  int count;

  PDFAST_DEVICE Walk(const Geometry& g, const Thread& thread, int vector, int chunk)
      : step(g.rows * g.c), count(0) {
    const int col = chunk * g.cols + thread.col;
    first = (thread.rank * g.pixels + thread.row) * g.c + int64_t{col} * vector;
    const int64_t pixels = pixels_of(g, thread.rank);
    if (thread.active && col * vector < g.slab && thread.row < pixels) {
      count = int((pixels - thread.row + g.rows - 1) / g.rows);
    }
  }
};

template <class T, int V, bool Resident>
PDFAST_DEVICE Pack<T, V> vector_at(const Geometry& g, const Thread& thread, const T* from,
                                   const Walk& walk, int i, int tensor) {
  if constexpr (Resident) {
    return thread.held<Pack<T, V>>((tensor * g.per_thread + i) * g.rows * g.cols + thread.tid);
  } else {
    return load<T, V>(from + walk.first + i * walk.step);
  }
}

// Phase: sums partial[row][entry] over the rows s, s + segments, ... into row s.
template <class State>
PDFAST_DEVICE void sum_rows(Cluster<State>& cluster, int stride, int entries) {
  const Geometry& g = cluster.g;
  cluster.each([&](const Thread& thread, State&) {
#pragma unroll 1
    for (int j = thread.tid; j < g.segments * entries; j += g.threads) {
      const int s = j / entries, entry = j - s * entries;
      float sum = 0.0f;
      for (int row = s; row < g.rows; row += g.segments) {
        sum += thread.at(g.partial + row * stride + entry);
      }
      thread.at(g.partial + s * stride + entry) = sum;  // read by this thread alone
    }
  });
  cluster.sync_block();
}

}  // namespace pdfast

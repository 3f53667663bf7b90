// The machine under group_norm_silu.cu as loops on the host, for machines without a GPU.
//
// The threads of a phase run one after another, forward or backward as the caller asks, so a race
// within a phase changes results. It asserts that barriers separate phases, and that a read of
// another block follows a barrier of the cluster. Shared memory is first filled with NaN, and every
// access to it is checked. Results differ from the device's only by rounding.

#pragma once

#include <algorithm>
#include <array>
#include <cassert>
#include <memory>
#include <vector>

#include "group_norm_silu_types.cuh"

namespace pdfast {

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float to_float(float x) { return x; }
inline float to_float(Bf16 x) { return float_of(uint32_t{x.bits} << 16); }
inline float to_float(F16 x) {
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  if (rest >= 0x7c00) return float_of(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  // Read as a float32, the same bits are 2^-112 of the value, also for subnormals.
  return float_of(sign | bits_of(float_of(rest << 13) * 0x1p112f));
}

inline void from_float(float x, float& y) { y = x; }
inline void from_float(float x, Bf16& y) {
  const uint32_t bits = bits_of(x);
  y.bits = x != x ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void from_float(float x, F16& y) {
  const uint16_t sign = bits_of(x) >> 16 & 0x8000;
  const float size = std::fabs(x);
  if (x != x) {
    y.bits = 0x7fff;
  } else if (size >= 65520.0f) {
    y.bits = sign | 0x7c00;
  } else if (size < 0x1p-14f) {  // subnormal: adding 2^-1 rounds at 2^-24
    y.bits = sign | uint16_t(bits_of(size + 0.5f) - bits_of(0.5f));
  } else {
    const uint32_t bits = bits_of(size);
    y.bits = sign | uint16_t((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13);
  }
}

template <class T>
uint32_t join(float low, float high, T) {
  T two[2];
  from_float(low, two[0]);
  from_float(high, two[1]);
  return uint32_t{two[0].bits} | uint32_t{two[1].bits} << 16;
}

// The device's approximations, at the largest error that their documentation allows.
template <class T>
float sigmoid(float u) {
  if constexpr (sizeof(T) == 4) return 1.0f / (1.0f + std::exp(-u) * (1.0f + 0x1p-23f));
  const float e = std::exp2(u * -1.4426950408889634f) * (1.0f + 0x1p-22f);
  return 1.0f / (1.0f + e) * (1.0f - 0x1p-23f);
}

inline float quotient(float a, float b) { return a / b; }
inline float inverse_root(float a) { return float(1.0 / std::sqrt(double{a})); }

template <class T, int V>
Pack<T, V> load(const T* from) {
  Pack<T, V> pack;
  assert(reinterpret_cast<uintptr_t>(from) % sizeof(pack) == 0);
  std::memcpy(&pack, from, sizeof(pack));
  return pack;
}
template <class T, int V>
void store(T* to, const Pack<T, V>& pack) {
  assert(reinterpret_cast<uintptr_t>(to) % sizeof(pack) == 0);
  std::memcpy(to, &pack, sizeof(pack));
}

// A block's shared memory.
struct Shared {
  std::unique_ptr<unsigned char[]> resident;
  std::vector<float> floats;
};

// A thread's place in its block, its block's place in the cluster, and their shared memory.
struct Thread : Place {
  const Geometry& g;
  std::vector<Shared>& blocks;  // of the cluster
  bool met;  // whether all blocks of the cluster met at a barrier before this phase

  Thread(const Geometry& geometry, std::vector<Shared>& shared, int id, int block, bool together)
      : Place(geometry, id, block), g(geometry), blocks(shared), met(together) {}

  float& at(int index) const { return blocks[rank].floats.at(index); }
  // Four floats from `index` on, which is a multiple of four.
  Quad quad(int index) const { return quad_of(rank, index); }
  void put(int index, const Quad& quad) const {
    assert(index % 4 == 0);
    for (int k = 0; k < 4; ++k) at(index + k) = quad.value[k];
  }
  Quad remote_quad(int other, int index) const {
    assert(met);
    return quad_of(other, index);
  }
  float remote(int other, int index) const {
    assert(met);
    return blocks.at(other).floats.at(index);
  }
  unsigned char* slot(int index) const {
    const int64_t place = int64_t{16} * (index * kThreads + tid);
    assert(index >= 0 && place + 16 <= g.resident_bytes);
    return blocks[rank].resident.get() + place;
  }
  template <class P>
  P held(int index) const {
    P pack;
    std::memcpy(&pack, slot(index), sizeof(pack));
    return pack;
  }
  template <class P>
  void hold(int index, const P& pack) const {
    std::memcpy(slot(index), &pack, sizeof(pack));
  }

 private:
  Quad quad_of(int other, int index) const {
    assert(index % 4 == 0);
    Quad quad;
    for (int k = 0; k < 4; ++k) quad.value[k] = blocks.at(other).floats.at(index + k);
    return quad;
  }
};

inline void copy_async(void* to, const void* from) {
  assert(reinterpret_cast<uintptr_t>(from) % 16 == 0);
  std::memcpy(to, from, 16);
}
inline void arrived() {}

inline int in_register(int x) { return x; }

// The blocks that own one slab, all of their threads, and the barriers between phases.
template <class State>
struct Cluster {
  const Geometry& g;
  int which;  // the cluster's number in the grid
  bool backwards;
  bool parted = true, met = false, left = false;
  std::vector<Shared> blocks;
  std::vector<State> states;

  Cluster(const Geometry& geometry, int index, bool order)
      : g(geometry), which(index), backwards(order), blocks(g.cluster),
        states(g.cluster * g.threads) {
    for (Shared& block : blocks) {
      block.resident.reset(new unsigned char[g.resident_bytes]);
      std::memset(block.resident.get(), 0xff, g.resident_bytes);
      block.floats.assign(g.floats, NAN);
    }
  }

  ~Cluster() { assert(left); }

  int index() const { return which; }

  template <class Phase>
  void each(Phase phase) {
    assert(parted && !left);
    parted = false;
    visit([&](const Thread& thread, int j) { phase(thread, states[j]); });
  }
  // Calls take(thread, state, other) with the K floats at part(state) of the lane that is
  // `distance` lanes further in the warp, or of the lane itself where the warp ends before.
  template <int K, class Part, class Take>
  void from_above(int distance, Part part, Take take) {
    std::vector<std::array<float, K>> all(states.size());
    for (size_t j = 0; j < all.size(); ++j) std::copy_n(part(states[j]), K, all[j].begin());
    visit([&](const Thread& thread, int j) {
      const bool inside = thread.tid % kWarp + distance < kWarp;
      float other[K];
      std::copy_n(all[inside ? j + distance : j].begin(), K, other);
      take(thread, states[j], other);
    });
  }
  // Separates phases where no thread reads what another wrote.
  void no_barrier() { parted = true; }
  void sync_block() { parted = true, met = false; }
  void sync_cluster() { parted = met = true; }
  void leave() { left = true; }

 private:
  template <class Use>
  void visit(Use use) {
    const int count = g.cluster * g.threads;
    for (int k = 0; k < count; ++k) {
      const int j = backwards ? count - 1 - k : k;
      use(Thread(g, blocks, j % g.threads, j / g.threads, met || g.cluster == 1), j);
    }
  }
};

}  // namespace pdfast

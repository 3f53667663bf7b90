// Which thread of which block touches what: chosen on the host, read by the kernels.

#pragma once

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "group_norm_silu_cuda.h"

namespace pdfast {

constexpr int kThreads = 256;   // of a full block; what the kernels are compiled for
constexpr int kMaxCols = 128;   // vectors side by side; bounds what streaming keeps on chip
constexpr int kMaxCluster = 8;  // the largest portable cluster
constexpr int kUnroll = 4;      // vectors a thread should have, at least
constexpr int kStages = 4;      // commit groups of asynchronous copies

struct Limits {
  int shared_limit, sms;
  bool clusters, aligned;
  int cluster;  // 0: choose; else exactly this
};

// A block's threads form `rows` x `cols`: column q holds vector q of every pixel it visits, row r
// visits the pixels r, r + rows, ... of the block's share. A slab wider than kMaxCols vectors is
// one group and is walked in `chunks`.
struct Geometry {
  int64_t hw, c, groups;
  int64_t pixels;  // per block; the last blocks of a cluster may have fewer, or none
  int64_t grid;    // blocks
  int per_group, slab, slabs, vector, cluster, threads, rows, cols, chunks;
  int width;  // channels side by side in one chunk: cols * vector
  int per_thread, stage;  // vectors a thread holds, and how many of them one commit group brings
  int segments;           // rows of partial sums left after the first level of a reduction
  bool resident, fold;    // fold: a vector lies in one group
  // Shared memory: the resident vectors of x, then of dy, then arrays of float at these indices.
  int coef, partial, total, share, stat, floats;
  int64_t resident_bytes;

  int64_t shared_bytes() const { return resident_bytes + 4 * int64_t{floats}; }
};

[[noreturn]] inline void refuse(const std::string& why) {
  throw std::runtime_error("group_norm_silu on CUDA: " + why);
}

inline int size_of(Dtype type) { return type == Dtype::f32 ? 4 : type == Dtype::f64 ? 8 : 2; }

// The smallest slab of at least `bytes` made of whole units that divides c; else the largest.
inline int64_t slab_of(int64_t bytes, int64_t unit, int64_t c, int size, int vector) {
  int64_t best = unit;
  for (int64_t m = 1; m <= c / unit; ++m) {
    if (c / unit % m) continue;
    if (m * unit / vector > kMaxCols) break;
    best = m * unit;
    if (best * size >= bytes) break;
  }
  return best;
}

inline Geometry lay_out(const Sizes& s, int size, bool backward, int64_t slab, int vector,
                        int cluster, bool resident) {
  Geometry g{};
  g.hw = s.hw, g.c = s.c, g.groups = s.groups;
  g.per_group = int(s.c / s.groups);
  g.slab = int(slab), g.slabs = int(s.c / slab);
  g.vector = vector, g.cluster = cluster, g.resident = resident;
  g.fold = g.per_group % vector == 0;
  const int all_cols = int(slab / vector);
  g.cols = std::min(all_cols, kMaxCols);
  g.width = g.cols * vector;
  g.chunks = (all_cols + g.cols - 1) / g.cols;
  g.pixels = (s.hw + cluster - 1) / cluster;
  g.grid = s.n * g.slabs * cluster;

  // Four vectors a thread, or more; a streaming block has enough of them to fill itself.
  const int64_t wanted = g.pixels * g.cols / kUnroll;
  const int threads = int(std::clamp<int64_t>(wanted, 32, kThreads));
  g.rows = int(std::clamp<int64_t>(threads / g.cols, 1, std::max<int64_t>(g.pixels, 1)));
  g.threads = (g.rows * g.cols + 31) / 32 * 32;
  g.per_thread = resident ? int((g.pixels + g.rows - 1) / g.rows) : 0;
  g.stage = (g.per_thread + kUnroll * kStages - 1) / (kUnroll * kStages) * kUnroll;
  g.resident_bytes = int64_t{g.per_thread} * g.rows * g.cols * vector * size * (backward ? 2 : 1);

  // Two levels of about the same depth, as far as there are threads for the first.
  const int entries = 2 * (backward || !g.fold ? g.width : g.cols);
  for (g.segments = 1; g.segments * g.segments < g.rows; g.segments *= 2) {
    if (2 * g.segments * entries > g.threads) break;
  }
  g.segments = std::min(g.segments, g.rows);

  const int groups = std::max(1, g.slab / g.per_group);
  int at = 0;
  const auto take = [&at](int floats) { return at += floats, at - floats; };
  g.coef = take((backward ? 6 : 3) * g.width);
  g.partial = take(backward ? g.rows * (2 * vector + 1) * g.cols : g.rows * entries);
  g.total = take(backward ? 2 * g.width : 0);
  g.share = take(backward ? 2 * g.width : 0);
  g.stat = take((backward ? 2 : 3) * groups);
  g.floats = at;
  return g;
}

// Two blocks on an SM: one's copies overlap the other's arithmetic. 1 KB of each is the system's.
inline int64_t half_of(int shared_limit) { return (int64_t{shared_limit} + 1024) / 2 - 1024; }

inline Geometry choose(const Sizes& s, const Types& t, bool backward, const Limits& l) {
  if (t.x == Dtype::f64) refuse("float64 runs on the CPU only.");
  for (Dtype other : {t.param, t.film}) {
    if (other != t.x && other != Dtype::f32) refuse("weights are of the input's type or float32.");
  }
  if (s.n < 0 || s.hw < 0 || s.c < 1 || s.groups < 1 || s.c % s.groups) {
    refuse("groups must divide the channels, and no size be negative.");
  }
  const int64_t max_int = 0x7fffffff;
  if (s.c > max_int / 2) refuse("too many channels.");

  const int size = size_of(t.x);
  const int64_t per_group = s.c / s.groups;
  int vector = 16 / size;
  int64_t unit = std::lcm(per_group, int64_t{vector});
  // A slab wider than a block is walked in chunks, which only a slab of one group may be.
  const bool wide_mix = unit / vector > kMaxCols && unit != per_group;
  if (!l.aligned || s.c % vector || wide_mix) vector = 1, unit = per_group;
  const bool wide = unit / vector > kMaxCols;
  const int most = wide ? 1 : l.cluster ? l.cluster : l.clusters ? kMaxCluster : 1;
  const int least = wide || !l.cluster ? 1 : l.cluster;
  const auto make = [&](int64_t slab, int cluster, bool resident) {
    return lay_out(s, size, backward, slab, vector, cluster, resident);
  };
  const auto clusters_of = [&](int64_t slab) { return s.n * (s.c / slab); };

  // 64 bytes of every pixel are one access of the memory; 32 bytes are one sector: worth it where
  // only that leaves room for two blocks on an SM. Resident slabs are for 16-byte copies alone.
  if (vector > 1 && !wide) {
    for (int64_t room : {half_of(l.shared_limit), int64_t{l.shared_limit}}) {
      for (int64_t bytes : {64, 32}) {
        int64_t slab = slab_of(bytes, unit, s.c, size, vector);
        for (int cluster = least; cluster <= most; cluster *= 2) {
          Geometry g = make(slab, cluster, true);
          if (g.shared_bytes() > room) continue;
          // Small images: wider slabs, as long as every SM has two blocks.
          while (g.resident_bytes < 16384 && cluster == least) {
            const int64_t next = slab_of(slab * size + 1, unit, s.c, size, vector);
            if (next == slab || clusters_of(next) * cluster < 2 * l.sms) break;
            const Geometry wider = make(next, cluster, true);
            if (wider.shared_bytes() > room) break;
            slab = next, g = wider;
          }
          // Small batches: more blocks an image, until every SM has one.
          while (2 * cluster <= most && g.grid < l.sms && s.hw / (2 * cluster) >= 32) {
            cluster *= 2, g = make(slab, cluster, true);
          }
          return g;
        }
      }
    }
  }
  // Streaming: large clusters keep few images under way, so that a second read finds the L2.
  int cluster = least;
  while (2 * cluster <= most && s.hw / (2 * cluster) >= 64) cluster *= 2;
  const int64_t slab = wide ? unit : slab_of(64, unit, s.c, size, vector);
  return make(slab, cluster, false);
}

inline Plan summarize(const Geometry& g) {
  return {g.slab, g.cluster, g.threads, g.grid, g.shared_bytes(), g.resident, g.vector};
}

}  // namespace pdfast

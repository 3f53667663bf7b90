// Plans a call: which thread of which block touches what. The host chooses, the kernels read.

#pragma once

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "group_norm_silu_cuda.h"

#ifdef __CUDACC__
#define PDFAST_BOTH __host__ __device__
#else
#define PDFAST_BOTH
#endif

namespace pdfast {

constexpr int kThreads = 128;   // of a full block, for which the kernels are compiled
constexpr int kRegisters[] = {168, 128};  // of a thread: streaming, and resident
constexpr int kWarp = 32;
constexpr int kMany = 64;       // values of a group; with fewer, backward does not round du
constexpr int kCoefs = 5;       // numbers of each channel that are read once for all threads
constexpr int kMaxCols = 128;   // vectors side by side; bounds what streaming keeps on chip
constexpr int kMaxCluster = 8;  // the largest portable cluster
constexpr int kUnroll = 4;      // fewest vectors that a thread should have

struct Limits {
  int shared_limit, sms;
  bool clusters, aligned;
  int cluster;  // 0: choose; else exactly this
};

// Division of numbers 0 .. 1,023 by one of them, for which a GPU has no instruction.
struct Divisor {
  uint32_t factor;

  PDFAST_BOTH int of(int n) const { return int(uint32_t(n) * factor >> 22); }
};
inline Divisor divisor(int by) { return {((1u << 22) + by - 1) / by}; }

// A block's threads form `rows` x `cols`: column q holds vector q of every pixel that it visits,
// and row r visits the pixels r, r + rows, ... of the block's share. A warp that is wider than a
// row has `warp_rows` whole rows; lanes beyond them are idle. A slab wider than kMaxCols vectors is
// one group and is walked in `chunks`. The grid has no more blocks than a GPU runs at once: a
// cluster takes slab after slab.
struct Geometry {
  int64_t groups;
  int64_t hw;
  int c, first;
  int pixels;      // per block; the last blocks of a cluster may have fewer, or none
  int64_t total;   // slabs of all images
  int64_t grid;    // blocks
  int per_group, slab, slabs, vector, cluster, threads, rows, cols, chunks;
  int width;               // channels side by side in one chunk: cols * vector
  int per_thread;          // vectors a thread holds
  int warp_rows, tree;     // tree: the first distance of a sum over warp_rows, in rows
  int teams;               // rows of partial results that are left in a block after those sums
  int entries, wide;       // partial statistics of a team, and how many of them are of one group
  int split, at_once;      // threads that share one group's partial statistics; groups at a time
  int slab_groups;
  Divisor by_split, by_cols, by_group;
  int stride, stride_images, stride_slabs;  // from one slab of a cluster to its next
  bool resident, fold;     // fold: statistics are of whole vectors, which lie in one group each
  float inverse;           // 1 / (values of a group)
  bool many;               // a group has kMany values or more; else rounding du spoils dx
  // Shared memory: the resident vectors, tensor by tensor, then float arrays at these indices.
  int coef, partial, stat, share, totals, late, floats;
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

// The tensors that a call keeps on chip: x alone, x and dy, or these and dsum.
struct Kept {
  bool backward;
  int tensors;
  bool late;  // whether it also sums dx, for daddend
};

inline Geometry lay_out(const Sizes& s, int size, Kept kept, int64_t slab, int vector, int cluster,
                        bool resident) {
  Geometry g{};
  g.hw = s.hw, g.c = int(s.c), g.groups = s.groups;
  g.per_group = int(s.c / s.groups);
  g.slab = int(slab), g.slabs = int(s.c / slab);
  g.slab_groups = std::max(1, g.slab / g.per_group);
  g.vector = vector, g.cluster = cluster, g.resident = resident;
  g.fold = vector == 1 || (resident && g.per_group % vector == 0);
  g.inverse = float(1.0 / (double(std::max<int64_t>(s.hw, 1)) * g.per_group));
  g.many = s.hw * g.per_group >= kMany;
  const int all_cols = int(slab / vector);
  g.cols = std::min(all_cols, kMaxCols);
  g.width = g.cols * vector;
  g.chunks = (all_cols + g.cols - 1) / g.cols;
  g.pixels = int((s.hw + cluster - 1) / cluster);
  g.total = s.n * g.slabs;

  // At least four vectors a thread; a streaming block has enough of them for all threads.
  const int64_t vectors = int64_t{g.pixels} * g.cols;
  const int wanted = int(std::clamp<int64_t>(vectors / kUnroll, kWarp, kThreads));
  const int pixels = std::max(g.pixels, 1);
  if (g.cols <= kWarp) {
    g.warp_rows = std::min(kWarp / g.cols, pixels);
    g.teams = std::clamp(wanted / kWarp, 1, (pixels + g.warp_rows - 1) / g.warp_rows);
    g.threads = g.teams * kWarp;
    g.rows = g.teams * g.warp_rows;
  } else {
    g.warp_rows = 1;
    g.rows = g.teams = std::clamp(wanted / g.cols, 1, pixels);
    g.threads = (g.rows * g.cols + kWarp - 1) / kWarp * kWarp;
  }
  for (g.tree = 1; 2 * g.tree < g.warp_rows; g.tree *= 2) {
  }
  if (g.warp_rows == 1) g.tree = 0;
  g.per_thread = resident ? (g.pixels + g.rows - 1) / g.rows : 0;
  g.resident_bytes = int64_t{16} * g.per_thread * kThreads * kept.tensors;

  g.entries = g.fold ? g.cols : g.width;
  g.wide = g.chunks > 1 ? g.entries : g.fold ? g.per_group / vector : g.per_group;
  for (g.split = 1; 16 * g.split < g.teams * g.wide; g.split *= 2) {
    if (2 * g.split > kWarp || 2 * g.split * g.slab_groups > g.threads) break;
  }
  g.at_once = g.threads / g.split;
  g.by_split = divisor(g.split), g.by_cols = divisor(g.cols), g.by_group = divisor(g.per_group);

  // Statistics are four floats each and read as such. The arrays that other blocks of a cluster
  // read exist twice, used in turn.
  int at = 0;
  const auto take = [&at](int floats) { return at += (floats + 3) / 4 * 4, at - (floats + 3) / 4 * 4; };
  g.coef = take(kCoefs * g.width);
  if (kept.backward) {
    g.partial = take(g.teams * 2 * g.width);
    g.share = take(2 * g.teams * g.entries);
    g.totals = take(2 * 2 * g.width);
    g.stat = take(2 * 2 * g.slab_groups);
    g.late = take(kept.late ? g.teams * g.width : 0);
  } else {
    g.partial = take(4 * g.teams * g.entries);
    g.stat = take(2 * 4 * g.slab_groups);
  }
  g.floats = at;
  return g;
}

// Room for two blocks on an SM, so that one's copies overlap the other's arithmetic. The system
// takes 1 KB for each block.
inline int64_t half_of(int shared_limit) { return (int64_t{shared_limit} + 1024) / 2 - 1024; }

// Limits the grid to the blocks that run at once: no wave of blocks is partly empty, and a block
// copies its next slab while it works on the current one.
inline Geometry spread(Geometry g, const Limits& l) {
  const int64_t by_memory = (int64_t{l.shared_limit} + 1024) / (g.shared_bytes() + 1024);
  const int64_t by_registers = 65536 / (kRegisters[g.resident] * g.threads);
  const int64_t blocks = std::clamp<int64_t>(std::min(by_memory, by_registers), 1, 16) * l.sms;
  g.stride = int(std::min(g.total, std::max<int64_t>(blocks / g.cluster, 1)));
  g.grid = int64_t{g.stride} * g.cluster;
  g.stride_images = g.stride / g.slabs, g.stride_slabs = g.stride % g.slabs;
  return g;
}

inline Geometry choose(const Sizes& s, const Types& t, const Layout& at, Kept kept,
                       const Limits& l) {
  if (t.x == Dtype::f64) refuse("float64 runs on the CPU only.");
  for (Dtype other : {t.param, t.film, t.addend}) {
    if (other != t.x && other != Dtype::f32) refuse("weights are of the input's type or float32.");
  }
  if (s.n < 0 || s.hw < 0 || s.c < 1 || s.groups < 1 || s.c % s.groups) {
    refuse("groups must divide the channels, and sizes must not be negative.");
  }
  const int64_t max_int = 0x7fffffff;
  if (s.c > max_int / 2) refuse("too many channels.");
  if (s.hw > max_int - kThreads) refuse("too many pixels.");

  const int size = size_of(t.x);
  const int64_t per_group = s.c / s.groups;
  int vector = 16 / size;
  int64_t unit = std::lcm(per_group, int64_t{vector});
  // A slab wider than a block is walked in chunks, which works only for a slab of one group.
  const bool wide_mix = unit / vector > kMaxCols && unit != per_group;
  const bool whole = s.c % vector == 0 && at.first % vector == 0;
  if (!l.aligned || !whole || wide_mix) vector = 1, unit = per_group;
  const bool wide = unit / vector > kMaxCols;
  const int most = wide ? 1 : l.cluster ? l.cluster : l.clusters ? kMaxCluster : 1;
  const int least = wide || !l.cluster ? 1 : l.cluster;
  const auto make = [&](int64_t slab, int cluster, bool resident) {
    Geometry g = spread(lay_out(s, size, kept, slab, vector, cluster, resident), l);
    g.first = int(at.first);
    return g;
  };
  const auto clusters_of = [&](int64_t slab) { return s.n * (s.c / slab); };

  // 64 bytes of every pixel are one memory access; 32 bytes are one sector, worth it only where
  // they make room for two blocks on an SM. Resident slabs need 16-byte copies.
  if (vector > 1 && !wide) {
    for (int64_t room : {half_of(l.shared_limit), int64_t{l.shared_limit}}) {
      for (int64_t bytes : {64, 32}) {
        int64_t slab = slab_of(bytes, unit, s.c, size, vector);
        for (int cluster = least; cluster <= most; cluster *= 2) {
          Geometry g = make(slab, cluster, true);
          if (g.shared_bytes() > room) continue;
          // Small images: wider slabs, as long as every SM has two blocks.
          while (s.hw * slab * size * kept.tensors < 16384 && cluster == least) {
            const int64_t next = slab_of(slab * size + 1, unit, s.c, size, vector);
            if (next == slab || clusters_of(next) * cluster < 2 * l.sms) break;
            const Geometry wider = make(next, cluster, true);
            if (wider.shared_bytes() > room) break;
            slab = next, g = wider;
          }
          // Small batches: more blocks per image, until every SM has one.
          while (2 * cluster <= most && g.total * cluster < l.sms && s.hw / (2 * cluster) >= 32) {
            cluster *= 2, g = make(slab, cluster, true);
          }
          return g;
        }
      }
    }
  }
  // Streaming: large clusters have few images in progress, so that a second read hits the L2.
  int cluster = least;
  while (2 * cluster <= most && s.hw / (2 * cluster) >= 64) cluster *= 2;
  const int64_t slab = wide ? unit : slab_of(64, unit, s.c, size, vector);
  return make(slab, cluster, false);
}

inline Plan summarize(const Geometry& g) {
  return {g.slab, g.cluster, g.threads, g.grid, g.total, g.shared_bytes(), g.resident, g.vector};
}

// The plan of a call on x alone.
inline Plan plan(const Sizes& size, const Types& type, bool backward, const Limits& limits) {
  const Layout at{size.c, 0, 2 * size.c};
  return summarize(choose(size, type, at, {backward, backward ? 2 : 1, false}, limits));
}

}  // namespace pdfast

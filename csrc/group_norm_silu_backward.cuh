// The backward kernels of group_norm_silu; group_norm_silu.cu describes how they work.

#pragma once

#include <type_traits>

#include "group_norm_silu_parts.cuh"

namespace pdfast {

// With s the sum, d = s - mean, u = d * slope + offset and du = dL/du, the sums per channel are
// S1 = sum du and S2 = sum du * d. Per group, k1 = mean of slope * S1 and
// k2 = rstd^2 * mean of slope * S2. Then ds = slope * du - k1 - d * k2, plus dsum.
template <class T, int V, bool Resident, bool Fold, int Silu, int Sum>
struct BackwardBody {
  static constexpr int kBlocksPerSm = Resident ? 4 : 3;  // at most 128 and 168 registers
  static constexpr int kTogether = Resident ? 1 : 2;  // vectors of x and dy in registers at a time
  static constexpr int kUnrolled = Resident && Fold ? 2 : 1;
  static constexpr bool kResident = Resident;
  static constexpr int kStats = Fold ? 1 : V;
  // Whether du may replace dy on chip, so that SiLU is differentiated once. In bfloat16 this rounds
  // it, as PyTorch's own ops do between SiLU and the norm; float16 would lose small values.
  static constexpr bool kKeepsDu = Resident && !std::is_same_v<T, F16>;
  using Call = Backward;
  struct State {
    float mean[kStats], rstd[kStats], slope[V], offset[V], addend[V];
    float sums[2 * V];  // S1, then S2
    float ds[V];        // sums of ds
  };

  struct Lines {
    Line<const T> x, dy, dsum;
    Line<T> dx;
    bool others;  // whether dsum has this column

    PDFAST_DEVICE Lines(const Geometry& g, const Backward& b, const Walk& walk)
        : x(part(g, walk, static_cast<const T*>(b.x), static_cast<const T*>(b.skip))),
          dy(whole(g, walk, static_cast<const T*>(b.dy))),
          dsum(part<const T>(g, walk, static_cast<const T*>(b.dsum), nullptr)),
          dx(part(g, walk, static_cast<T*>(b.dx), static_cast<T*>(b.dskip))),
          others(in_register(b.dsum && !walk.second)) {}
  };

  // Calls use(i, du, d) for all vectors of a walk; `first`: this is the first pass over them.
  template <class Use>
  PDFAST_DEVICE static void visit(const Geometry& g, const Thread& thread, Lines& lines, bool adds,
                                  bool act, bool first, const State& s, int count, Use use) {
    const bool keeps = kKeepsDu && g.many, differentiates = act && (first || !keeps);
#pragma unroll kUnrolled
    for (int i = 0; i < count; i += kTogether) {
      Pack<T, V> x[kTogether], dy[kTogether];
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        if (kTogether > 1 && i + k >= count) continue;
        if constexpr (Resident) {
          x[k] = thread.held<Pack<T, V>>(i + k);
          dy[k] = thread.held<Pack<T, V>>(g.per_thread + i + k);
        } else {
          x[k] = load<T, V>(lines.x.next());
          dy[k] = load<T, V>(lines.dy.next());
        }
      }
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        if (kTogether > 1 && i + k >= count) continue;
        float du[V], d[V];
        unpack(x[k], d);
        unpack(dy[k], du);
        for (int v = 0; v < V; ++v) {
          if (adds) d[v] += s.addend[v];
          d[v] -= s.mean[v % kStats];
          if (differentiates) {
            const float u = d[v] * s.slope[v] + s.offset[v];
            const float share = sigmoid<T>(u), fall = u - u * share;
            du[v] *= share + share * fall;
          }
        }
        if constexpr (kKeepsDu) {
          if (keeps && first && act) thread.hold(g.per_thread + i + k, packed<T, V>(du));
        }
        use(i + k, du, d);
      }
    }
  }

  PDFAST_DEVICE static void run(Cluster<State>& cluster, const Backward& b) {
    const Geometry& g = cluster.g;
    const int chunks = Resident ? 1 : g.chunks, sum = Sum == kAsk ? sum_of(b) : Sum;
    const bool act = (Silu == kAsk ? b.silu : Silu) != 0, adds = sum == kAddend;
    const bool late = sum != kNone && b.daddend;
    const int share = g.teams * g.wide;
    Position at(g, cluster.index());

    const auto prepare = [&](const Thread& thread, Position where, int chunk) {
      each_channel(g, thread, where, chunk, [&](int e, int channel) {
        const Coefs coefs = coefs_of<T>(b, where.image, channel);
        const int64_t group = where.image * g.groups + channel / g.per_group;
        const float rstd = static_cast<const float*>(b.rstd)[group];
        thread.at(g.coef + e) = rstd * coefs.weight;
        thread.at(g.coef + g.width + e) = coefs.bias;
        thread.at(g.coef + 2 * g.width + e) = coefs.addend;
        thread.at(g.coef + 3 * g.width + e) = static_cast<const float*>(b.mean)[group];
        thread.at(g.coef + 4 * g.width + e) = rstd;
      });
    };
    const auto prepare_chunk = [&](int chunk) {
      cluster.sync_block();
      cluster.each([&](const Thread& thread, State&) { prepare(thread, at, chunk); });
      cluster.sync_block();
    };
    const auto load_coefs = [&](const Thread& thread, State& s) {
      const int column = g.coef + thread.col * V;
      load_floats(thread, column, s.slope);
      load_floats(thread, column + g.width, s.offset);
      if (adds) load_floats(thread, column + 2 * g.width, s.addend);
      load_floats(thread, column + 3 * g.width, s.mean);
      load_floats(thread, column + 4 * g.width, s.rstd);
    };
    const auto copy = [&](const Thread& thread, Lines& lines, int i) {
      copy_async(thread.slot(i), lines.x.next());
      copy_async(thread.slot(g.per_thread + i), lines.dy.next());
      if (sum == kRounded && lines.others) {
        copy_async(thread.slot(2 * g.per_thread + i), lines.dsum.next());
      }
    };
    if constexpr (Resident) {
      cluster.each([&](const Thread& thread, State&) {
        const Walk walk(g, thread, at, V, 0);
        Lines lines(g, b, walk);
#pragma unroll 1
        for (int i = 0; i < walk.count; ++i) copy(thread, lines, i);
      });
      cluster.no_barrier();
    }

    if (chunks == 1) prepare_chunk(0);

    int turn = 0;  // the other blocks of a cluster may still read the results of the slab before
    for (int index = cluster.index(); index < g.total; index += g.stride) {
      const int stats = g.stat + 2 * turn * g.slab_groups, totals = g.totals + 2 * turn * g.width;
      Position next = at;
      next.advance(g);
      const bool more = index + g.stride < g.total;
      for (int chunk = 0; chunk < chunks; ++chunk) {
        if (chunks > 1) prepare_chunk(chunk);
        cluster.each([&](const Thread& thread, State& s) {
          load_coefs(thread, s);
          const Walk walk(g, thread, at, V, chunk);
          Lines lines(g, b, walk);
          for (int k = 0; k < 2 * V; ++k) s.sums[k] = 0.0f;
          const auto add = [&](int, const float(&du)[V], const float(&d)[V]) {
            for (int v = 0; v < V; ++v) s.sums[v] += du[v], s.sums[V + v] += du[v] * d[v];
          };
          if constexpr (Resident) arrived();
          visit(g, thread, lines, adds, act, true, s, walk.count, add);
        });
        sum_rows<2 * V>(cluster, [](State& s) { return s.sums; });
        cluster.each([&](const Thread& thread, State& s) {
          if (!thread.leads()) return;
          const int row = g.partial + 2 * (thread.team * g.width + thread.col * V);
          store_floats(thread, row, s.sums);
          float of_group[2 * kStats] = {};
          for (int v = 0; v < V; ++v) {
            of_group[v % kStats] += s.slope[v] * s.sums[v];
            of_group[kStats + v % kStats] += s.slope[v] * s.sums[V + v];
          }
          GroupOf of(thread);
          for (int k = 0; k < kStats; ++k, of.advance(g)) {
            const int entry = Fold ? thread.channel / V : of.channel;
            const int place = of.group * share + thread.team * g.wide + entry;
            thread.at(g.share + 2 * place) = of_group[k];
            thread.at(g.share + 2 * place + 1) = of_group[kStats + k];
          }
        });
        cluster.sync_block();

        cluster.each([&](const Thread& thread, State&) {
          if (chunks == 1 && more) prepare(thread, next, 0);
          for (int group = thread.tid; group < g.slab_groups; group += g.threads) {
            float k1 = chunk ? thread.at(stats + 2 * group) : 0.0f;
            float k2 = chunk ? thread.at(stats + 2 * group + 1) : 0.0f;
#pragma unroll 4
            for (int e = 0; e < share; ++e) {
              k1 += thread.at(g.share + 2 * (group * share + e));
              k2 += thread.at(g.share + 2 * (group * share + e) + 1);
            }
            thread.at(stats + 2 * group) = k1, thread.at(stats + 2 * group + 1) = k2;
          }
#pragma unroll 1
          for (int e = thread.tid; e < 2 * g.width; e += g.threads) {
            float total = 0.0f;
#pragma unroll 4
            for (int team = 0; team < g.teams; ++team) {
              total += thread.at(g.partial + 2 * team * g.width + e);
            }
            thread.at(totals + e) = total;
          }
        });
        cluster.sync_cluster();
        cluster.each([&](const Thread& thread, State&) {
          each_channel(g, thread, at, chunk, [&](int e, int channel) {
            if (e % g.cluster != thread.rank) return;
            const int from = totals + e / V * (2 * V) + e % V;
            float s1 = 0.0f, s2 = 0.0f;
            for (int rank = 0; rank < g.cluster; ++rank) {
              s1 += thread.remote(rank, from);
              s2 += thread.remote(rank, from + V);
            }
            s2 *= static_cast<const float*>(
                b.rstd)[at.image * g.groups + channel / g.per_group];
            const int64_t image = at.image;
            float* sums = static_cast<float*>(b.sums) + 3 * image * g.c + channel;
            sums[0] = s1, sums[g.c] = s2;
            if (b.dfilm) {
              const float dscale = load_param<T>(b.weight, b.type.param, channel) * s2 +
                                   load_param<T>(b.bias, b.type.param, channel) * s1;
              store_param<T>(b.dfilm, b.type.film, 2 * image * g.c + channel, dscale);
              store_param<T>(b.dfilm, b.type.film, (2 * image + 1) * g.c + channel, s1);
            }
          });
        });
        cluster.no_barrier();
      }

      for (int chunk = 0; chunk < chunks; ++chunk) {
        if (chunks > 1) prepare_chunk(chunk);
        cluster.each([&](const Thread& thread, State& s) {
          const Walk walk(g, thread, at, V, chunk);
          Lines lines(g, b, walk);
          if (chunks > 1) load_coefs(thread, s);
          float k1[kStats], k2[kStats];
          GroupOf of(thread);
          for (int v = 0; v < kStats; ++v, of.advance(g)) {
            const int group = of.group;
            k1[v] = k2[v] = 0.0f;
#pragma unroll 1
            for (int rank = 0; rank < g.cluster; ++rank) {
              k1[v] += thread.remote(rank, stats + 2 * group);
              k2[v] += thread.remote(rank, stats + 2 * group + 1);
            }
            k1[v] *= g.inverse, k2[v] *= g.inverse * (s.rstd[v] * s.rstd[v]);
          }
          for (int v = 0; v < V; ++v) s.ds[v] = 0.0f;
          const auto write = [&](const float(&du)[V], const float(&d)[V],
                                 const Pack<T, V>& other_raw) {
            float ds[V];
            for (int v = 0; v < V; ++v) {
              ds[v] = du[v] * s.slope[v] - k1[v % kStats] - d[v] * k2[v % kStats];
            }
            if (sum == kRounded && lines.others) {
              float other[V];
              unpack(other_raw, other);
              for (int v = 0; v < V; ++v) ds[v] += other[v];
            }
            if (sum != kNone) {
              for (int v = 0; v < V; ++v) s.ds[v] += ds[v];
            }
            store<T, V>(lines.dx.next(), packed<T, V>(ds));
          };
          if constexpr (Resident) {
            Lines ahead(g, b, Walk(g, thread, next, V, 0));
            visit(g, thread, lines, adds, act, false, s, walk.count,
                  [&](int i, const float(&du)[V], const float(&d)[V]) {
                    Pack<T, V> other;
                    if (sum == kRounded && lines.others) {
                      other = thread.held<Pack<T, V>>(2 * g.per_thread + i);
                    }
                    // The slots are free now; no other thread uses them.
                    if (more) copy(thread, ahead, i);
                    write(du, d, other);
                  });
          } else {
            visit(g, thread, lines, adds, act, false, s, walk.count,
                  [&](int, const float(&du)[V], const float(&d)[V]) {
                    Pack<T, V> other;
                    if (sum == kRounded && lines.others) other = load<T, V>(lines.dsum.next());
                    write(du, d, other);
                  });
          }
        });
        cluster.no_barrier();
        if (!late) continue;
        sum_rows<V>(cluster, [](State& s) { return s.ds; });
        cluster.each([&](const Thread& thread, State& s) {
          if (!thread.leads()) return;
          store_floats(thread, g.late + thread.team * g.width + thread.col * V, s.ds);
        });
        cluster.sync_cluster();
        cluster.each([&](const Thread& thread, State&) {
          each_channel(g, thread, at, chunk, [&](int e, int channel) {
            if (channel >= g.first || e % g.cluster != thread.rank) return;
            float total = 0.0f;
#pragma unroll 1
            for (int rank = 0; rank < g.cluster; ++rank) {
#pragma unroll 4
              for (int team = 0; team < g.teams; ++team) {
                total += thread.remote(rank, g.late + team * g.width + e);
              }
            }
            const int64_t image = at.image;
            if (b.daddend_rows == 1) {
              static_cast<float*>(b.sums)[(3 * image + 2) * g.c + channel] = total;
            } else {
              store_param<T>(b.daddend, b.type.addend, image * g.first + channel, total);
            }
          });
        });
        cluster.no_barrier();
      }
      at = next, turn ^= 1;
    }
    cluster.leave();
  }
};

// dweight, dbias and daddend from the images' sums: a block has 8 channels and splits the images
// over its rows.
template <class T>
struct ParamBody {
  static constexpr int kBlocksPerSm = 1;
  static constexpr bool kResident = false;
  static constexpr int kKinds = 3;
  using Call = Backward;
  struct State {
    float sums[kKinds];
  };

  static Geometry geometry(const Sizes& size) {
    Geometry g{};
    g.c = int(size.c), g.hw = size.n;
    g.cols = 8, g.warp_rows = kWarp / g.cols, g.tree = g.warp_rows / 2;
    g.teams = kThreads / kWarp, g.rows = g.teams * g.warp_rows, g.threads = kThreads;
    g.pixels = int(g.hw);
    g.total = g.grid = (size.c + g.cols - 1) / g.cols;
    g.slabs = g.cluster = g.vector = g.split = g.per_group = 1;
    g.by_split = g.by_group = divisor(1), g.by_cols = divisor(g.cols);
    g.floats = kKinds * g.teams * g.cols;
    return g;
  }

  PDFAST_DEVICE static void run(Cluster<State>& cluster, const Backward& b) {
    const Geometry& g = cluster.g;
    const int64_t channel0 = int64_t{cluster.index()} * g.cols;
    const bool adds = b.daddend && b.daddend_rows == 1;
    cluster.each([&](const Thread& thread, State& s) {
      const int64_t channel = channel0 + thread.col;
      for (int k = 0; k < kKinds; ++k) s.sums[k] = 0.0f;
      if (channel >= g.c) return;
      const bool added = adds && channel < b.at.first;
#pragma unroll 4
      for (int i = 0; i < thread.count; ++i) {
        const int64_t n = thread.row + int64_t{i} * g.rows, at = 3 * int64_t{g.c} * n + channel;
        const float* sums = static_cast<const float*>(b.sums) + at;
        const float gain =
            b.film ? 1.0f + load_param<T>(b.film, b.type.film, n * b.at.film_stride + channel)
                   : 1.0f;
        s.sums[0] += gain * sums[g.c];
        s.sums[1] += gain * sums[0];
        if (added) s.sums[2] += sums[2 * g.c];
      }
    });
    sum_rows<kKinds>(cluster, [](State& s) { return s.sums; });
    cluster.each([&](const Thread& thread, State& s) {
      if (!thread.leads()) return;
      for (int k = 0; k < kKinds; ++k) {
        thread.at((thread.team * kKinds + k) * g.cols + thread.col) = s.sums[k];
      }
    });
    cluster.sync_block();
    cluster.each([&](const Thread& thread, State&) {
      const int kind = thread.tid / g.cols;
      const int64_t channel = channel0 + thread.tid % g.cols;
      if (kind >= kKinds || channel >= g.c) return;
      float sum = 0.0f;
      for (int team = 0; team < g.teams; ++team) {
        sum += thread.at((team * kKinds + kind) * g.cols + thread.tid % g.cols);
      }
      if (kind == 0) store_param<T>(b.dweight, b.type.param, channel, sum);
      if (kind == 1) store_param<T>(b.dbias, b.type.param, channel, sum);
      if (kind == 2 && adds && channel < b.at.first) {
        store_param<T>(b.daddend, b.type.addend, channel, sum);
      }
    });
    cluster.leave();
  }
};

}  // namespace pdfast

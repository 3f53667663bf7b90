// The forward kernel of group_norm_silu; group_norm_silu.cu describes how it works.

#pragma once

#include "group_norm_silu_parts.cuh"

namespace pdfast {

// Moments of some values: their number, a pivot, their mean less the pivot, and their squared
// deviations from the mean. The pivot is near the mean, so no digits are lost where that is far
// from 0.
struct Moments {
  float count, pivot, mean, square;
};

// Moves the pivot to the mean, rounded to a float; `mean` becomes the rounding error.
PDFAST_DEVICE void center(Moments& a) {
  const float mean = a.pivot + a.mean;
  a.mean = (a.pivot - mean) + a.mean;
  a.pivot = mean;
}

// Merges two sets' moments as in Chan, Golub and LeVeque, 1979. If `a` is empty, so is `b`.
PDFAST_DEVICE void merge(Moments& a, const Moments& b) {
  const float count = a.count + b.count, share = quotient(b.count, fmaxf(count, 1.0f));
  const float apart = (b.pivot - a.pivot) + (b.mean - a.mean);
  a.mean += apart * share;
  a.square += b.square + apart * apart * (a.count * share);
  a.count = count;
  center(a);
}

PDFAST_DEVICE Moments moments_of(const Quad& q) {
  return {q.value[0], q.value[1], q.value[2], q.value[3]};
}
PDFAST_DEVICE Quad quad_of(const Moments& m) { return {{m.count, m.pivot, m.mean, m.square}}; }

// Fold: a vector lies in one group, so a thread has moments of whole vectors; otherwise it has
// moments of each of the vector's channels. Silu and Sum may be kAsk.
template <class T, int V, bool Resident, bool Fold, int Silu, int Sum>
struct ForwardBody {
  static constexpr int kBlocksPerSm = Resident ? 4 : 3;  // at most 128 and 168 registers
  static constexpr int kTogether = Resident ? 1 : V == 8 ? 2 : 4;  // vectors in registers at a time
  static constexpr int kUnrolled = Resident && Fold ? 2 : 1;
  static constexpr bool kResident = Resident;
  static constexpr int kStats = Fold ? 1 : V;
  static constexpr int kSums = Fold && V > 1 ? 2 : kStats;  // two short sums round less than one
  using Call = Forward;
  struct State {
    Moments stats[kStats], group;
    float weight[V], bias[V], addend[V];
  };

  // The memory that a pass reads and writes, as one thread sees it.
  struct Lines {
    Line<const T> x, residual;
    Line<T> sum;
    bool residuals, sums;  // whether this column has them

    PDFAST_DEVICE Lines(const Geometry& g, const Forward& f, const Walk& walk)
        : x(part(g, walk, static_cast<const T*>(f.x), static_cast<const T*>(f.skip))),
          residual(part<const T>(g, walk, static_cast<const T*>(f.residual), nullptr)),
          sum(part<T>(g, walk, static_cast<T*>(f.sum), nullptr)),
          residuals(in_register(f.residual && !walk.second)),
          sums(in_register(f.sum && !walk.second)) {}
  };

  // Calls use(i, value) for the vectors [begin, end) of a walk; `lines` is at `begin`. `first`:
  // this is the first pass over them.
  template <class Use>
  PDFAST_DEVICE static void visit(const Geometry& g, const Thread& thread, Lines& lines, int sum,
                                  bool first, const float (&addend)[V], int begin, int end,
                                  Use use) {
    const bool rounds = sum == kRounded && (first || !Resident);
#pragma unroll kUnrolled
    for (int i = begin; i < end; i += kTogether) {
      Pack<T, V> raw[kTogether], more[kTogether];
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        if (kTogether > 1 && i + k >= end) continue;
        if constexpr (Resident) {
          raw[k] = thread.held<Pack<T, V>>(i + k);
        } else {
          raw[k] = load<T, V>(lines.x.next());
        }
        if (rounds && lines.residuals) more[k] = load<T, V>(lines.residual.next());
      }
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        if (kTogether > 1 && i + k >= end) continue;
        float value[V];
        unpack(raw[k], value);
        if (rounds || sum == kAddend) {
          for (int v = 0; v < V; ++v) value[v] += addend[v];
        }
        if (rounds) {
          if (lines.residuals) add(more[k], value);
          const Pack<T, V> rounded = packed<T, V>(value);
          if (lines.sums) {
            T* to = lines.sum.next();
            if (first) store<T, V>(to, rounded);
          }
          if constexpr (Resident) thread.hold(i + k, rounded);
          unpack(rounded, value);
        }
        use(i + k, value);
      }
    }
  }

  PDFAST_DEVICE static void add(const Pack<T, V>& pack, float (&value)[V]) {
    float other[V];
    unpack(pack, other);
    for (int v = 0; v < V; ++v) value[v] += other[v];
  }

  // Merges the vectors [begin, end) of a walk into the thread's moments. Sums about a pivot lose
  // digits where the pivot is further from the mean than the spread is wide. For the first
  // vectors, the pivot is the first of them; if it lies too far from the mean, another one is tried,
  // and then their mean. For later vectors the pivot is the mean of all earlier ones. That is always
  // safe: if it is far from the new vectors, the spread of all vectors is as wide.
  PDFAST_DEVICE static void measure(const Geometry& g, const Thread& thread, Lines& lines,
                                    int sum, State& s, int begin, int end) {
    if (begin >= end) return;
    const float count = float(end - begin) * (V / kStats), share = quotient(1.0f, count);
    const bool begins = Resident || s.stats[0].count == 0.0f;
    float pivot[kStats], mean[kStats], square[kStats];
    for (int k = 0; k < kStats; ++k) pivot[k] = s.stats[k].pivot, mean[k] = s.stats[k].mean;
#pragma unroll 1
    for (int tries = 0;; ++tries) {
      if (begins && tries < 2) {
        const int i = tries ? end - 1 : begin;
        float value[V];
        if constexpr (Resident) {
          unpack(thread.held<Pack<T, V>>(i), value);
        } else {
          unpack(load<T, V>(lines.x.ahead(i - begin)), value);
        }
        if (sum == kRounded && lines.residuals && !(Resident && tries)) {
          add(load<T, V>(lines.residual.ahead(i - begin)), value);
        }
        for (int k = 0; k < kStats; ++k) pivot[k] = mean[k] = 0.0f;
        for (int v = 0; v < V; ++v) {
          if (sum == kAddend || (sum == kRounded && !(Resident && tries))) value[v] += s.addend[v];
          pivot[v % kStats] += value[v] * (float(kStats) / V);
        }
      }
      for (int k = 0; k < kStats; ++k) pivot[k] += mean[k];
      float total[kSums] = {}, squares[kSums] = {};
      Lines here = lines;
      visit(g, thread, here, sum, tries == 0, s.addend, begin, end,
            [&](int, const float(&value)[V]) {
              for (int v = 0; v < V; ++v) {
                const float d = value[v] - pivot[v % kStats];
                total[v % kSums] += d;
                squares[v % kSums] += d * d;
              }
            });
      bool far = false;
      for (int k = 0; k < kStats; ++k) {
        for (int j = k + kStats; j < kSums; j += kStats) {
          total[k] += total[j], squares[k] += squares[j];
        }
        mean[k] = total[k] * share;
        square[k] = squares[k] - total[k] * mean[k];
        far |= total[k] * mean[k] > 2.0f * square[k];
      }
      if (!begins || !far || tries == 2) {
        lines = here;
        break;
      }
    }
    for (int k = 0; k < kStats; ++k) {
      Moments here = {count, pivot[k], mean[k], square[k]};
      center(here);
      if (begins) {
        s.stats[k] = here;
      } else {
        merge(s.stats[k], here);
      }
    }
  }

  PDFAST_DEVICE static void run(Cluster<State>& cluster, const Forward& f) {
    const Geometry& g = cluster.g;
    const int chunks = Resident ? 1 : g.chunks, sum = Sum == kAsk ? sum_of(f) : Sum;
    const bool act = (Silu == kAsk ? f.silu : Silu) != 0;
    const int share = g.teams * g.wide;  // partial statistics of a group
    Position at(g, cluster.index());

    const auto copy = [&](const Thread& thread, Line<const T>& x, int i) {
      copy_async(thread.slot(i), x.next());
    };
    if constexpr (Resident) {
      cluster.each([&](const Thread& thread, State&) {
        const Walk walk(g, thread, at, V, 0);
        Lines lines(g, f, walk);
#pragma unroll 1
        for (int i = 0; i < walk.count; ++i) copy(thread, lines.x, i);
      });
      cluster.no_barrier();
    }
    const auto prepare = [&](const Thread& thread, Position where, int chunk) {
      each_channel(g, thread, where, chunk, [&](int e, int channel) {
        const Coefs coefs = coefs_of<T>(f, where.image, channel);
        thread.at(g.coef + e) = coefs.weight;
        thread.at(g.coef + g.width + e) = coefs.bias;
        thread.at(g.coef + 2 * g.width + e) = coefs.addend;
      });
    };
    const auto prepare_chunk = [&](int chunk) {
      cluster.sync_block();
      cluster.each([&](const Thread& thread, State&) { prepare(thread, at, chunk); });
      cluster.sync_block();
    };
    const auto load_coefs = [&](const Thread& thread, State& s) {
      const int column = g.coef + thread.col * V;
      load_floats(thread, column, s.weight);
      load_floats(thread, column + g.width, s.bias);
      if (sum != kNone) load_floats(thread, column + 2 * g.width, s.addend);
    };
    if (chunks == 1) prepare_chunk(0);

    int stats = g.stat;
    for (int index = cluster.index(); index < g.total; index += g.stride) {
      for (int chunk = 0; chunk < chunks; ++chunk) {
        if (chunks > 1) prepare_chunk(chunk);
        cluster.each([&](const Thread& thread, State& s) {
          load_coefs(thread, s);
          if (chunk == 0) {
            for (int k = 0; k < kStats; ++k) s.stats[k] = {};
          }
          const Walk walk(g, thread, at, V, chunk);
          Lines lines(g, f, walk);
          if constexpr (Resident) {
            arrived();
            measure(g, thread, lines, sum, s, 0, walk.count);
          } else {
            constexpr int kStretch = 4 * kTogether;
#pragma unroll 1
            for (int i = 0; i < walk.count; i += kStretch) {
              const int end = i + kStretch;
              measure(g, thread, lines, sum, s, i, end < walk.count ? end : walk.count);
            }
          }
        });
      }
#pragma unroll 1
      for (int d = g.tree; d > 0; d /= 2) {
        cluster.template from_above<4 * kStats>(
            d * g.cols, [](State& s) { return &s.stats[0].count; },
            [&](const Thread& thread, State& s, const float(&other)[4 * kStats]) {
              if (thread.warp_row + d >= g.warp_rows) return;
              for (int k = 0; k < kStats; ++k) {
                const float* o = other + 4 * k;
                merge(s.stats[k], {o[0], o[1], o[2], o[3]});
              }
            });
      }
      cluster.no_barrier();
      cluster.each([&](const Thread& thread, State& s) {
        if (!thread.leads()) return;
        GroupOf of(thread);
        for (int k = 0; k < kStats; ++k, of.advance(g)) {
          const int entry = Fold ? thread.channel / V : of.channel;
          const int place = of.group * share + thread.team * g.wide + entry;
          thread.put(g.partial + 4 * place, quad_of(s.stats[k]));
        }
      });
      cluster.sync_block();

      Position next = at;
      next.advance(g);
      const bool more = index + g.stride < g.total;
      if (chunks == 1 && more) {
        cluster.each([&](const Thread& thread, State&) { prepare(thread, next, 0); });
        cluster.no_barrier();
      }
      // All groups at once, unless they outnumber the threads.
#pragma unroll 1
      for (int before = 0; before < g.slab_groups; before += g.at_once) {
        cluster.each([&](const Thread& thread, State& s) {
          const int group = before + thread.share;
          s.group = {};
          if (group >= g.slab_groups) return;
          for (int e = thread.part; e < share; e += g.split) {
            const Moments m = moments_of(thread.quad(g.partial + 4 * (group * share + e)));
            if (s.group.count == 0.0f) {
              s.group = m;
            } else {
              merge(s.group, m);
            }
          }
        });
#pragma unroll 1
        for (int d = g.split / 2; d > 0; d /= 2) {
          cluster.template from_above<4>(
              d, [](State& s) { return &s.group.count; },
              [&](const Thread& thread, State& s, const float(&o)[4]) {
                if (thread.part + d < g.split) merge(s.group, {o[0], o[1], o[2], o[3]});
              });
        }
        cluster.no_barrier();
        cluster.each([&](const Thread& thread, State& s) {
          const int group = before + thread.share;
          if (thread.part == 0 && group < g.slab_groups) {
            thread.put(stats + 4 * group, quad_of(s.group));
          }
        });
        cluster.no_barrier();
      }
      cluster.sync_cluster();

      for (int chunk = 0; chunk < chunks; ++chunk) {
        if (chunks > 1) prepare_chunk(chunk);
        cluster.each([&](const Thread& thread, State& s) {
          if (chunks > 1) load_coefs(thread, s);
          float mean[kStats], slope[V], offset[V];
          const Walk walk(g, thread, at, V, chunk);
          Lines lines(g, f, walk);
          Line<T> y = whole(g, walk, static_cast<T*>(f.y));
          float rest = 0.0f, rstd = 0.0f;
          GroupOf of(thread);
          for (int v = 0; v < V; ++v, of.advance(g)) {
            if (v < kStats) {
              const int group = of.group;
              Moments m = moments_of(thread.remote_quad(0, stats + 4 * group));
#pragma unroll 1
              for (int rank = 1; rank < g.cluster; ++rank) {
                merge(m, moments_of(thread.remote_quad(rank, stats + 4 * group)));
              }
              rstd = inverse_root(m.square * g.inverse + float(f.eps));
              // The mean is pivot + mean, rounded. The rounding error (Knuth's exact sum) goes into
              // the offset, so u = (s - mean) * slope + offset cancels only in s - mean.
              const float rounded = m.pivot + m.mean, part = rounded - m.pivot;
              rest = (m.pivot - (rounded - part)) + (m.mean - part);
              mean[v] = rounded;
              if (thread.rank == 0 && thread.row == 0 && thread.leads() && of.channel == 0 &&
                  chunk == 0) {
                const int64_t place = at.image * g.groups + at.slab * g.slab_groups + group;
                static_cast<float*>(f.mean)[place] = rounded;
                static_cast<float*>(f.rstd)[place] = rstd;
              }
            }
            slope[v] = rstd * s.weight[v];
            offset[v] = s.bias[v] - rest * slope[v];
          }
          const auto apply = [&](const float(&value)[V]) {
            float out[V];
            for (int v = 0; v < V; ++v) {
              const float u = (value[v] - mean[v % kStats]) * slope[v] + offset[v];
              out[v] = act ? u * sigmoid<T>(u) : u;
            }
            store<T, V>(y.next(), packed<T, V>(out));
          };
          if constexpr (Resident) {
            Line<const T> ahead = Lines(g, f, Walk(g, thread, next, V, 0)).x;
            visit(g, thread, lines, sum, false, s.addend, 0, walk.count,
                  [&](int i, const float(&value)[V]) {
                    // The slot is free now; no other thread uses it.
                    if (more) copy(thread, ahead, i);
                    apply(value);
                  });
          } else {
            visit(g, thread, lines, sum, false, s.addend, 0, walk.count,
                  [&](int, const float(&value)[V]) { apply(value); });
          }
        });
      }
      at = next;
      stats = 2 * g.stat + 4 * g.slab_groups - stats;  // other blocks may still read these
      cluster.no_barrier();
    }
    cluster.leave();
  }
};

}  // namespace pdfast

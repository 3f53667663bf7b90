// The forward kernel of group_norm_silu; group_norm_silu.cu says how it works.

#pragma once

#include "group_norm_silu_parts.cuh"

namespace pdfast {

// Silu counts for resident slabs only; the others ask the call, to keep the kernels few.
template <class T, int V, bool Resident, bool Silu>
struct ForwardBody {
  // As many blocks as 64 KB slabs fit an SM, so at most 80 registers; streaming wants loads in
  // flight rather than blocks.
  static constexpr int kBlocksPerSm = Resident ? 3 : 2;
  static constexpr int kMerged = Resident && V == 8 ? 2 : 4;  // vectors in registers at a time
  static constexpr int kApplied = Resident ? 1 : 4;
  static constexpr bool kResident = Resident;
  using Call = Forward;
  struct State {
    float count, mean[V], square[V];
  };

  // One outlier among the three does not become the pivot; a NaN only where all are.
  PDFAST_DEVICE static float median(float a, float b, float c) {
    return fmaxf(fminf(a, b), fminf(fmaxf(a, b), c));
  }

  // Merges the vectors [begin, end) of a walk into the thread's statistics, kMerged at a time.
  PDFAST_DEVICE static void merge(const Geometry& g, const Thread& thread, State& s, const T* x,
                                  const Walk& walk, const float (&pivot)[V], int begin, int end) {
#pragma unroll 1
    for (int i = begin; i < end; i += kMerged) {
      Pack<T, V> raw[kMerged];
      float mean[V] = {}, value[V];
#pragma unroll
      for (int k = 0; k < kMerged; ++k) {
        if (i + k < end) raw[k] = vector_at<T, V, Resident>(g, thread, x, walk, i + k, 0);
      }
#pragma unroll
      for (int k = 0; k < kMerged; ++k) {
        if (i + k >= end) continue;
        unpack(raw[k], value);
        for (int v = 0; v < V; ++v) mean[v] += value[v] - pivot[v];
      }
      const float count = end - i < kMerged ? float(end - i) : float(kMerged);
      const float share = quotient(1.0f, count);
      for (int v = 0; v < V; ++v) mean[v] *= share;
#pragma unroll
      for (int k = 0; k < kMerged; ++k) {
        if (i + k >= end) continue;
        unpack(raw[k], value);
        for (int v = 0; v < V; ++v) {
          const float d = value[v] - pivot[v] - mean[v];
          s.square[v] += d * d;
        }
      }
      const float ratio = quotient(count, s.count + count);
      for (int v = 0; v < V; ++v) {
        const float d = mean[v] - s.mean[v];
        s.mean[v] += d * ratio;
        s.square[v] += d * d * (s.count * ratio);
      }
      s.count += count;
    }
  }

  // Sum of group `j`'s partial sums of a kind in this block; sum_rows has run.
  PDFAST_DEVICE static float sum_group(const Geometry& g, const Thread& thread, int j, int kind) {
    const int entries = g.fold ? g.cols : g.width;
    const int wide = !Resident && g.chunks > 1 ? g.cols : g.fold ? g.per_group / V : g.per_group;
    float sum = 0.0f;
    for (int s = 0; s < g.segments; ++s) {
      for (int k = 0; k < wide; ++k) {
        const int e = j * wide + k;
        const int at = g.fold ? e : e % V * g.cols + e / V;
        sum += thread.at(g.partial + (2 * s + kind) * entries + at);
      }
    }
    return sum;
  }

  PDFAST_DEVICE static void run(Cluster<State>& cluster, const Forward& f, int64_t image,
                                int slab) {
    const Geometry& g = cluster.g;
    const int chunks = Resident ? 1 : g.chunks;
    const int64_t channel0 = int64_t{slab} * g.slab;
    const T* x = static_cast<const T*>(f.x) + image * g.hw * g.c + channel0;
    T* y = static_cast<T*>(f.y) + image * g.hw * g.c + channel0;
    const int groups = g.slab < g.per_group ? 1 : g.slab / g.per_group;
    const int pivots = g.coef, slopes = g.coef + g.width, offsets = g.coef + 2 * g.width;
    const int entries = g.fold ? g.cols : g.width;
    const int per_thread = g.fold ? 1 : V;
    const bool act = Resident ? Silu : f.silu != 0;

    // The affine part of a chunk's channels; each is finished later by the thread that loads it.
    const auto load_affine = [&](const Thread& thread, int chunk) {
#pragma unroll 1
      for (int e = thread.tid; e < g.width; e += g.threads) {
        const int in_slab = chunk * g.width + e;
        if (in_slab >= g.slab) break;
        const int64_t channel = channel0 + in_slab;
        const Affine affine = film<T>({load_param<T>(f.weight, f.type.param, channel),
                                       load_param<T>(f.bias, f.type.param, channel)},
                                      f.film, f.type.film, image, g.c, channel);
        if (g.hw) {
          const T* group = x + in_slab / g.per_group * g.per_group;
          thread.at(pivots + e) = median(to_float(group[0]), to_float(group[g.hw / 2 * g.c]),
                                         to_float(group[(g.hw - 1) * g.c]));
        }
        thread.at(slopes + e) = affine.weight;
        thread.at(offsets + e) = affine.bias;
      }
    };

    cluster.each([&](const Thread& thread, State&) {
      if constexpr (Resident) {
        const Walk walk(g, thread, V, 0);
        for (int stage = 0, i = 0; stage < kStages; ++stage) {
#pragma unroll 1
          for (int end = i + g.stage; i < end; ++i) {
            if (i < walk.count) {
              copy_async(thread.slot(i * g.rows * g.cols + thread.tid),
                         x + walk.first + i * walk.step);
            }
          }
          commit();
        }
      }
      load_affine(thread, 0);
    });
    cluster.sync_block();

    cluster.each([&](const Thread& thread, State& s) {
      s.count = 0.0f;
      float pivot[V];
      for (int v = 0; v < V; ++v) {
        s.mean[v] = s.square[v] = 0.0f;
        pivot[v] = thread.at(pivots + thread.col * V + v);
      }
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const Walk walk(g, thread, V, chunk);
        if constexpr (Resident) {
#pragma unroll 1
          for (int stage = 0; stage < kStages; ++stage) {
            arrived(kStages - 1 - stage);
            const int end = (stage + 1) * g.stage;
            merge(g, thread, s, x, walk, pivot, stage * g.stage,
                  end < walk.count ? end : walk.count);
          }
        } else {
          merge(g, thread, s, x, walk, pivot, 0, walk.count);
        }
      }
      if (g.fold) {  // one group: one mean
        float mean = 0.0f, square = 0.0f;
        for (int v = 0; v < V; ++v) mean += s.mean[v] * (1.0f / V);
        for (int v = 0; v < V; ++v) {
          const float d = s.mean[v] - mean;
          square += s.square[v] + s.count * (d * d);
        }
        s.count *= V, s.mean[0] = mean, s.square[0] = square;
      }
      if (!thread.active) return;
      for (int v = 0; v < V; ++v) {
        if (v < per_thread) {
          const int at = g.partial + 2 * thread.row * entries + v * g.cols + thread.col;
          thread.at(at) = s.count * s.mean[v];
        }
      }
    });
    cluster.sync_block();
    sum_rows(cluster, 2 * entries, entries);
    const auto stat = [&](int j, int k) { return g.stat + 3 * j + k; };
    cluster.each([&](const Thread& thread, State&) {
      const float count = float(pixels_of(g, thread.rank)) * float(g.per_group);
      for (int j = thread.tid; j < groups; j += g.threads) {
        thread.at(stat(j, 0)) = count > 0.0f ? sum_group(g, thread, j, 0) / count : 0.0f;
      }
    });
    cluster.sync_block();

    cluster.each([&](const Thread& thread, State& s) {
      if (!thread.active) return;
      for (int v = 0; v < V; ++v) {
        if (v < per_thread) {
          const int j = chunks > 1 ? 0 : (thread.col * V + v) / g.per_group;
          const float d = s.mean[v] - thread.at(stat(j, 0));
          const int at = g.partial + 2 * thread.row * entries + v * g.cols + thread.col;
          thread.at(at) = s.count * d;
          thread.at(at + entries) = s.square[v] + s.count * (d * d);
        }
      }
    });
    cluster.sync_block();
    sum_rows(cluster, 2 * entries, 2 * entries);
    cluster.each([&](const Thread& thread, State&) {
      const float count = float(pixels_of(g, thread.rank)) * float(g.per_group);
      for (int j = thread.tid; j < groups; j += g.threads) {
        // What the deviations add up to is the rounding of the first mean.
        const float rest = sum_group(g, thread, j, 0), shift = count > 0.0f ? rest / count : 0.0f;
        thread.at(stat(j, 1)) = sum_group(g, thread, j, 1) - rest * shift;
        thread.at(stat(j, 2)) = shift;
      }
    });
    cluster.sync_cluster();

    for (int chunk = 0; chunk < chunks; ++chunk) {
      cluster.each([&](const Thread& thread, State&) {
        if (chunk > 0) load_affine(thread, chunk);
        const float total = float(g.hw) * float(g.per_group);
#pragma unroll 1
        for (int e = thread.tid; e < g.width; e += g.threads) {
          const int in_slab = chunk * g.width + e, j = in_slab / g.per_group;
          if (in_slab >= g.slab) break;
          // Block 0's first mean is relative to the pivot; all else, relative to that first mean.
          const float first = thread.remote(0, stat(j, 0));
          const auto above = [&](int rank) {
            return (thread.remote(rank, stat(j, 0)) - first) + thread.remote(rank, stat(j, 2));
          };
          float mean = 0.0f, square = 0.0f;
#pragma unroll 1
          for (int rank = 0; rank < g.cluster; ++rank) {
            const float count = float(pixels_of(g, rank)) * float(g.per_group);
            mean += count / total * above(rank);
          }
#pragma unroll 1
          for (int rank = 0; rank < g.cluster; ++rank) {
            const float count = float(pixels_of(g, rank)) * float(g.per_group);
            const float d = above(rank) - mean;
            square += thread.remote(rank, stat(j, 1)) + count * (d * d);
          }
          const float rstd = 1.0f / sqrtf(square / total + float(f.eps));
          // From the pivot to the mean itself: what rounding it leaves over goes into the offset
          // (Knuth's exact sum), so u = (x - mean) * slope + offset cancels in x - mean alone.
          const float pivot = thread.at(pivots + e), sum = pivot + first, part = sum - pivot;
          const float left = ((pivot - (sum - part)) + (first - part)) + mean;
          const float rounded = sum + left, rest = (sum - rounded) + left;
          const float slope = rstd * thread.at(slopes + e);
          thread.at(pivots + e) = rounded;
          thread.at(slopes + e) = slope;
          thread.at(offsets + e) -= rest * slope;
          if (thread.rank == 0 && in_slab % g.per_group == 0) {
            const int64_t group = image * g.groups + channel0 / g.per_group + j;
            static_cast<float*>(f.mean)[group] = rounded;
            static_cast<float*>(f.rstd)[group] = rstd;
          }
        }
      });
      if (chunk == 0) cluster.depart();
      cluster.sync_block();
      cluster.each([&](const Thread& thread, State&) {
        const Walk walk(g, thread, V, chunk);
        float pivot[V], slope[V], offset[V];
        for (int v = 0; v < V; ++v) {
          const int e = thread.col * V + v;
          pivot[v] = thread.at(pivots + e), slope[v] = thread.at(slopes + e);
          offset[v] = thread.at(offsets + e);
        }
#pragma unroll 1
        for (int i = 0; i < walk.count; i += kApplied) {
          Pack<T, V> raw[kApplied];
#pragma unroll
          for (int k = 0; k < kApplied; ++k) {
            if (i + k < walk.count) {
              raw[k] = vector_at<T, V, Resident>(g, thread, x, walk, i + k, 0);
            }
          }
#pragma unroll
          for (int k = 0; k < kApplied; ++k) {
            if (i + k >= walk.count) continue;
            float value[V];
            unpack(raw[k], value);
            for (int v = 0; v < V; ++v) {
              const float u = (value[v] - pivot[v]) * slope[v] + offset[v];
              value[v] = act ? u * sigmoid<T>(u) : u;
            }
            store<T, V>(y + walk.first + (i + k) * walk.step, packed<T, V>(value));
          }
        }
      });
      if (chunk + 1 < chunks) cluster.sync_block();
    }
    cluster.await();
  }
};

}  // namespace pdfast

// The backward kernels of group_norm_silu; group_norm_silu.cu says how they work.

#pragma once

#include "group_norm_silu_parts.cuh"

namespace pdfast {

// With d = x - mean, u = d * slope + offset and du = dL/du, per channel S1 = sum du and
// S2 = rstd * sum du * d; per group k1 = mean of slope * S1, k2 = rstd * mean of slope * S2:
// dx = slope * du - k1 - d * k2.
template <class T, int V, bool Resident, bool Silu>
struct BackwardBody {
  static constexpr int kBlocksPerSm = Resident ? 3 : 2;  // at most 80 and 128 registers
  static constexpr int kTogether = Resident ? 1 : 2;  // vectors of x and dy in registers at a time
  static constexpr bool kResident = Resident;
  using Call = Backward;
  struct State {};

  struct Channels {
    float mean[V], slope[V], offset[V];
  };

  // dL/du and d of one pixel's vector.
  PDFAST_DEVICE static void backprop(bool act, const Channels& ch, const Pack<T, V>& x_raw,
                                     const Pack<T, V>& dy_raw, float (&du)[V], float (&d)[V]) {
    unpack(x_raw, d);
    unpack(dy_raw, du);
    for (int v = 0; v < V; ++v) {
      d[v] -= ch.mean[v];
      if (act) {
        const float u = d[v] * ch.slope[v] + ch.offset[v];
        const float s = sigmoid<T>(u);
        du[v] *= s * (1.0f + u * (1.0f - s));
      }
    }
  }

  PDFAST_DEVICE static void run(Cluster<State>& cluster, const Backward& b, int64_t image,
                                int slab) {
    const Geometry& g = cluster.g;
    const int chunks = Resident ? 1 : g.chunks;
    const int64_t channel0 = int64_t{slab} * g.slab;
    const int64_t base = image * g.hw * g.c + channel0;
    const T* x = static_cast<const T*>(b.x) + base;
    const T* dy = static_cast<const T*>(b.dy) + base;
    T* dx = static_cast<T*>(b.dx) + base;
    const int groups = g.slab < g.per_group ? 1 : g.slab / g.per_group;
    const int means = g.coef, slopes = means + g.width, offsets = slopes + g.width;
    const int rstds = offsets + g.width, weights = rstds + g.width, biases = weights + g.width;
    const int stride = (2 * V + 1) * g.cols;  // one column of padding: rows start in other banks
    const bool act = Resident ? Silu : b.silu != 0;
    const auto stat = [&](int j, int k) { return g.stat + 2 * j + k; };

    const auto load_channels = [&](const Thread& thread, int chunk) {
#pragma unroll 1
      for (int e = thread.tid; e < g.width; e += g.threads) {
        const int in_slab = chunk * g.width + e;
        if (in_slab >= g.slab) break;
        const int64_t channel = channel0 + in_slab;
        const int64_t group = image * g.groups + channel / g.per_group;
        const Affine plain = {load_param<T>(b.weight, b.type.param, channel),
                              load_param<T>(b.bias, b.type.param, channel)};
        const Affine affine = film<T>(plain, b.film, b.type.film, image, g.c, channel);
        const float rstd = static_cast<const float*>(b.rstd)[group];
        thread.at(means + e) = static_cast<const float*>(b.mean)[group];
        thread.at(slopes + e) = rstd * affine.weight;
        thread.at(offsets + e) = affine.bias;
        thread.at(rstds + e) = rstd;
        thread.at(weights + e) = plain.weight;
        thread.at(biases + e) = plain.bias;
      }
    };
    const auto channels_of = [&](const Thread& thread) {
      Channels ch;
      for (int v = 0; v < V; ++v) {
        const int e = thread.col * V + v;
        ch.mean[v] = thread.at(means + e), ch.slope[v] = thread.at(slopes + e);
        ch.offset[v] = thread.at(offsets + e);
      }
      return ch;
    };
    // Calls use(i, du, d) for the vectors [begin, end) of a walk.
    const auto visit = [&](const Thread& thread, const Channels& ch, const Walk& walk, int begin,
                           int end, auto use) {
#pragma unroll 1
      for (int i = begin; i < end; i += kTogether) {
        Pack<T, V> x_raw[kTogether], dy_raw[kTogether];
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          if (i + k >= end) continue;
          x_raw[k] = vector_at<T, V, Resident>(g, thread, x, walk, i + k, 0);
          dy_raw[k] = vector_at<T, V, Resident>(g, thread, dy, walk, i + k, 1);
        }
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
          if (i + k >= end) continue;
          float du[V], d[V];
          backprop(act, ch, x_raw[k], dy_raw[k], du, d);
          use(i + k, du, d);
        }
      }
    };

    for (int chunk = 0; chunk < chunks; ++chunk) {
      cluster.each([&](const Thread& thread, State&) {
        if constexpr (Resident) {
          const Walk walk(g, thread, V, 0);
          const int plane = g.rows * g.cols;
          for (int stage = 0, i = 0; stage < kStages; ++stage) {
            for (int end = i + g.stage; i < end; ++i) {
              if (i >= walk.count) continue;
              const int64_t at = walk.first + i * walk.step;
              copy_async(thread.slot(i * plane + thread.tid), x + at);
              copy_async(thread.slot((g.per_thread + i) * plane + thread.tid), dy + at);
            }
            commit();
          }
        }
        load_channels(thread, chunk);
      });
      cluster.sync_block();

      cluster.each([&](const Thread& thread, State&) {
        const Walk walk(g, thread, V, chunk);
        const Channels ch = channels_of(thread);
        float sum[2 * V] = {};
        const auto add = [&](int, const float(&du)[V], const float(&d)[V]) {
          for (int v = 0; v < V; ++v) sum[v] += du[v], sum[V + v] += du[v] * d[v];
        };
        if constexpr (Resident) {
#pragma unroll 1
          for (int stage = 0; stage < kStages; ++stage) {
            arrived(kStages - 1 - stage);
            const int end = (stage + 1) * g.stage;
            visit(thread, ch, walk, stage * g.stage, end < walk.count ? end : walk.count, add);
          }
        } else {
          visit(thread, ch, walk, 0, walk.count, add);
        }
        if (!thread.active) return;
        for (int k = 0; k < 2 * V; ++k) {
          thread.at(g.partial + thread.row * stride + k * g.cols + thread.col) = sum[k];
        }
      });
      cluster.sync_block();
      sum_rows(cluster, stride, 2 * g.width);
      cluster.each([&](const Thread& thread, State&) {
        for (int e = thread.tid; e < 2 * g.width; e += g.threads) {
          float sum = 0.0f;
          for (int s = 0; s < g.segments; ++s) sum += thread.at(g.partial + s * stride + e);
          thread.at(g.total + e) = sum;
        }
      });
      cluster.sync_cluster();

      cluster.each([&](const Thread& thread, State&) {
#pragma unroll 1
        for (int e = thread.tid; e < g.width; e += g.threads) {
          const int in_slab = chunk * g.width + e;
          if (in_slab >= g.slab) break;
          const int from = g.total + e % V * g.cols + e / V;
          float s1 = 0.0f, s2 = 0.0f;
          for (int rank = 0; rank < g.cluster; ++rank) {
            s1 += thread.remote(rank, from);
            s2 += thread.remote(rank, from + g.width);
          }
          s2 *= thread.at(rstds + e);
          thread.at(g.share + e) = thread.at(slopes + e) * s1;
          thread.at(g.share + g.width + e) = thread.at(slopes + e) * s2;
          if (thread.rank > 0) continue;
          const int64_t channel = channel0 + in_slab;
          float* sums = static_cast<float*>(b.sums) + 2 * g.c * image + channel;
          sums[0] = s1, sums[g.c] = s2;
          if (b.dfilm) {
            const float dscale = thread.at(weights + e) * s2 + thread.at(biases + e) * s1;
            store_param<T>(b.dfilm, b.type.film, 2 * g.c * image + channel, dscale);
            store_param<T>(b.dfilm, b.type.film, 2 * g.c * image + g.c + channel, s1);
          }
        }
      });
      if (chunk == 0) cluster.depart();
      cluster.sync_block();
      cluster.each([&](const Thread& thread, State&) {
        const int left = g.slab - chunk * g.width, width = left < g.width ? left : g.width;
        const int each = chunks > 1 ? width : g.per_group;
        for (int j = thread.tid; j < groups; j += g.threads) {
          float k1 = chunk ? thread.at(stat(j, 0)) : 0.0f;
          float k2 = chunk ? thread.at(stat(j, 1)) : 0.0f;
          for (int e = j * each; e < (j + 1) * each; ++e) {
            k1 += thread.at(g.share + e), k2 += thread.at(g.share + g.width + e);
          }
          thread.at(stat(j, 0)) = k1, thread.at(stat(j, 1)) = k2;
        }
      });
      cluster.sync_block();
    }

    for (int chunk = 0; chunk < chunks; ++chunk) {
      if (chunks > 1) {
        cluster.each([&](const Thread& thread, State&) { load_channels(thread, chunk); });
        cluster.sync_block();
      }
      cluster.each([&](const Thread& thread, State&) {
        const Walk walk(g, thread, V, chunk);
        if (walk.count == 0) return;
        const Channels ch = channels_of(thread);
        const float share = 1.0f / (float(g.hw) * float(g.per_group));
        float k1[V], k2[V];
        for (int v = 0; v < V; ++v) {
          const int j = chunks > 1 ? 0 : (thread.col * V + v) / g.per_group;
          k1[v] = thread.at(stat(j, 0)) * share;
          k2[v] = thread.at(stat(j, 1)) * share * thread.at(rstds + thread.col * V + v);
        }
        visit(thread, ch, walk, 0, walk.count, [&](int i, float(&du)[V], const float(&d)[V]) {
          for (int v = 0; v < V; ++v) du[v] = du[v] * ch.slope[v] - k1[v] - d[v] * k2[v];
          store<T, V>(dx + walk.first + i * walk.step, packed<T, V>(du));
        });
      });
      if (chunk + 1 < chunks) cluster.sync_block();
    }
    cluster.await();
  }
};

// dweight and dbias from the images' sums: 32 channels a block, the images split over its rows.
template <class T>
struct ParamBody {
  static constexpr int kBlocksPerSm = 1;
  static constexpr bool kResident = false;
  using Call = Backward;
  struct State {};

  static Geometry geometry(const Sizes& size) {
    Geometry g{};
    g.c = size.c, g.hw = size.n;
    g.slab = g.cols = 32, g.rows = 8, g.threads = 256;
    g.slabs = int((size.c + 31) / 32);
    g.grid = g.slabs;
    g.cluster = g.vector = 1;
    g.floats = 2 * g.threads;
    return g;
  }

  PDFAST_DEVICE static void run(Cluster<State>& cluster, const Backward& b, int64_t, int slab) {
    const Geometry& g = cluster.g;
    const int64_t images = g.hw, share = (images + g.rows - 1) / g.rows;
    cluster.each([&](const Thread& thread, State&) {
      const int64_t channel = int64_t{slab} * g.slab + thread.col;
      if (channel >= g.c) return;
      const int64_t begin = thread.row * share;
      const int64_t end = begin + share < images ? begin + share : images;
      const float* sums = static_cast<const float*>(b.sums);
      float dweight = 0.0f, dbias = 0.0f;
#pragma unroll 4
      for (int64_t n = begin; n < end; ++n) {
        const int64_t at = 2 * g.c * n + channel;
        const float gain = b.film ? 1.0f + load_param<T>(b.film, b.type.film, at) : 1.0f;
        dbias += gain * sums[at];
        dweight += gain * sums[at + g.c];
      }
      thread.at(thread.tid) = dweight, thread.at(g.threads + thread.tid) = dbias;
    });
    cluster.sync_block();
    cluster.each([&](const Thread& thread, State&) {
      const int64_t channel = int64_t{slab} * g.slab + thread.col;
      if (thread.row > 0 || channel >= g.c) return;
      float dweight = 0.0f, dbias = 0.0f;
      for (int row = 0; row < g.rows; ++row) {
        dweight += thread.at(row * g.cols + thread.col);
        dbias += thread.at(g.threads + row * g.cols + thread.col);
      }
      store_param<T>(b.dweight, b.type.param, channel, dweight);
      store_param<T>(b.dbias, b.type.param, channel, dbias);
    });
  }
};

}  // namespace pdfast

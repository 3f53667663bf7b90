// Runs the CPU core of group_norm_silu over many shapes on every instruction set, each tensor in a
// heap block of exactly its size, so that AddressSanitizer sees any access beyond it. Prints the
// number of cases; exits with 1 where an output is far from a plain double-precision loop.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

#include "../../csrc/group_norm_silu_cpu.h"

using namespace pdfast;

namespace {

int64_t bytes_of(Dtype type) { return type == Dtype::f64 ? 8 : type == Dtype::f32 ? 4 : 2; }

// A tensor of any type, written from and read as double. 16-bit types are written by truncation,
// which is exact for the short values used here.
struct Tensor {
  Dtype type;
  int64_t size;
  std::unique_ptr<char[]> memory;
  Tensor(Dtype t, int64_t n) : type(t), size(n), memory(new char[n * bytes_of(t)]) {}
  void set(int64_t i, double v) {
    const float f = static_cast<float>(v);
    uint32_t u;
    std::memcpy(&u, &f, 4);
    char* p = memory.get() + i * bytes_of(type);
    if (type == Dtype::f64) std::memcpy(p, &v, 8);
    if (type == Dtype::f32) std::memcpy(p, &f, 4);
    const uint16_t brain = u >> 16;
    const uint16_t half =
        v == 0 ? 0 : (u >> 16 & 0x8000) | (((u >> 23 & 255) - 112) << 10) | (u >> 13 & 1023);
    if (type == Dtype::bf16) std::memcpy(p, &brain, 2);
    if (type == Dtype::f16) std::memcpy(p, &half, 2);
  }
  double get(int64_t i) const {
    const char* p = memory.get() + i * bytes_of(type);
    double d = 0;
    float f = 0;
    uint16_t h = 0;
    if (type == Dtype::f64) return std::memcpy(&d, p, 8), d;
    if (type == Dtype::f32) return std::memcpy(&f, p, 4), f;
    std::memcpy(&h, p, 2);
    if (type == Dtype::bf16) {
      const uint32_t u = static_cast<uint32_t>(h) << 16;
      return std::memcpy(&f, &u, 4), f;
    }
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    d = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
    return h & 0x8000 ? -d : d;
  }
};

bool run(cpu::Isa isa, Sizes s, Types type, bool film, bool silu, std::mt19937& rng) {
  const Dtype stat = type.x == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const int64_t numel = s.n * s.hw * s.c;
  Tensor x(type.x, numel), y(type.x, numel), dy(type.x, numel), dx(type.x, numel);
  Tensor weight(type.param, s.c), bias(type.param, s.c), dweight(type.param, s.c),
      dbias(type.param, s.c), modulation(type.film, s.n * 2 * s.c), dfilm(type.film, s.n * 2 * s.c);
  Tensor mean(stat, s.n * s.groups), rstd(stat, s.n * s.groups), sums(stat, s.n * 2 * s.c);
  std::uniform_int_distribution<int> eighths(-24, 24);
  for (Tensor* t : {&x, &dy, &weight, &bias, &modulation}) {
    for (int64_t i = 0; i < t->size; ++i) t->set(i, eighths(rng) / 8.0);
  }
  const void* f = film ? modulation.memory.get() : nullptr;
  const Layout at{s.c, 0, 2 * s.c};
  const Forward fwd{s, type, at, x.memory.get(), nullptr, nullptr, nullptr, weight.memory.get(),
                    bias.memory.get(), f, y.memory.get(), nullptr, mean.memory.get(),
                    rstd.memory.get(), 1e-3, silu};
  const Backward bwd{s, type, at, dy.memory.get(), nullptr, x.memory.get(), nullptr, nullptr,
                     mean.memory.get(), rstd.memory.get(), weight.memory.get(), bias.memory.get(),
                     f, dx.memory.get(), nullptr, dweight.memory.get(), dbias.memory.get(),
                     film ? dfilm.memory.get() : nullptr, nullptr, sums.memory.get(), 0, silu};
  const cpu::Tasks tasks = cpu::tasks_of(s, type.x);
  const cpu::Kernels kernels = cpu::kernels_of(isa);
  for (int64_t k = 0; k < tasks.total; ++k) kernels.forward(fwd, tasks, k, k + 1);
  kernels.backward(bwd, tasks, 0, tasks.total);
  cpu::reduce_images(bwd, 0, s.c / 2);
  cpu::reduce_images(bwd, s.c / 2, s.c);

  const double tolerance = type.x == Dtype::f64 ? 1e-9 : type.x == Dtype::f32 ? 1e-3 : 0.1;
  const int64_t per_group = s.c / s.groups;
  double worst = 0;
  for (int64_t i = 0; i < s.n; ++i) {
    for (int64_t g = 0; g < s.groups; ++g) {
      const auto at = [&](int64_t p, int64_t k) {
        return (i * s.hw + p) * s.c + g * per_group + k;
      };
      double total = 0, square = 0;
      for (int64_t p = 0; p < s.hw; ++p)
        for (int64_t k = 0; k < per_group; ++k) total += x.get(at(p, k));
      const double m = total / (s.hw * per_group);
      for (int64_t p = 0; p < s.hw; ++p)
        for (int64_t k = 0; k < per_group; ++k) square += std::pow(x.get(at(p, k)) - m, 2);
      const double r = 1 / std::sqrt(square / (s.hw * per_group) + 1e-3);
      double sum1 = 0, sum2 = 0;
      const auto each = [&](auto body) {
        for (int64_t p = 0; p < s.hw; ++p) {
          for (int64_t k = 0; k < per_group; ++k) {
            const int64_t c = g * per_group + k;
            const double scale = film ? 1 + modulation.get(i * 2 * s.c + c) : 1;
            const double shift = film ? modulation.get(i * 2 * s.c + s.c + c) : 0;
            const double xhat = (x.get(at(p, k)) - m) * r, gain = weight.get(c) * scale;
            const double u = xhat * gain + bias.get(c) * scale + shift;
            const double q = 1 / (1 + std::exp(-u));
            const double du = dy.get(at(p, k)) * (silu ? q * (1 + u * (1 - q)) : 1);
            body(at(p, k), xhat, gain, silu ? u * q : u, du);
          }
        }
      };
      each([&](int64_t, double xhat, double gain, double, double du) {
        sum1 += gain * du;
        sum2 += gain * du * xhat;
      });
      each([&](int64_t e, double xhat, double gain, double value, double du) {
        const double grad = r * (gain * du - (sum1 + xhat * sum2) / (s.hw * per_group));
        const double scale = 1 + std::abs(r * gain * du);
        worst = std::fmax(worst, std::abs(y.get(e) - value) / (1 + std::abs(value)));
        worst = std::fmax(worst, std::abs(dx.get(e) - grad) / scale);
      });
    }
  }
  if (!(worst < tolerance)) {
    std::printf("%s n %ld hw %ld c %ld groups %ld type %d film %d silu %d: error %g\n",
                cpu::name_of(isa), long(s.n), long(s.hw), long(s.c), long(s.groups),
                int(type.x), film, silu, worst);
  }
  return worst < tolerance;
}

}  // namespace

int main() {
  std::mt19937 rng(0);
  int cases = 0;
  for (const cpu::Isa isa : {cpu::Isa::portable, cpu::Isa::avx2, cpu::Isa::avx512}) {
    if (!cpu::supported(isa)) continue;
    for (const Dtype x : {Dtype::f32, Dtype::f64, Dtype::bf16, Dtype::f16}) {
      for (const Dtype param : {x, x == Dtype::f64 ? x : Dtype::f32}) {
        for (const Sizes& s : {Sizes{1, 1, 1, 1}, {2, 1, 7, 7}, {3, 5, 6, 3}, {2, 9, 33, 11},
                               {1, 63, 17, 1}, {2, 64, 32, 8}, {1, 65, 40, 5}, {2, 130, 48, 4},
                               {5, 4, 129, 3}, {1, 2, 1030, 5}, {1, 300, 192, 2}}) {
          for (const int option : {0, 1, 2, 3}) {
            if (!run(isa, s, {x, param, param}, option & 1, option & 2, rng)) return 1;
            ++cases;
          }
        }
      }
    }
  }
  std::printf("%d cases\n", cases);
}

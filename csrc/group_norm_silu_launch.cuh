// Runs a body of group_norm_silu: by launches on the device, by loops on the host.

#pragma once

#include <initializer_list>
#include <mutex>
#include <string>
#include <type_traits>

#include "group_norm_silu_parts.cuh"

namespace pdfast {

#ifdef __CUDACC__

inline void check(cudaError_t code, const char* doing) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // so that the next call does not report this one's error
  refuse(std::string(doing) + " failed: " + cudaGetErrorString(code) + ".");
}

constexpr int kMaxDevices = 64;

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  if (device >= kMaxDevices) refuse("at most 64 devices are supported: limit CUDA_VISIBLE_DEVICES.");
  return device;
}

// Never run: its attributes tell what the code was compiled for.
__global__ void group_norm_silu_built_for() {}

inline Limits limits(bool aligned) {
  static std::once_flag known[kMaxDevices];
  static int values[kMaxDevices][3];
  const int device = current_device();
  std::call_once(known[device], [&] {
    const cudaDeviceAttr wanted[3] = {cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                      cudaDevAttrMultiProcessorCount,
                                      cudaDevAttrComputeCapabilityMajor};
    for (int k = 0; k < 3; ++k) {
      check(cudaDeviceGetAttribute(&values[device][k], wanted[k], device),
            "cudaDeviceGetAttribute");
    }
    // PTX for compute_80 runs on later devices too, but has no clusters.
    cudaFuncAttributes code{};
    check(cudaFuncGetAttributes(&code, group_norm_silu_built_for), "cudaFuncGetAttributes");
    if (code.ptxVersion < 90) values[device][2] = 0;
  });
  const int* v = values[device];
  return {v[0], v[1], v[2] >= 9, aligned, 0};
}

// The kernel: `call` holds the tensors and numbers (group_norm_silu.h), `g` the work of each thread
// (group_norm_silu_plan.h).
template <class Body>
__global__ void __launch_bounds__(kThreads, Body::kBlocksPerSm)
    group_norm_silu_kernel(const __grid_constant__ typename Body::Call call,
                           const __grid_constant__ Geometry g) {
  Cluster<typename Body::State> cluster(g);
  Body::run(cluster, call);
}

using Where = cudaStream_t;

template <class Body>
void run(const typename Body::Call& call, const Geometry& g, Where stream) {
  if (g.grid == 0) return;
  if (g.total > 0x7fffffff) refuse("the batch has more than 2^31 slabs; split it.");
  const auto kernel = group_norm_silu_kernel<Body>;
  static std::once_flag granted[kMaxDevices];
  const int device = current_device();
  std::call_once(granted[device], [&] {
    // Set once, to the most that any plan asks for: the attribute is the kernel's, not the
    // launch's.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               limits(true).shared_limit),
          "raising the shared memory limit");
    if (Body::kResident) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                 cudaSharedmemCarveoutMaxShared),
            "preferring shared memory");
    }
  });
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = unsigned(g.cluster);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(g.grid));
  config.blockDim = dim3(unsigned(g.threads));
  config.dynamicSmemBytes = size_t(g.shared_bytes());
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = g.cluster > 1 ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, call, g), "a launch");
  check(cudaGetLastError(), "a launch");
}

#else

using Where = bool;  // whether a phase's threads run from the last to the first

template <class Body>
void run(const typename Body::Call& call, const Geometry& g, Where backwards) {
  for (int64_t index = 0; index < g.grid / g.cluster; ++index) {
    Cluster<typename Body::State> cluster(g, int(index), backwards);
    Body::run(cluster, call);
  }
}

#endif

}  // namespace pdfast

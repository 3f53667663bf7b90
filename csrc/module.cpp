// The Python module pdfast._C. Its import registers the ops; its functions describe the build.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/version.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "group_norm_silu_cpu.h"
#include "group_norm_silu_plan.h"

namespace pdfast {
extern cpu::Isa cpu_isa;  // in group_norm_silu_aten.cpp
}

namespace {

namespace py = pybind11;
using pdfast::cpu::Isa;

#define PDFAST_TEXT_OF(x) #x
#define PDFAST_TEXT(x) PDFAST_TEXT_OF(x)

// kernels/group_norm_silu.py reads this from the file before it loads the module: loading a module
// that was built for another PyTorch may crash.
[[gnu::used]] const char built_for[] = "pdfast is built for PyTorch " TORCH_VERSION;

py::dict build_facts() {
  py::dict facts;
  facts["torch"] = TORCH_VERSION;
#if defined(__clang__)
  facts["compiler"] = "clang " __clang_version__;
#else
  facts["compiler"] = "gcc " __VERSION__;
#endif
#ifdef PDFAST_CUDA
  facts["cuda"] = PDFAST_TEXT(PDFAST_CUDA);
  facts["cuda_architectures"] = PDFAST_TEXT(PDFAST_CUDA_ARCHITECTURES);
#else
  facts["cuda"] = py::none();
  facts["cuda_architectures"] = py::none();
#endif
  return facts;
}

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (pdfast::cpu::supported(isa)) names.emplace_back(pdfast::cpu::name_of(isa));
  }
  return names;
}

void use_cpu_isa(const std::string& name) {
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512}) {
    if (name == pdfast::cpu::name_of(isa) && pdfast::cpu::supported(isa)) {
      pdfast::cpu_isa = isa;
      return;
    }
  }
  throw std::invalid_argument("this machine or build has no CPU instruction set '" + name + "'");
}

py::dict cpu_plan(int64_t n, int64_t hw, int64_t c, int64_t groups) {
  if (n < 1 || hw < 1 || c < 1 || groups < 1 || c % groups != 0) {
    throw std::invalid_argument("n, hw, c and groups must be at least 1, and groups divide c");
  }
  const auto tasks = pdfast::cpu::tasks_of({n, hw, c, groups}, pdfast::Dtype::f32);
  py::dict plan;
  plan["slab"] = tasks.slab;
  plan["tasks"] = tasks.total;
  plan["grain"] = tasks.grain;
  return plan;
}

py::dict cuda_plan(int64_t n, int64_t hw, int64_t c, int64_t groups, bool sixteen_bit,
                   bool backward, int shared_limit, bool clusters, int sms) {
  const auto type = sixteen_bit ? pdfast::Dtype::bf16 : pdfast::Dtype::f32;
  const auto plan = pdfast::plan({n, hw, c, groups}, {type, type, type, type}, backward,
                                 {shared_limit, sms, clusters, true, 0});
  py::dict facts;
  facts["slab"] = plan.slab;
  facts["cluster"] = plan.cluster;
  facts["threads"] = plan.threads;
  facts["blocks"] = plan.grid;
  facts["slabs"] = plan.total;
  facts["shared_bytes"] = plan.shared_bytes;
  facts["resident"] = plan.resident;
  facts["vector"] = plan.vector;
  return facts;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled ops of pdfast: registers torch.ops.pdfast.group_norm_silu.";
  m.def("build_facts", build_facts, "PyTorch, compiler, CUDA version and architectures (None: no CUDA).");
  m.def("cpu_isas", cpu_isas, "Instruction sets that this machine can run, the widest last.");
  m.def("cpu_isa", [] { return pdfast::cpu::name_of(pdfast::cpu_isa); },
        "The instruction set in use.");
  m.def("use_cpu_isa", use_cpu_isa,
        "Choose an instruction set, for tests and benchmarks. Raise ValueError if it is missing.");
  m.def("cpu_plan", cpu_plan, "Return how float32 images [n][hw][c] are cut into tasks.",
        py::arg("n"), py::arg("hw"), py::arg("c"), py::arg("groups"));
  m.def("cuda_plan", cuda_plan,
        "Return how a GPU (default: H100) would be used. Raise RuntimeError if no kernel fits.",
        py::arg("n"), py::arg("hw"), py::arg("c"), py::arg("groups"),
        py::arg("sixteen_bit") = true, py::arg("backward") = false,
        py::arg("shared_limit") = 227 * 1024, py::arg("clusters") = true, py::arg("sms") = 132);
}

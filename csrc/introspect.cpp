// Python module se_fused._introspect: reads the kernel attributes of introspection.h from the compiled libraries, for
// `se-fused info` and the benchmarks. It is the only compiled file that is bound to one Python version; the libraries
// work with all.
#include "introspection.h"

#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace {

// Looks up a function in a library. torch has already loaded the library, so dlopen returns the loaded copy.
template <class F>
F* find(const std::string& library, const char* name) {
  void* const opened = dlopen(library.c_str(), RTLD_NOW);
  if (!opened) throw std::runtime_error(dlerror());
  void* const found = dlsym(opened, name);
  if (!found)
    throw std::runtime_error(library + " has no " + name +
                             ": it belongs to another build of se_fused; reinstall se_fused");
  return reinterpret_cast<F*>(found);
}

std::string cpu_capability(const std::string& library) {
  return find<decltype(se_fused_cpu_capability)>(library, "se_fused_cpu_capability")();
}

py::list cuda_kernels(const std::string& library) {
  const auto ask = find<decltype(se_fused_cuda_attributes)>(library, "se_fused_cuda_attributes");
  const char* error = nullptr;
  std::vector<SeFusedAttributes> found(ask(nullptr, 0, &error));
  if (!error) ask(found.data(), (int)found.size(), &error);
  if (error) throw std::runtime_error(error);
  py::list kernels;
  for (const SeFusedAttributes& kernel : found) {
    py::dict entry;
    entry["name"] = kernel.name;
    entry["threads"] = kernel.threads;
    entry["shared_bytes"] = kernel.shared_bytes < 0 ? py::object(py::none()) : py::int_(kernel.shared_bytes);
    if (kernel.error) {
      entry["error"] = kernel.error;
    } else {
      entry["max_threads"] = kernel.max_threads;
      entry["registers"] = kernel.registers;
      entry["local_bytes"] = kernel.local_bytes;
      entry["constant_bytes"] = kernel.constant_bytes;
      entry["blocks_per_multiprocessor"] = kernel.blocks_per_multiprocessor;
    }
    kernels.append(entry);
  }
  return kernels;
}

}  // namespace

PYBIND11_MODULE(_introspect, module) {
  module.doc() = "Instruction set of the CPU kernels, and compiled attributes of the CUDA kernels.";
  module.def("cpu_capability", &cpu_capability, py::arg("library"),
             "Name of the instruction set that the CPU library uses now.");
  module.def("cuda_kernels", &cuda_kernels, py::arg("library"),
             "Attributes of the CUDA library's kernels on the current device.");
}

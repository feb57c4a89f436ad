// Allocation of result tensors, shared by the CPU and CUDA libraries.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <initializer_list>

#include "tensor_checks.h"

namespace se_fused {

inline float* floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }

inline Tensor new_float(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, sizes, ScalarType::Float);
}
// An empty tensor, which stands for an absent result.
inline Tensor new_nothing(const Tensor& like) { return new_float(like, {0}); }
inline Tensor new_mask(const Tensor& x, const Layout& layout) {
  return torch::stable::new_empty(x, {layout.rows() * layout.row_mask_bytes()}, ScalarType::Byte);
}

}  // namespace se_fused

// Checks of tensor arguments below Python, because a wrong shape here would read or write invalid memory. Users
// normally never see these errors: se_fused/functional checks earlier, with better messages.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "ops.h"

namespace se_fused {

using torch::headeronly::ScalarType;

// The shape and memory order of a dense (N, C, *spatial) tensor. Positions are contiguous, or channels (channels_last).
struct Layout {
  int64_t n, c, s;
  bool channels_last;
  int64_t numel() const { return n * c * s; }
  // "Rows" are runs of contiguous elements: see cpu/kernels.h.
  int64_t rows() const { return channels_last ? n * s : n * c; }
  int64_t row_len() const { return channels_last ? c : s; }
  int64_t row_mask_bytes() const { return (row_len() + 7) / 8; }
};

inline bool is_channels_last(const Tensor& t) {
  const auto runs = [&](int64_t d, int64_t stride) { return t.size(d) == 1 || t.stride(d) == stride; };
  if (!runs(1, 1)) return false;
  int64_t stride = t.size(1);
  for (int64_t d = t.dim() - 1; d >= 2; stride *= t.size(d--))
    if (!runs(d, stride)) return false;
  return runs(0, stride);
}

inline Layout layout_of(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() >= 3, name, " must be (N, C, *spatial), got ", x.dim(), " dimensions");
  Layout layout{x.size(0), x.size(1), 1, false};
  for (int64_t d = 2; d < x.dim(); ++d) layout.s *= x.size(d);
  // With one position both orders are the same memory; channels_last has the longer rows, of C elements.
  if (x.is_contiguous() && layout.s != 1) return layout;
  layout.channels_last = true;
  STD_TORCH_CHECK(is_channels_last(x), name, " must be dense: either contiguous or channels_last");
  return layout;
}

inline void check_like(const Tensor& t, const Tensor& x, const Layout& layout, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type(), name, " must have x's dtype");
  STD_TORCH_CHECK(t.dim() == x.dim(), name, " must have x's shape");
  for (int64_t d = 0; d < x.dim(); ++d) STD_TORCH_CHECK(t.size(d) == x.size(d), name, " must have x's shape");
  const bool dense = layout.channels_last ? is_channels_last(t) : t.is_contiguous();
  STD_TORCH_CHECK(dense, name, " must have x's memory format");
}

inline void check_vector(const Tensor& t, int64_t numel, const char* name) {
  STD_TORCH_CHECK(t.numel() == numel, name, " must have ", numel, " elements, got ", t.numel());
  STD_TORCH_CHECK(t.is_contiguous(), name, " must be contiguous");
}

inline void check_like(const OptionalTensor& t, const Tensor& x, const Layout& layout, const char* name) {
  if (t) check_like(*t, x, layout, name);
}

// The mask's bytes, after a check of their number.
inline const uint8_t* mask_of(const Tensor& mask, const Layout& layout) {
  check_vector(mask, layout.rows() * layout.row_mask_bytes(), "mask");
  return static_cast<const uint8_t*>(mask.const_data_ptr());
}

// Checks both weights of the excitation, (R, C) and (C, R). Returns R.
inline int64_t check_weights(const Tensor& fc1, const OptionalTensor& fc2, int64_t c) {
  const int64_t r = fc1.size(0);
  STD_TORCH_CHECK(fc2.has_value(), "fc2_weight is required with fc1_weight");
  check_vector(fc1, r * c, "fc1_weight");
  check_vector(*fc2, c * r, "fc2_weight");
  STD_TORCH_CHECK(fc1.scalar_type() == fc2->scalar_type(), "fc1_weight and fc2_weight must have the same dtype");
  return r;
}

inline const float* float_vector(const Tensor& t, int64_t numel, const char* name) {
  check_vector(t, numel, name);
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, name, " must be float32");
  return static_cast<const float*>(t.const_data_ptr());
}

}  // namespace se_fused

// The inference plan as text, and settings for tests and measurements.
#pragma once

#include <cstdint>
#include <string>

namespace se_fused::cuda {

// A readable description of the inference plan for a map of this shape. weight_bytes: of an element of the weights, or
// 0 if they have x's dtype.
std::string describe_plan(int64_t n, int64_t c, int64_t s, bool channels_last, int64_t item_bytes, int64_t r,
                          int64_t device, int64_t weight_bytes);

// Forces the inference path of the whole process: cluster_fused, l2_grouped or separate; "" restores the choice by
// rule. Returns the previous value.
std::string force_plan(std::string path);

// The reason why the launches of a call are not programmatic (platform.cuh), or "".
std::string why_not_programmatic(int64_t device);

}  // namespace se_fused::cuda

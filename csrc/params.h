// Records of the whole operator's arguments, with the names that Python gives them, and the check of their numbers.
// operators.h makes the records from the flat arguments of the operators.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "enums.h"

namespace se_fused {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline Act act_of(int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number < kActivations, "act ", number, " is not the number of an activation");
  return static_cast<Act>(number);
}
inline Act out_act_of(int64_t number) {
  STD_TORCH_CHECK(can_close(static_cast<Act>(number)), "out_act ", number,
                  " is not the number of an activation that can close a block");
  return static_cast<Act>(number);
}
inline Gate gate_of(int64_t number) {
  STD_TORCH_CHECK(number >= 0 && number < kGates, "gate ", number, " is not the number of a gate");
  return static_cast<Gate>(number);
}

// With batch_stats the running statistics are updated in the forward pass, if they are given: new = old + momentum
// (batch - old), with the unbiased variance. Otherwise they are the statistics; if absent, there is no batch norm.
struct BatchNormParams {
  const OptionalTensor &running_mean, &running_var, &weight, &bias;
  bool batch_stats;
  double momentum, eps;
};

// Without fc1_weight there is no excitation.
struct ExcitationParams {
  const OptionalTensor &fc1_weight, &fc1_bias, &fc2_weight, &fc2_bias;
  Act act;
  Gate gate;
};

// The end of a block: y = out_act(drop_path_scale * SE(BN(x)) + residual).
struct BlockOptions {
  const OptionalTensor &residual, &drop_path_scale;
  Act out_act;
};

// Memory for the forward pass's results beside y; null if a result is not wanted. With a mean, all that the backward
// pass needs is wanted.
struct Kept {
  uint8_t* mask = nullptr;
  float *mean = nullptr, *factor = nullptr, *hidden = nullptr, *stats = nullptr;
};

// x and the forward pass's results, for the backward pass; null if a result is absent.
struct Saved {
  const Tensor& x;
  const uint8_t* mask;
  const float *mean, *factor, *hidden, *stats;
};

// Memory for a parameter's gradient; null if there is no such parameter.
struct Slot {
  void* data = nullptr;
  torch::headeronly::ScalarType type = torch::headeronly::ScalarType::Float;
};
struct Slots {
  Slot bn_weight, bn_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias;
};

}  // namespace se_fused

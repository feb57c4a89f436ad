// The numbers of activations and gates that Python passes, with a check of each.
#pragma once

#include <torch/csrc/stable/tensor.h>
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

}  // namespace se_fused

// The whole operator of the CUDA backend. Arguments and results are those of csrc/ops.h.
#pragma once

#include "torch_host.h"

namespace se_fused::cuda {

// Also updates the running statistics moved_mean and moved_var in place, if given: new = old + momentum (batch - old),
// with the batch's variance multiplied by unbias.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_squeeze_excite_forward(
    const Tensor& x, const OptionalTensor& residual, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
    const OptionalTensor& fc1_weight, const OptionalTensor& fc1_bias, const OptionalTensor& fc2_weight,
    const OptionalTensor& fc2_bias, const OptionalTensor& drop_path_scale, bool batch_stats, double eps, int64_t act,
    int64_t gate, int64_t out_act, bool save, const OptionalTensor& moved_mean, const OptionalTensor& moved_var,
    double momentum, double unbias);

// A readable description of the inference plan for a map of this shape.
std::string describe_plan(int64_t n, int64_t c, int64_t s, bool channels_last, int64_t item_bytes, int64_t r,
                          int64_t device);

// Forces the inference path of the whole process: cluster_fused, l2_grouped or separate; "" restores the choice by
// rule. Returns the previous value.
std::string force_plan(std::string path);

}  // namespace se_fused::cuda

// Batch norm of one call, shared by the operators of a whole block: its arguments and the running statistics.
#pragma once

#include "excitation.h"

namespace se_fused::cpu {

constexpr int64_t kBatchNormVectors = 9;  // (C,) vectors of scratch memory that the functions here take at most

// The arguments of batch_norm(), with the parameters as float32. mu and var are `stats` (2, C), or scratch if it is
// null; so are the results. The batch's moments and batch_stats are left to the caller.
BatchNormArgs batch_norm_args(const Layout& layout, const BatchNormParams& norm, float* stats, Scratch& scratch);

// The running statistics as mu and var, and the coefficients that follow from them.
void use_running(const BatchNormParams& norm, const BatchNormArgs& args, Scratch& scratch);

// Checks the running statistics, both before one of them is written.
void check_running(const BatchNormParams& norm, int64_t c);

// Updates the running statistics, if they are given, by the batch's in mu and var.
void update_running(const BatchNormParams& norm, const BatchNormArgs& args);

}  // namespace se_fused::cpu

// The arithmetic between the streams, split between threads.
#pragma once

#include "driver.h"

namespace se_fused::cpu {

void batch_norm(const BatchNormArgs& args);
void scale_shift(const GateKernels& k, const GateArgs& args);  // what gate_forward ends with
void gate_forward(const GateKernels& k, const GateArgs& args);
void gate_backward(const GateKernels& k, const GateBackwardArgs& args);

}  // namespace se_fused::cpu

// The arithmetic between the streams, split between threads.
#pragma once

#include "parallel.h"

namespace se_fused::cpu {

void batch_norm(const BatchNormArgs& args);
void scale_shift(const GateKernels& k, const GateArgs& args);  // what gate_forward ends with
void gate_forward(const GateKernels& k, const GateArgs& args);
// FC1 as one set of weights takes it and FC2 as another: where they have other inputs than one map's channels
void gate_layers(const GateKernels& k1, const GateArgs& fc1, const GateKernels& k2, const GateArgs& fc2);
void gate_backward(const GateKernels& k, const GateBackwardArgs& args);

}  // namespace se_fused::cpu

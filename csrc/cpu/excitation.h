// Excitation, the arithmetic between the passes, split between threads.
#pragma once

#include "parallel.h"

namespace se_fused::cpu {

void batch_norm(const BatchNormArgs& args);
void scale_shift(const ExcitationKernels& k, const ExcitationArgs& args);  // what excitation ends with
void excitation(const ExcitationKernels& k, const ExcitationArgs& args);
// FC1 as one set of weights takes it and FC2 as another: where they have other inputs than one map's channels
void excitation_layers(const ExcitationKernels& k1, const ExcitationArgs& fc1, const ExcitationKernels& k2,
                       const ExcitationArgs& fc2);
void excitation_backward(const ExcitationKernels& k, const ExcitationBackwardArgs& args);

}  // namespace se_fused::cpu

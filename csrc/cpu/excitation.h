// Excitation, the (N, C) arithmetic between the passes, split between threads.
#pragma once

#include "parallel.h"

namespace se_fused::cpu {

void batch_norm(const BatchNormArgs& args);
void scale_shift(const ExcitationKernels& k, const ExcitationArgs& args);  // the last step of excitation alone
void excitation(const ExcitationKernels& k, const ExcitationArgs& args);
// The two layers with separate arguments and kernels: FC1 and FC2 may differ in channel count and weight type.
void excitation_layers(const ExcitationKernels& k1, const ExcitationArgs& fc1, const ExcitationKernels& k2,
                       const ExcitationArgs& fc2);
void excitation_backward(const ExcitationKernels& k, const ExcitationBackwardArgs& args);

}  // namespace se_fused::cpu

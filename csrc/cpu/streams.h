// The four streams over raw memory: what the operators and the whole-op driver
// share.
#pragma once

#include "driver.h"

namespace se_fused::cpu {

// mean, m2: (N, C)
void moments(const StreamKernels& k, const void* x, int64_t item, const Layout& layout, float* mean, float* m2);

// args.scale and args.shift: (N, C); rows and len are filled in here, as are the pointers of each thread's share
void affine(const StreamKernels& k, AffineArgs args, int64_t item, const Layout& layout);

// args.mean, scale, shift, p, q: (N, C)
void moments_backward(const StreamKernels& k, const MomentsBackwardArgs& args, int64_t item, const Layout& layout);

// args.mean, k1, k2, k3: (N, C)
void affine_backward(const StreamKernels& k, const AffineBackwardArgs& args, int64_t item, const Layout& layout);

}  // namespace se_fused::cpu

// Device properties for host code, without torch's headers.
#pragma once

#include <string>

#include "plan.h"

namespace se_fused::cuda {

const Device& device_of(int index);

// Why kernels cannot run on the device (a driver that is too old, an architecture that was not built), or "".
std::string problem(int64_t index);

}  // namespace se_fused::cuda

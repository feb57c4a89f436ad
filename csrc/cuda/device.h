// Device properties for host code, without torch's headers.
#pragma once

#include <string>

#include "plan.h"

namespace se_fused::cuda {

const Device& device_of(int index);

// The reason why kernels cannot run on the device (driver too old, architecture not compiled); "" if they can.
std::string problem(int64_t index);

}  // namespace se_fused::cuda

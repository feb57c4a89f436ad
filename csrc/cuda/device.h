// The device as the host's side sees it, without torch's headers.
#pragma once

#include <string>

#include "plan.h"

namespace se_fused::cuda {

const Device& device_of(int index);

// "" or why kernels cannot run on it: a driver that is too old, an architecture that was not built.
std::string problem(int64_t index);

}  // namespace se_fused::cuda

// The launches of csrc/cuda/*.cu, counted instead of made, and the device that plan.cpp sees.
#include "../../csrc/cuda/device.h"
#include "device.h"

namespace se_fused::cuda {

const Device& device_of(int) {
  static const Device h100{90, 132, 50 << 20, 232448, 16, 16, true};
  return h100;
}
std::string problem(int64_t) { return ""; }
int largest_cluster(size_t) { return kLargestCluster; }

#define SE_LAUNCH(name, ...)           \
  Error launch(__VA_ARGS__) {          \
    SE_COUNT_LAUNCH("se_fused " name); \
    return nullptr;                    \
  }
SE_LAUNCH("zero", const Zero&, Stream)
SE_LAUNCH("moments", const Moments&, Stream)
SE_LAUNCH("scale_shift_act", const ScaleShiftAct&, Stream)
SE_LAUNCH("moments_backward", const MomentsBackward&, Stream)
SE_LAUNCH("scale_shift_act_backward", const ScaleShiftActBackward&, Stream)
SE_LAUNCH("scale_shift_act_mean", const ScaleShiftActMean&, Stream)
SE_LAUNCH("excitation", const Excitation&, int, Stream)
SE_LAUNCH("excitation_backward", const ExcitationBackward&, int, Stream)
SE_LAUNCH("cluster_fused", const ClusterFused&, Stream)
SE_LAUNCH("l2_grouped", const L2Grouped&, int, Stream)

}  // namespace se_fused::cuda

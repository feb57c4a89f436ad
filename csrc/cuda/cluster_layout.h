// Shared memory of a block of the cluster_fused kernel, for the kernel and for the host code that plans its launch.
#pragma once

#include "kernel_params.h"

namespace se_fused::cuda {

// Offsets in a block's shared memory, in bytes.
struct ClusterLayout {
  size_t coefficients, work, barrier, all;
  int length;                              // of the partition's coefficients
  size_t z, partial, active, scale_shift;  // offsets in `work`, in floats

  SE_BOTH explicit ClusterLayout(const ClusterFused& g) {
    const Map& map = g.op.map;
    const size_t item = map.type == Type::float32 ? 4 : 2, r = g.op.fc.r;
    length = map.by_rows() ? g.partition : map.c;
    coefficients = ((size_t)g.partition * (map.by_rows() ? map.s : map.c) * item + 127) / 128 * 128;
    work = coefficients + 2 * sizeof(float) * length;
    z = 0;
    partial = z + (size_t)g.samples * g.channels;
    active = partial + g.samples * r;
    scale_shift = active + g.samples * r;
    const size_t scale_shift_end = scale_shift + 2 * (size_t)g.samples * g.channels, columns = 8 * (size_t)g.threads;
    const size_t floats =
        !map.by_rows() && columns > scale_shift_end ? columns : scale_shift_end;  // column_moments uses `work` first
    barrier = (work + sizeof(float) * floats + 15) / 16 * 16;
    all = barrier + 16;
  }
};

}  // namespace se_fused::cuda

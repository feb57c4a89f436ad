// Shared memory of a block of the cluster_fused kernel.
#pragma once

#include "kernel_params.h"

namespace se_fused::cuda {

// Fills the layout from the other parameters. On the host, because the kernel reads the results as constants, without
// registers.
inline ClusterLayout layout_of(const ClusterFused& g) {
  const Map& map = g.op.map;
  const auto floats = [](int n) { return (int)sizeof(float) * n; };
  const auto larger = [](int a, int b) { return a > b ? a : b; };
  const int item = map.type == Type::float32 ? 4 : 2;
  const int64_t x = ceil_div((int64_t)g.partition * (map.by_rows() ? map.s : map.c) * item, 128) * 128;
  ClusterLayout at{};
  if (x > kLargestShared || g.op.fc.r > kLargestShared / 16) {
    at.all = kLargestShared + 1;  // it does not fit, and the numbers below might overflow
    return at;
  }
  at.length = map.by_rows() ? g.partition : map.c;
  at.r = (int)ceil_div(g.op.fc.r, 8) * 8;
  at.senders = (int)ceil_div(map.c, g.channels);
  at.hidden = g.samples * at.r;
  at.own = (int)ceil_div(at.hidden / 4, g.blocks) * 4;
  at.stored = (int)ceil_div(g.threads / g.lanes, 2);
  const int of_sums = floats(map.by_rows() ? g.partition : 8 * at.stored * g.lanes);
  const int of_channels = floats(g.samples * g.channels);
  at.sums = at.coefficients = (int)x;
  at.means = at.partial = at.sums + larger(of_sums, floats(2 * at.length));
  at.active = at.partial + floats(at.hidden);
  at.factor = at.active + floats(at.hidden);
  at.norm = larger(at.means + floats((map.by_rows() ? g.samples : g.blocks) * g.channels), at.factor + of_channels);
  at.bias = at.norm + floats(3 * g.channels);
  at.z = at.bias + floats(at.own);
  at.parts = at.z + of_channels;
  at.barriers = at.parts + floats(g.blocks * at.own);
  at.all = (int)ceil_div(at.barriers + (kExchanges + 1) * 8, 16) * 16;
  return at;
}

}  // namespace se_fused::cuda

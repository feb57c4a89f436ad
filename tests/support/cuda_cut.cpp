// Prints how summing passes are cut (csrc/cuda/plan.cpp). Arguments: kernel (the number in Sums), multiprocessors, N,
// C, S, channels_last, bytes of an element. Output: lanes, splits, span, blocks, and the blocks that run at a time.
#include <cstdio>
#include <cstdlib>

#include "plan.h"

using namespace se_fused::cuda;

namespace se_fused::cuda {
int largest_cluster(size_t) { return 1; }  // plan.h asks a device; no plan of a cluster is made here
}  // namespace se_fused::cuda

int main(int count, char** given) {
  if (count != 8) return 2;
  const auto number = [&](int i) { return std::atoi(given[i]); };
  const Sums sums = static_cast<Sums>(number(1));
  Device device{};
  device.multiprocessors = number(2);
  const int s = number(5);
  Map map{number(3), number(4), s, Mode::rows, number(7) == 4 ? Type::float32 : Type::bfloat16};
  if (number(6))
    map.mode = map.c % 8 ? Mode::cols_single : Mode::cols;
  else
    map.mode = s < 8 ? Mode::rows_single : s % 8 ? Mode::rows_unaligned : Mode::rows;
  const Cut cut = cut_of(map, device, sums);
  const long long blocks = map.by_rows() ? cut.splits * ceil_div(map.n * map.c, 256 / cut.lanes)
                                         : map.n * cut.splits * ceil_div(map.c, 8 * cut.lanes);
  std::printf("%d %d %d %lld %d\n", cut.lanes, cut.splits, cut.span, blocks,
              resident_blocks(sums, map.mode) * device.multiprocessors);
}

// Choice of the launches of a call and their shapes, by rules on the map and the device; each choice has a reason.
#pragma once

#include <optional>
#include <string>

#include "kernel_params.h"

namespace se_fused::cuda {

// The device properties that the rules use.
struct Device {
  int capability;  // 90 for 9.0
  int multiprocessors;
  int64_t l2_bytes;
  int64_t shared_bytes;  // per block, at most
  // Most blocks of a cluster: if a second block fits on the same multiprocessor (shared_of_two), and if each block has
  // a multiprocessor's shared memory to itself. 1 on devices without clusters.
  int max_cluster, max_cluster_alone;
  bool programmatic;  // it and the driver have programmatic launches, also in a captured graph
};

// Shared memory per block if two blocks share a multiprocessor. The system reserves 1 KB per block.
inline int64_t shared_of_two(int64_t shared_bytes) { return (shared_bytes + 1024) / 2 - 1024; }
// Sets the largest clusters that the current device can place. Called once per device, because it queries the driver.
inline void find_clusters(Device& device) {
  const bool any = device.capability >= 90;
  device.max_cluster = any ? largest_cluster(shared_of_two(device.shared_bytes)) : 1;
  device.max_cluster_alone = any ? largest_cluster(device.shared_bytes) : 1;
}

Cut whole(const Map&);                              // one split: sums need no merging
Cut cut_of(const Map&, const Device&, Sums);        // splits, whose sums are merged by excitation or torch.sum
LastBlocks last_blocks_of(const Map&, const Cut&);  // without memory
// For a pass without sums, of whose blocks a multiprocessor holds so many at a time. Used in the cols modes only.
Cut part_of(const Map&, const Device&, int blocks_of_multiprocessor);
int lanes_of_row(const Map&);  // threads that share a row's sum
// The end of the residual, which pass 2 reads first and fetches into L2 while the excitation leaves the memory idle.
Prefetch end_of(const void* residual, const Map&, const Device&);

enum class Path { cluster_fused, l2_grouped, separate };

struct InferencePlan {
  Path path;
  const char* reason;
  const char *no_cluster_fused, *no_l2_grouped;  // why these preferred paths were not taken; else null
  const char* refusal;                           // why the map cannot take a forced path; then there is no plan
  ClusterFused cluster_fused;                    // without op
  L2Grouped l2_grouped;
  int blocks;  // of l2_grouped
};

// r: squeezed channels; weight_bytes: of an element of the weights; weights_fit: l2_grouped.cu supports the weights'
// dtype with x's; forced: the path to take, or none.
InferencePlan plan_inference(const Map&, int r, int weight_bytes, bool weights_fit, const Device&,
                             std::optional<Path> forced);

// The path that force_path has set for all plans of this process, for tests and measurements; without one,
// plan_inference chooses. force_path's name is that of a path, or "" to choose again.
std::optional<Path> forced_path();
const char* forced_name();
bool force_path(const std::string& name);  // false if there is no such path

// A readable description: the path, its shape, and the bytes of x and weights that it reads.
std::string describe(const InferencePlan&, const Map&, int r, int weight_bytes);

}  // namespace se_fused::cuda

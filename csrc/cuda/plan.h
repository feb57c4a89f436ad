// Which launches a call takes, and their shapes: rules with their reasons, chosen from the map and the device.
#pragma once

#include <optional>
#include <string>

#include "kernel_params.h"

namespace se_fused::cuda {

// What the rules ask of a device.
struct Device {
  int capability;  // 90 for 9.0
  int multiprocessors;
  int64_t l2_bytes;
  int64_t shared_bytes;  // of a block, at most
  // Blocks of a cluster, at most: of blocks that leave half of their multiprocessor to another one, and of larger ones.
  // 1: no clusters.
  int max_cluster, max_cluster_alone;
};

// Of a block that leaves as much to another one; 1 KB of each block is the system's.
inline int64_t shared_of_two(int64_t shared_bytes) { return (shared_bytes + 1024) / 2 - 1024; }
// What the current device can place: filled in once, as each question is one to the driver.
inline void find_clusters(Device& device) {
  const bool any = device.capability >= 90;
  device.max_cluster = any ? largest_cluster(shared_of_two(device.shared_bytes)) : 1;
  device.max_cluster_alone = any ? largest_cluster(device.shared_bytes) : 1;
}

Cut whole(const Map&);                  // sums that nobody merges
Cut cut_of(const Map&, const Device&);  // sums that excitation merges
Cut part_of(const Map&);                // of a pass that does not sum: cols alone
int lanes_of_row(const Map&);           // that share a row's sum

enum class Path { cluster_fused, l2_grouped, separate };

struct InferencePlan {
  Path path;
  const char* reason;
  const char *no_cluster_fused, *no_l2_grouped;  // why not, where the rule wanted them first; else null
  const char* refusal;                           // why the map cannot take a path that is forced; then there is no plan
  ClusterFused cluster_fused;                    // op is not filled in
  L2Grouped l2_grouped;
  int blocks;  // of l2_grouped
};

// r: squeezed channels; `weights_fit`: the weights' dtype is one that l2_grouped.cu takes with x's.
InferencePlan plan_inference(const Map&, int r, bool weights_fit, const Device&, std::optional<Path> forced);

// The path that all plans of this process take, for tests and measurements; none: the rule's. By name, "" for none.
std::optional<Path> forced_path();
const char* forced_name();
bool force_path(const std::string& name);  // false: there is no such path

// For people: the path, its shape and the bytes that it moves.
std::string describe(const InferencePlan&, const Map&, int r);

}  // namespace se_fused::cuda

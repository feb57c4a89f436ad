// Which launches a call takes, and their shapes: rules with their reasons, chosen from the map and the device.
#pragma once

#include <string>

#include "kernels.h"

namespace se_fused::cuda {

// What the rules ask of a device.
struct Device {
  int capability;  // 90 for 9.0
  int multiprocessors;
  int64_t l2_bytes;
  int64_t shared_bytes;  // of a block, at most
  int max_cluster;       // 16, or what the launch attribute permits; 1: none
};

Cut whole(const Map&);                  // sums that nobody merges
Cut cut_of(const Map&, const Device&);  // sums that the gate merges
Cut part_of(const Map&);                // of a stream that does not sum: cols alone
int lanes_of_row(const Map&);           // that share a row's sum

enum class Path { one_pass, grouped, separate };

struct InferencePlan {
  Path path;
  const char* reason;
  OnePass one_pass;  // op is not filled in
  Grouped grouped;
  int blocks;  // of grouped
};

// r: squeezed channels; `weights_fit`: the weights' dtype is one that grouped.cu takes with x's.
InferencePlan plan_inference(const Map&, int r, bool weights_fit, const Device&);

// For people: the path, its shape and the bytes that it moves.
std::string describe(const InferencePlan&, const Map&, int r);

}  // namespace se_fused::cuda

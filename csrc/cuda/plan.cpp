#include "plan.h"

#include <algorithm>

namespace se_fused::cuda {
namespace {

int64_t item_bytes(const Map& map) { return map.type == Type::float32 ? 4 : 2; }

int power_of_two(int64_t n) {  // the smallest that is not below n
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// Memory answers after 0.7 us or so; an H200's 4.3 TB/s are 23 KB under way per multiprocessor at any time. Four blocks
// of 256 threads with 64 bytes each are 64 KB. Twice as many blocks as are resident keep the last round short.
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kThreadsOfBlock = 256;
constexpr int kStep = 4;         // vectors that a thread has under way
constexpr int kMaxSplits = 256;  // whoever merges them reads each

int lanes_of_columns(const Map& map) { return std::min(power_of_two(ceil_div(map.c, 8)), 32); }

}  // namespace

int lanes_of_row(const Map& map) { return std::min(power_of_two(ceil_div(map.s, 8)), 32); }

Cut whole(const Map& map) { return {1, map.s, map.by_rows() ? lanes_of_row(map) : lanes_of_columns(map)}; }

Cut cut_of(const Map& map, const Device& device) {
  Cut cut = whole(map);
  const int64_t wanted = kBlocksPerMultiprocessor * device.multiprocessors;
  int64_t blocks, steps;  // without splits; iterations of a thread
  if (map.by_rows()) {
    blocks = ceil_div(map.n * map.c * cut.lanes, kThreadsOfBlock);
    steps = ceil_div(map.s, 8 * cut.lanes * kStep);
  } else {
    blocks = map.n * ceil_div(map.c, 8 * cut.lanes);
    steps = ceil_div(map.s, kThreadsOfBlock / cut.lanes * kStep);
  }
  // two iterations at least: a split costs its merging
  const int64_t splits = std::min({ceil_div(wanted, blocks), std::max<int64_t>(steps / 2, 1), int64_t{kMaxSplits}});
  const int64_t span = ceil_div(ceil_div(map.s, splits), 8) * 8;  // whole bytes of the mask
  cut.span = (int)std::min<int64_t>(span, INT32_MAX / 2);
  cut.splits = (int)ceil_div(map.s, cut.span);
  return cut;
}

Cut part_of(const Map& map) {
  const int lanes = lanes_of_columns(map), steps = kThreadsOfBlock / lanes;
  return {1, std::min(map.s, steps * 8), lanes};  // eight positions a thread spread the cost of its coefficients
}

namespace {

// Why a path is taken: the first row whose condition holds.
//
//   one pass   sm_90 and later, 8 channels and more to a vector, a sample fits in a cluster: 3 passes in one launch
//   grouped    x does not stay in L2 between two launches, three groups of samples do: 3 passes in two launches
//   separate   the rest: moments, gate, affine; 3 passes where x stays in L2, else 4
//
// One pass. A block's share of a sample is the largest that leaves room for a second block on the multiprocessor, so
// that one loads while the other computes its gate; a whole multiprocessor where only that holds the sample. With few
// samples a sample is spread over more blocks, up to the portable 8, as long as all together leave multiprocessors
// idle. Samples join a cluster until the weights that clusters read are a quarter of x: a cluster per sample would read
// 128 MB of them for 26 MB of x in stage 4 of ResNet-50 (N = 128, 16 bits); four samples a cluster read 34 MB, out of
// L2.
constexpr const char* kReasons[] = {
    "one pass: a cluster of blocks holds each sample in shared memory",
    "grouped: x is larger than half of L2; groups of samples stay in it between the two streams",
    "separate: x stays in L2 between the launches",
    "separate: neither a sample in a cluster's shared memory nor three groups of samples in L2",
};

bool plan_one_pass(const Map& map, int r, const Device& device, OnePass& plan) {
  if (device.capability < 90 || map.mode == Mode::rows_single || map.mode == Mode::cols_single || map.c % 8)
    return false;
  const int64_t vectors_of_channels = map.c / 8, units = map.by_rows() ? vectors_of_channels : map.s;
  plan.op.map = map;
  plan.op.fc.r = r;
  plan.threads = kThreadsOnePass;
  plan.lanes = map.by_rows() ? lanes_of_row(map) : lanes_of_columns(map);
  const int64_t shared_of_two = (device.shared_bytes + 1024) / 2 - 1024;  // 1 KB of each block is the system's
  const auto fill = [&](int share, int samples) {
    plan.share = share;
    plan.samples = samples;
    plan.blocks = share * samples;
    plan.piece = (int)ceil_div(units, share) * (map.by_rows() ? 8 : 1);
    plan.channels = (int)ceil_div(vectors_of_channels, plan.blocks) * 8;
    return (int64_t)shared_bytes(plan);
  };
  int share = 0;
  for (const int64_t room : {shared_of_two, device.shared_bytes})
    for (int blocks = 1; !share && blocks <= device.max_cluster; blocks *= 2)
      if (fill(blocks, 1) <= room) share = blocks;
  if (!share) return false;
  while (2 * share <= std::min(device.max_cluster, 8) && map.n * 2 * share <= device.multiprocessors &&
         2 * share <= units)
    share *= 2;
  const int64_t room = fill(share, 1) <= shared_of_two ? shared_of_two : device.shared_bytes;
  const int64_t weights = 2 * (int64_t)map.c * r * item_bytes(map), sample = (int64_t)map.c * map.s * item_bytes(map);
  int samples = 1;
  while (samples < kSamplesOfCluster && 2 * samples * share <= device.max_cluster && 4 * weights > samples * sample &&
         2 * samples <= map.n && map.n / (2 * samples) * 2 * samples * share >= device.multiprocessors &&
         fill(share, 2 * samples) <= room)
    samples *= 2;
  fill(share, samples);
  return true;
}

// Two blocks of 256 threads per multiprocessor, 64 bytes a thread under way. A tile is two such rounds, 32 KB: its
// ticket (a round trip to L2, 1 us) is a third of its time, which the other block hides. A group has as many tiles as
// there are blocks; larger tiles would make it larger, and stage 1 of ResNet-50 would not go three times into an A100's
// 40 MB.
bool plan_grouped(const Map& map, bool weights_fit, const Device& device, Grouped& plan, int& blocks) {
  if (!weights_fit || map.n < 4 || map.mode == Mode::rows_single || map.mode == Mode::cols_single) return false;
  if (map.mode == Mode::rows_shifted && map.c % 8) return false;  // a sample must start with a vector
  const int64_t tile_bytes = kThreadsOfBlock * 64 * 2;
  blocks = 2 * device.multiprocessors;
  if (map.by_rows()) {
    plan.lanes = lanes_of_row(map);
    // whole vectors, also in rows_shifted
    const int64_t rows = std::max<int64_t>(tile_bytes / (map.s * item_bytes(map)) / 8, 1) * 8;
    plan.tile = (int)std::min<int64_t>(rows, map.c);
    plan.splits = (int)ceil_div(map.c, plan.tile);
  } else {
    plan.lanes = lanes_of_columns(map);
    const int64_t positions = std::max<int64_t>(tile_bytes / (plan.lanes * 8 * item_bytes(map)), 1);
    plan.tile = (int)std::min<int64_t>(positions, map.s);
    plan.splits = (int)ceil_div(map.s, plan.tile);
  }
  const int64_t of_sample = plan.splits * (map.by_rows() ? 1 : ceil_div(map.c, 8 * plan.lanes));
  const int64_t group = ceil_div(blocks, of_sample), sample = (int64_t)map.c * map.s * item_bytes(map);
  if (3 * group * sample > device.l2_bytes * 3 / 4 || 2 * group > map.n) return false;
  plan.group = (int)group;
  return true;
}

}  // namespace

InferencePlan plan_inference(const Map& map, int r, bool weights_fit, const Device& device) {
  InferencePlan plan{};
  if (plan_one_pass(map, r, device, plan.one_pass)) {
    plan.path = Path::one_pass;
    plan.reason = kReasons[0];
    return plan;
  }
  const bool stays = map.n * map.c * map.s * item_bytes(map) <= device.l2_bytes / 2;
  if (!stays && plan_grouped(map, weights_fit, device, plan.grouped, plan.blocks)) {
    plan.path = Path::grouped;
    plan.reason = kReasons[1];
    return plan;
  }
  plan.path = Path::separate;
  plan.reason = kReasons[stays ? 2 : 3];
  return plan;
}

std::string describe(const InferencePlan& plan, const Map& map, int r) {
  const int64_t weights = 2 * (int64_t)map.c * r * item_bytes(map);
  const auto say = [](int64_t n) { return std::to_string(n); };
  std::string text = plan.reason;
  if (plan.path == Path::one_pass) {
    const OnePass& g = plan.one_pass;
    const int64_t clusters = ceil_div(map.n, g.samples);
    text += "; " + say(g.samples) + " sample(s) in " + say(g.blocks) + " block(s) of " + say(shared_bytes(g)) +
            " bytes; weights " + say(clusters * weights) + " bytes in all, x " +
            say(map.n * map.c * map.s * item_bytes(map));
  } else if (plan.path == Path::grouped) {
    const Grouped& g = plan.grouped;
    text +=
        "; groups of " + say(g.group) + " samples, tiles of " + say(g.tile) + (map.by_rows() ? " rows" : " positions");
  }
  return text;
}

}  // namespace se_fused::cuda

#include "plan.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <iterator>

#include "cluster_layout.h"

namespace se_fused::cuda {
namespace {

int64_t item_bytes(const Map& map) { return map.type == Type::float32 ? 4 : 2; }

int power_of_two(int64_t n) {  // the smallest power of two >= n
  int p = 1;
  while (p < n) p *= 2;
  return p;
}

// The memory latency is about 0.7 us, so an H200's 4.3 TB/s need 23 KB in flight per multiprocessor. Four blocks of 256
// threads with 64 bytes each are 64 KB. Twice as many blocks as are resident keep the last, partly filled round short.
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kThreadsOfBlock = 256;
constexpr int kStep = 4;         // vectors in flight per thread
constexpr int kMaxSplits = 256;  // limits the merging, which reads every split

int lanes_of_columns(const Map& map) { return std::min(power_of_two(ceil_div(map.c, 8)), 32); }

}  // namespace

size_t shared_bytes(const ClusterFused& g) { return ClusterLayout(g).all; }

int lanes_of_row(const Map& map) { return std::min(power_of_two(ceil_div(map.s, 8)), 32); }

Cut whole(const Map& map) { return {1, map.s, map.by_rows() ? lanes_of_row(map) : lanes_of_columns(map)}; }

Cut cut_of(const Map& map, const Device& device) {
  Cut cut = whole(map);
  const int64_t wanted = kBlocksPerMultiprocessor * device.multiprocessors;
  int64_t blocks, steps;  // blocks without splits, and iterations per thread
  if (map.by_rows()) {
    blocks = ceil_div(map.n * map.c * cut.lanes, kThreadsOfBlock);
    steps = ceil_div(map.s, 8 * cut.lanes * kStep);
  } else {
    blocks = map.n * ceil_div(map.c, 8 * cut.lanes);
    steps = ceil_div(map.s, kThreadsOfBlock / cut.lanes * kStep);
  }
  // At least two iterations per split, because each split adds to the merging.
  const int64_t splits = std::min({ceil_div(wanted, blocks), std::max<int64_t>(steps / 2, 1), int64_t{kMaxSplits}});
  const int64_t span = ceil_div(ceil_div(map.s, splits), 8) * 8;  // whole bytes of the mask
  cut.span = (int)std::min<int64_t>(span, INT32_MAX / 2);
  cut.splits = (int)ceil_div(map.s, cut.span);
  return cut;
}

// One block merges the sums of all samples if these are at most four rounds of eight loads per thread. A round takes
// about 350 cycles in each of three loops, 0.6 us. Beyond that, two levels take less, though the second one waits for
// another counter (0.8 us), and they take least if both read the same number of sums.
constexpr int64_t kSumsOfOneLevel = 4 * 8 * kThreadsOfBlock;

LastBlocks last_blocks_of(const Map& map, const Cut& cut) {
  LastBlocks last{};
  last.width = map.by_rows() ? kThreadsOfBlock / cut.lanes : 8 * cut.lanes;
  const bool one_level = map.n * cut.splits * last.width <= kSumsOfOneLevel;
  last.group = one_level ? (int)map.n : std::max((int)std::lround(std::sqrt((double)map.n / cut.splits)), 1);
  last.groups = (int)ceil_div(map.n, last.group);
  return last;
}

Cut part_of(const Map& map) {
  const int lanes = lanes_of_columns(map), steps = kThreadsOfBlock / lanes;
  return {1, std::min(map.s, steps * 8), lanes};  // eight positions per thread amortise loading the coefficients
}

namespace {

// The rules: the first path whose condition holds is taken.
//
//   cluster_fused  sm_90 or later, C a multiple of 8, elements in whole vectors, and a sample fits in a cluster that
//                  the device can place: 3 passes in one launch
//   l2_grouped     x does not stay in L2 between two launches, but three groups of samples do: 3 passes in two launches
//                  (the first zeroes the counters)
//   separate       all other cases: moments, excitation, scale_shift_act; 3 passes if x stays in L2, else 4
//
// cluster_fused. A block's share of a sample is the largest that leaves room for a second block on the multiprocessor,
// so that one block loads while the other computes its excitation. If the sample does not fit that way, a block takes
// the shared memory of a whole multiprocessor. With few samples, a sample is spread over more blocks, up to the
// portable limit of 8, while multiprocessors would stay idle. Samples are added to a cluster until the weights that all
// clusters read are at most a quarter of x: with one sample per cluster, stage 4 of ResNet-50 (N = 128, 16 bits) would
// read 128 MB of weights for 26 MB of x; four samples per cluster read 34 MB, from L2.
constexpr const char* kClusterFused = "cluster_fused: a cluster of blocks holds each sample in shared memory";
constexpr const char* kL2Grouped =
    "l2_grouped: x is larger than half of L2; groups of samples stay in it between the two passes";
constexpr const char* kStays = "separate: x stays in L2 between the launches";
constexpr const char* kNeither = "separate: x is larger than half of L2";
constexpr const char* kForced[] = {"cluster_fused: forced", "l2_grouped: forced", "separate: forced"};
constexpr const char* kNames[] = {"cluster_fused", "l2_grouped", "separate"};

constexpr const char* kSingle = "its elements cannot be read in whole vectors of eight";
constexpr const char* kChannels = "C is not a multiple of 8";

// Fills `plan` and returns null, or returns why cluster_fused cannot be used.
const char* plan_cluster_fused(const Map& map, int r, const Device& device, ClusterFused& plan) {
  if (device.capability < 90) return "the device has no clusters of thread blocks";
  if (is_single(map.mode)) return kSingle;
  if (map.c % 8) return kChannels;
  const int64_t vectors_of_channels = map.c / 8, units = map.by_rows() ? vectors_of_channels : map.s;
  plan.op.map = map;
  plan.op.fc.r = r;
  plan.threads = kThreadsClusterFused;
  plan.lanes = map.by_rows() ? lanes_of_row(map) : lanes_of_columns(map);
  const auto fill = [&](int share, int samples) {
    plan.share = share;
    plan.samples = samples;
    plan.blocks = share * samples;
    plan.partition = (int)ceil_div(units, share) * (map.by_rows() ? 8 : 1);
    plan.channels = (int)ceil_div(vectors_of_channels, plan.blocks) * 8;
    return (int64_t)shared_bytes(plan);
  };
  struct Room {
    int64_t bytes;
    int blocks;
  };
  const Room half{shared_of_two(device.shared_bytes), device.max_cluster};
  const Room alone{device.shared_bytes, device.max_cluster_alone};
  int share = 0;
  for (const Room& room : {half, alone})
    for (int blocks = 1; !share && blocks <= room.blocks; blocks *= 2)
      if (fill(blocks, 1) <= room.bytes) share = blocks;
  if (!share)
    return fill(kLargestCluster, 1) <= alone.bytes
               ? "the device cannot place a cluster of 16 blocks with so much shared memory"
               : "a sample does not fit in a cluster's shared memory";
  const auto room_of = [&](int64_t bytes) { return bytes <= half.bytes ? half : alone; };
  while (2 * share <= 8 && map.n * 2 * share <= device.multiprocessors && 2 * share <= units &&
         2 * share <= room_of(fill(2 * share, 1)).blocks)
    share *= 2;
  const Room room = room_of(fill(share, 1));
  const int64_t weights = 2 * (int64_t)map.c * r * item_bytes(map), sample = (int64_t)map.c * map.s * item_bytes(map);
  int samples = 1;
  while (samples < kSamplesOfCluster && 2 * samples * share <= room.blocks && 4 * weights > samples * sample &&
         2 * samples <= map.n && map.n / (2 * samples) * 2 * samples * share >= device.multiprocessors &&
         fill(share, 2 * samples) <= room.bytes)
    samples *= 2;
  fill(share, samples);
  return nullptr;
}

// Two blocks of 256 threads per multiprocessor, with 64 bytes in flight per thread. A tile is two such rounds, 32 KB.
// Taking its ticket (a round trip to L2, 1 us) is a third of its time, which the other block hides. A group has as many
// tiles as there are blocks. Larger tiles would make the group larger, and three groups of stage 1 of ResNet-50 would
// not fit in an A100's 40 MB of L2.
// Fills `plan` and `blocks` and returns null, or returns why l2_grouped is not used: because it cannot, or, unless
// `forced`, because it does not pay.
const char* plan_l2_grouped(const Map& map, bool weights_fit, const Device& device, bool forced, L2Grouped& plan,
                            int& blocks) {
  if (!weights_fit) return "the weights are neither float32 nor of x's dtype";
  if (is_single(map.mode)) return kSingle;
  if (map.mode == Mode::rows_unaligned && map.c % 8) return kChannels;  // a sample must start with a vector
  const int64_t tile_bytes = kThreadsOfBlock * 64 * 2;
  blocks = 2 * device.multiprocessors;
  if (map.by_rows()) {
    plan.lanes = lanes_of_row(map);
    // a multiple of 8 rows, so that a tile is whole vectors also in rows_unaligned
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
  plan.group = (int)std::min(group, map.n);
  if (forced) return nullptr;
  if (3 * group * sample > device.l2_bytes * 3 / 4) return "three groups of samples do not fit in L2";
  return 2 * group > map.n || map.n < 4 ? "there are too few samples" : nullptr;
}

}  // namespace

InferencePlan plan_inference(const Map& map, int r, bool weights_fit, const Device& device,
                             std::optional<Path> forced) {
  InferencePlan plan{};
  const auto take = [&](Path path, const char* reason) {
    plan.path = path;
    plan.reason = reason;
    return plan;
  };
  const auto cluster_fused = [&] { return plan_cluster_fused(map, r, device, plan.cluster_fused); };
  const auto l2_grouped = [&] {
    return plan_l2_grouped(map, weights_fit, device, forced.has_value(), plan.l2_grouped, plan.blocks);
  };
  if (forced) {
    plan.refusal = forced == Path::cluster_fused ? cluster_fused()
                   : forced == Path::l2_grouped  ? l2_grouped()
                                                 : nullptr;
    return take(*forced, kForced[(int)*forced]);
  }
  plan.no_cluster_fused = cluster_fused();
  if (!plan.no_cluster_fused) return take(Path::cluster_fused, kClusterFused);
  if (map.n * map.c * map.s * item_bytes(map) <= device.l2_bytes / 2) return take(Path::separate, kStays);
  plan.no_l2_grouped = l2_grouped();
  return plan.no_l2_grouped ? take(Path::separate, kNeither) : take(Path::l2_grouped, kL2Grouped);
}

static std::atomic<int> forced{-1};  // a Path, or -1 for none

std::optional<Path> forced_path() {
  const int path = forced.load(std::memory_order_relaxed);
  return path < 0 ? std::nullopt : std::optional(static_cast<Path>(path));
}

const char* forced_name() {
  const std::optional<Path> path = forced_path();
  return path ? kNames[(int)*path] : "";
}

bool force_path(const std::string& name) {
  const auto found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found == std::end(kNames) && !name.empty()) return false;
  forced.store(name.empty() ? -1 : (int)(found - kNames), std::memory_order_relaxed);
  return true;
}

std::string describe(const InferencePlan& plan, const Map& map, int r) {
  const int64_t weights = 2 * (int64_t)map.c * r * item_bytes(map);
  const auto say = [](int64_t n) { return std::to_string(n); };
  std::string text = plan.reason;
  if (plan.refusal) return text + " but not possible: " + plan.refusal;
  if (plan.path == Path::cluster_fused) {
    const ClusterFused& g = plan.cluster_fused;
    const int64_t clusters = ceil_div(map.n, g.samples);
    text += "; " + say(g.samples) + " sample(s) in " + say(g.blocks) + " block(s) of " + say(shared_bytes(g)) +
            " bytes; weights " + say(clusters * weights) + " bytes in all, x " +
            say(map.n * map.c * map.s * item_bytes(map));
  } else if (plan.path == Path::l2_grouped) {
    const L2Grouped& g = plan.l2_grouped;
    text +=
        "; groups of " + say(g.group) + " samples, tiles of " + say(g.tile) + (map.by_rows() ? " rows" : " positions");
  }
  if (plan.no_cluster_fused) text += std::string("; not cluster_fused: ") + plan.no_cluster_fused;
  if (plan.no_l2_grouped) text += std::string("; not l2_grouped: ") + plan.no_l2_grouped;
  return text;
}

}  // namespace se_fused::cuda

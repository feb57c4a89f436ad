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

constexpr int kThreadsOfBlock = 256;
constexpr int kRounds = 2;         // of loads per thread
constexpr int kMaxSplits = 256;    // limits the merging, which reads every split
constexpr double kFullWave = 0.9;  // of the multiprocessors' blocks

int lanes_of_columns(const Map& map) { return std::min(power_of_two(ceil_div(map.c, 8)), 32); }

// Vectors that hold a row, at most: one that is not aligned may begin and end within a vector.
int64_t vectors_of_row(const Map& map) { return (map.s + (map.mode == Mode::rows_unaligned ? 14 : 7)) / 8; }

int lanes_of_row(const Map& map, Sums sums) {
  const int loads = loads_of(map.mode, (int)item_bytes(map), tensors_of(sums));
  return std::min(power_of_two(ceil_div(vectors_of_row(map), kRounds * loads)), 32);
}

// The share of the device's blocks that run, averaged over the waves. 1 with many waves or whole ones.
double wave_share(int64_t blocks, int64_t wave) { return (double)blocks / (double)(ceil_div(blocks, wave) * wave); }

}  // namespace

size_t shared_bytes(const ClusterFused& g) { return (size_t)g.layout.all; }

// A group of lanes is as small as two rounds of full load slots allow. More lanes, and so fewer loads per thread, would
// divide what a row takes beside its elements (the offsets, the merging: 170 instructions per warp) by fewer bytes, and
// leave slots empty: with 8 lanes for the 7 vectors of a 7x7 row in 16 bits, three of four.
int lanes_of_row(const Map& map) { return lanes_of_row(map, Sums::moments); }

Cut whole(const Map& map) { return {1, map.s, map.by_rows() ? lanes_of_row(map) : lanes_of_columns(map)}; }

// The fewest splits whose blocks fill the multiprocessors in whole waves, or else those that fill them best: a wave
// with few blocks takes as long as a full one, and each split adds to the merging. For ResNet-50 with 128 samples,
// moments in channels_last has 512 blocks in stages 1 to 3 and 1,024 in stage 4, with 528 at a time on an H100.
Cut cut_of(const Map& map, const Device& device, Sums sums) {
  Cut cut = whole(map);
  const int64_t wave = (int64_t)resident_blocks(sums, map.mode) * device.multiprocessors;
  const int loads = loads_of(map.mode, (int)item_bytes(map), tensors_of(sums));
  int64_t blocks, rounds;  // blocks without splits, and rounds of loads per thread
  if (map.by_rows()) {
    const int64_t vectors = vectors_of_row(map);
    const auto blocks_with = [&](int lanes) { return map.n * ceil_div(map.c, kThreadsOfBlock / lanes); };
    cut.lanes = lanes_of_row(map, sums);
    while (2 * cut.lanes <= 32 && cut.lanes < vectors && (double)blocks_with(cut.lanes) < kFullWave * (double)wave)
      cut.lanes *= 2;  // few rows: more lanes for each
    blocks = blocks_with(cut.lanes);
    rounds = ceil_div(vectors, loads * cut.lanes);
  } else {
    blocks = map.n * ceil_div(map.c, 8 * cut.lanes);
    rounds = ceil_div(map.s, kThreadsOfBlock / cut.lanes * loads);
  }
  const int64_t most = std::min(std::max<int64_t>(rounds / kRounds, 1), int64_t{kMaxSplits});
  double best = 0;
  for (int64_t wanted = 1; wanted <= most && best < kFullWave; ++wanted) {
    const int64_t span = ceil_div(ceil_div(map.s, wanted), 8) * 8;  // whole bytes of the mask
    const int64_t splits = ceil_div(map.s, span);
    const double share = wave_share(blocks * splits, wave);
    if (share <= best) continue;
    best = share;
    cut.span = (int)std::min<int64_t>(span, INT32_MAX / 2);
    cut.splits = (int)splits;
  }
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
  last.rest = (int)(map.n - (int64_t)(last.groups - 1) * last.group);
  const int64_t blocks = ceil_div(map.c, last.width);
  last.blocks = divisor_of(blocks);
  last.blocks_of_group = divisor_of(blocks * cut.splits * last.group);
  last.channels = divisor_of(map.c);
  return last;
}

// In the cols modes: splits of a sample's positions into equal spans. Five to ten positions per thread amortise loading
// the coefficients. Among these splits, the one is taken with which the busiest place for a block gets the fewest
// positions, waves * span. So a sample's last block is no small remainder, and neither is the launch's last wave. With
// fewer blocks than the device holds at a time, a thread gets down to two positions, which is one round of loads.
Cut part_of(const Map& map, const Device& device, int blocks_of_multiprocessor) {
  const int lanes = lanes_of_columns(map), steps = kThreadsOfBlock / lanes;
  Cut cut{1, map.s, lanes};
  if (map.by_rows()) return cut;
  const int64_t units = map.n * ceil_div(map.c, 8 * lanes);
  const int64_t at_once = (int64_t)blocks_of_multiprocessor * device.multiprocessors;
  const int64_t fewest = ceil_div(map.s, 10 * steps), most = ceil_div(map.s, 5 * steps);
  if (const int64_t one_wave = at_once / std::max<int64_t>(units, 1); one_wave > most) {
    cut.span = (int)ceil_div(map.s, std::max(most, std::min(one_wave, ceil_div(map.s, 2 * steps))));
    return cut;
  }
  int64_t least = INT64_MAX;
  for (int64_t splits = fewest; splits <= std::min(most, fewest + 63); ++splits) {
    const int64_t span = ceil_div(map.s, splits), waves = ceil_div(units * ceil_div(map.s, span), at_once);
    if (waves * span >= least) continue;
    least = waves * span;
    cut.span = (int)span;
  }
  return cut;
}

// A block reads at most 32 KB of the residual. Those of one block per multiprocessor are always fetched. More displaces
// x, unless three quarters of L2 hold both.
Prefetch end_of(const void* residual, const Map& map, const Device& device) {
  const int64_t all = map.n * map.c * map.s * item_bytes(map), blocks = device.multiprocessors;
  const int64_t bytes = std::min(all, std::max(blocks * (32 << 10), device.l2_bytes * 3 / 4 - all));
  return {static_cast<const char*>(residual) + all - bytes, bytes, ceil_div(ceil_div(bytes, blocks), 16) * 16};
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
// the shared memory of a whole multiprocessor. Several samples in a cluster may fit where one does not, because each
// block then has fewer channels. With few samples, a sample is spread over more blocks while
// multiprocessors would stay idle: each block then reads fewer weights, which is most of the time of one sample in
// stage 4 (1 MB over 16 multiprocessors takes 0.6 us, over 8 twice that). Samples are added to a cluster until the
// weights that all clusters read are at most a quarter of x: with one sample per cluster, stage 4 of ResNet-50 (N =
// 128, 16 bits) would read 128 MB of weights for 26 MB of x; four samples per cluster read 34 MB, from L2.
constexpr const char* kClusterFused = "cluster_fused: a cluster of blocks holds each sample in shared memory";
constexpr const char* kL2Grouped =
    "l2_grouped: x is larger than half of L2; groups of samples stay in it between the two passes";
constexpr const char* kStays = "separate: x stays in L2 between the launches";
constexpr const char* kNeither = "separate: x is larger than half of L2";
constexpr const char* kForced[] = {"cluster_fused: forced", "l2_grouped: forced", "separate: forced"};
constexpr const char* kNames[] = {"cluster_fused", "l2_grouped", "separate"};

constexpr const char* kSingle = "its elements cannot be read in whole vectors of eight";
constexpr const char* kChannels = "C is not a multiple of 8";

// Cycles of shared memory for one access of a warp whose groups of `lanes` threads read neighbouring `bytes` of rows.
// Accesses of 16 bytes are served for eight threads at a time. Each of the 32 banks gives one word per cycle.
int shared_cycles(int lanes, unsigned row_bytes, int bytes) {
  const int together = bytes == 16 ? 8 : 32, words_of_access = bytes < 4 ? 1 : bytes / 4;
  unsigned before = ~0u, row = 0;
  unsigned char words[32] = {};  // of each bank; addresses ascend, so that equal words follow each other
  int all = 0, most = 0;
  for (int i = 0, lane = 0; i < 32; ++i) {
    for (int k = 0; k < words_of_access; ++k)
      if (const unsigned word = (row + lane * bytes) / 4 + k; word != before)
        most = std::max<int>(most, ++words[(before = word) % 32]);
    if (++lane == lanes) lane = 0, row += row_bytes;
    if ((i + 1) % together) continue;
    all += most;
    most = 0;
    std::fill(std::begin(words), std::end(words), 0);
  }
  return all;
}

template <class Cycles>
int best_lanes(int most, const Cycles& cycles) {
  int lanes = most;
  int64_t least = cycles(most);
  for (int fewer = most / 2; fewer; fewer /= 2)
    if (const int64_t found = cycles(fewer); found < least) lanes = fewer, least = found;
  return lanes;
}

// The lanes of cluster_fused, by cycles of its sums. A vector takes 25 instructions and an element that is read alone
// 4; four schedulers issue for the block's eight warps. A block of channels adds two barriers and the sum over the
// steps, a round of rows its shuffles. The block has about 100 KB of x.
constexpr int kWarpsPerScheduler = kThreadsClusterFused / 32 / 4;
int lanes_of_cluster_columns(const Map& map) {
  const int vectors = map.c / 8;
  const int positions = std::min(map.s, std::max(1, (100 << 10) / (map.c * (int)item_bytes(map))));
  return best_lanes(std::min(power_of_two(vectors), kThreadsClusterFused), [&](int lanes) {
    const int steps = kThreadsClusterFused / lanes, blocks = (vectors + lanes - 1) / lanes;
    return blocks * ((positions + steps - 1) / steps * 25 * kWarpsPerScheduler + 200);
  });
}
int lanes_of_cluster_rows(const Map& map, int rows) {
  const bool vectors = map.mode == Mode::rows;
  const int item = (int)item_bytes(map), items = vectors ? map.s / 8 : map.s, instructions = vectors ? 25 : 4;
  return best_lanes(std::min(power_of_two(items), 32), [&](int lanes) {
    const int groups = kThreadsClusterFused / lanes, rounds = (rows + groups - 1) / groups;
    const int banks = 4 * (vectors ? item / 2 : 1) * shared_cycles(lanes, (unsigned)map.s * item, vectors ? 16 : item);
    const int64_t steps = (items + lanes - 1) / lanes;
    return rounds * (steps * std::max(instructions, banks) * kWarpsPerScheduler + (lanes > 1 ? 100 : 0));
  });
}

// Fills `plan` and returns null, or returns why cluster_fused cannot be used.
const char* plan_cluster_fused(const Map& map, int r, int weight_bytes, const Device& device, ClusterFused& plan) {
  if (device.capability < 90) return "the device has no clusters of thread blocks";
  if (is_single(map.mode)) return kSingle;
  if (map.c % 8) return kChannels;
  const int64_t vectors_of_channels = map.c / 8, units = map.by_rows() ? vectors_of_channels : map.s;
  plan.op.map = map;
  plan.op.fc.r = r;
  plan.threads = kThreadsClusterFused;
  plan.lanes = map.by_rows() ? 1 : lanes_of_cluster_columns(map);
  const auto fill = [&](int share, int samples) {
    plan.share = share;
    plan.samples = samples;
    plan.blocks = share * samples;
    plan.partition = (int)ceil_div(units, share) * (map.by_rows() ? 8 : 1);
    plan.channels = (int)ceil_div(vectors_of_channels, plan.blocks) * 8;
    plan.layout = layout_of(plan);
    return (int64_t)shared_bytes(plan);
  };
  struct Room {
    int64_t bytes;
    int blocks;
  };
  const Room half{shared_of_two(device.shared_bytes), device.max_cluster};
  const Room alone{device.shared_bytes, device.max_cluster_alone};
  int share = 0, samples = 1;
  for (const Room& room : {half, alone})
    for (int blocks = 1; !share && blocks <= room.blocks; blocks *= 2)
      for (int together = 1; !share && together <= kSamplesOfCluster && together * blocks <= room.blocks; together *= 2)
        if (fill(blocks, together) <= room.bytes &&
            (together == 1 || map.n / together * together * blocks >= 2 * device.multiprocessors))
          share = blocks, samples = together;
  if (!share)
    return fill(kLargestCluster, 1) <= alone.bytes
               ? "the device cannot place a cluster of 16 blocks with so much shared memory"
               : "a sample does not fit in a cluster's shared memory";
  const auto room_of = [&](int64_t bytes) { return bytes <= half.bytes ? half : alone; };
  while (samples == 1 && map.n * 2 * share <= device.multiprocessors && 2 * share <= units &&
         2 * share <= room_of(fill(2 * share, 1)).blocks)
    share *= 2;
  const Room room = room_of(fill(share, samples));
  const int64_t weights = 2 * (int64_t)map.c * r * weight_bytes, sample = (int64_t)map.c * map.s * item_bytes(map);
  while (samples < kSamplesOfCluster && 2 * samples * share <= room.blocks && 4 * weights > samples * sample &&
         2 * samples <= map.n && map.n / (2 * samples) * 2 * samples * share >= device.multiprocessors &&
         fill(share, 2 * samples) <= room.bytes)
    samples *= 2;
  fill(share, samples);
  if (map.by_rows()) plan.lanes = lanes_of_cluster_rows(map, plan.partition);  // the layout does not depend on it
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

InferencePlan plan_inference(const Map& map, int r, int weight_bytes, bool weights_fit, const Device& device,
                             std::optional<Path> forced) {
  InferencePlan plan{};
  const auto take = [&](Path path, const char* reason) {
    plan.path = path;
    plan.reason = reason;
    return plan;
  };
  const auto cluster_fused = [&] { return plan_cluster_fused(map, r, weight_bytes, device, plan.cluster_fused); };
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

static std::atomic<bool> programmatic{true};

bool programmatic_launches() { return programmatic.load(std::memory_order_relaxed); }
bool set_programmatic_launches(bool on) { return programmatic.exchange(on, std::memory_order_relaxed); }

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

std::string describe(const InferencePlan& plan, const Map& map, int r, int weight_bytes) {
  const int64_t weights = 2 * (int64_t)map.c * r * weight_bytes;
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

// Excitation, the (N, C) arithmetic between the passes, split between threads. Loops are split over results, never over
// a sum, so results are bit-identical for any number of threads.
#include "excitation.h"

namespace se_fused::cpu {
namespace {

// Calls f(begin, end) in parallel over `items` results of `flops` operations each. Ranges start at multiples of 16, so
// that no vector step is shared between threads.
template <class F>
void split(int64_t items, int64_t flops, const F& f) {
  const int64_t blocks = (items + 15) / 16;
  const int64_t grain = std::max<int64_t>(1, kGrainFlops / std::max<int64_t>(1, 16 * flops));
  in_parallel(blocks, grain, [&](int64_t begin, int64_t end) { f(begin * 16, std::min(items, end * 16)); });
}

}  // namespace

void batch_norm(const BatchNormArgs& g) {
  split(g.c, 8 * g.n, [&](int64_t begin, int64_t end) { kernels().batch_norm(g, begin, end); });
}

void scale_shift(const ExcitationKernels& k, const ExcitationArgs& g) {
  split(g.c, 4 * g.n, [&](int64_t begin, int64_t end) { k.scale_shift(g, begin, end); });
}

void excitation(const ExcitationKernels& k, const ExcitationArgs& g) {
  if (!g.factor) return scale_shift(k, g);
  split(g.c, 2 * g.n, [&](int64_t begin, int64_t end) { k.squeeze(g, begin, end); });
  excitation_layers(k, g, k, g);
}

void excitation_layers(const ExcitationKernels& k1, const ExcitationArgs& fc1, const ExcitationKernels& k2,
                       const ExcitationArgs& fc2) {
  split(fc1.r, 2 * fc1.n * fc1.c, [&](int64_t begin, int64_t end) { k1.fc1(fc1, begin, end); });
  split(fc2.c, 2 * fc2.n * fc2.r, [&](int64_t begin, int64_t end) { k2.fc2(fc2, begin, end); });
}

void excitation_backward(const ExcitationKernels& k, const ExcitationBackwardArgs& g) {
  if (g.factor) {
    k.activate(g);
    split(g.c, 2 * g.n * g.r, [&](int64_t begin, int64_t end) { k.backward_fc2(g, begin, end); });
    // Split over samples in blocks of four, which share each row of the weight.
    const int64_t blocks = (g.n + 3) / 4;
    in_parallel(blocks, std::max<int64_t>(1, kGrainFlops / (8 * g.c * g.r)),
                [&](int64_t begin, int64_t end) { k.backward_hidden(g, begin * 4, std::min(g.n, end * 4)); });
    for (int64_t r = 0; r < g.r; ++r) {
      g.dfc1_bias[r] = 0;
      for (int64_t n = 0; n < g.n; ++n) g.dfc1_bias[r] += g.dhidden[n * g.r + r];
    }
    split(g.c, 4 * g.n * g.r, [&](int64_t begin, int64_t end) { k.backward_fc1(g, begin, end); });
  }
  split(g.c, 16 * g.n, [&](int64_t begin, int64_t end) { k.backward_coefficients(g, begin, end); });
}

}  // namespace se_fused::cpu

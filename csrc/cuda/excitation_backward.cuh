// Phases 2 and 3 of the excitation's backward pass (excitation_backward.cu): the gradients of the weights and of their
// biases. They are products of two matrices over the samples, and one block has all samples of its tile.
#pragma once

#include "excitation.cuh"

namespace se_fused::cuda {

constexpr int kProductTile = 32, kProductN = 128;
constexpr int kProductShared = 2 * kProductN * kProductTile;  // floats

// A tile of a gradient of a weight, from its row i0 and column j0 on, and of a bias along its rows.
struct ProductTile {
  int i0, ends_i, j0, ends_j;  // ends: numbers of rows and columns
  const Result &weight, &bias;
};

// weight[i, j] = sum_n left[n, i] act(right[n, j]) and bias[i] = sum_n left[n, i] for 32 x 32 of them. A thread
// computes 4 x 4 sums over a quarter of the samples, from two 16-byte loads per sample; then the quarters are added up.
template <class Left, class Right>
SE_DEVICE void product_tile(const ProductTile& tile, int64_t samples, Act right_act, float* shared,
                            const Left& load_left, const Right& load_right) {
  const auto& [i0, ends_i, j0, ends_j, weight, bias] = tile;
  constexpr int kRows = kThreads / 8;  // samples that the block loads at a time, with eight threads each
  const int thread = thread_here(), quarter = thread / 64, vector = 4 * (thread % 8), row = thread / 8;
  const int i = 4 * (thread % 64 / 8), j = 4 * (thread % 8);
  float *const left = shared, *const right = left + kProductN * kProductTile;
  float total[4][4] = {}, of_bias[4] = {};
  for (int64_t first = 0; first < samples; first += kProductN) {
    __syncthreads();
    float a[4][4], b[4][4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int64_t n = min(first + row + e * kRows, samples - 1);
      load_left(n, i0 + vector, a[e]);
      load_right(n, j0 + vector, b[e]);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int at = (row + e * kRows) * kProductTile + vector;
      const bool exists = first + row + e * kRows < samples;
      *reinterpret_cast<float4*>(left + at) = exists ? float4{a[e][0], a[e][1], a[e][2], a[e][3]} : float4{};
      *reinterpret_cast<float4*>(right + at) = exists ? float4{b[e][0], b[e][1], b[e][2], b[e][3]} : float4{};
    }
    if (right_act != Act::identity) {  // of its own values, in a loop, because the code of all activations is long
#pragma unroll 1
      for (int e = 0; e < 16; ++e) {
        float& value = right[(row + e / 4 * kRows) * kProductTile + vector + e % 4];
        value = activate(right_act, value);
      }
    }
    __syncthreads();
    const int count = (int)min((int64_t)kProductN, samples - first);
#pragma unroll 4
    for (int n = quarter; n < count; n += 4) {
      const float4 va = *reinterpret_cast<const float4*>(left + n * kProductTile + i);
      const float4 vb = *reinterpret_cast<const float4*>(right + n * kProductTile + j);
      const float by_a[4] = {va.x, va.y, va.z, va.w}, by_b[4] = {vb.x, vb.y, vb.z, vb.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        of_bias[e] += by_a[e];
#pragma unroll
        for (int f = 0; f < 4; ++f) total[e][f] += by_a[e] * by_b[f];
      }
    }
  }
  __syncthreads();
  float* const biases = shared + 4 * kProductTile * kProductTile;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    *reinterpret_cast<float4*>(shared + (quarter * kProductTile + i + e) * kProductTile + j) = {
        total[e][0], total[e][1], total[e][2], total[e][3]};
    if (j == 0) biases[quarter * kProductTile + i + e] = of_bias[e];
  }
  __syncthreads();
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const int at = thread + e * kThreads, own_i = i0 + at / kProductTile, own_j = j0 + at % kProductTile;
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < 4; ++k) sum += shared[k * kProductTile * kProductTile + at];
    if (own_i < ends_i && own_j < ends_j) put(weight, (int64_t)own_i * ends_j + own_j, sum);
  }
  if (j0 == 0 && thread < kProductTile && i0 + thread < ends_i) {
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < 4; ++k) sum += biases[k * kProductTile + thread];
    put(bias, i0 + thread, sum);
  }
}

// dW2[c, r] = sum_n dq[n, c] act(hidden[n, r])
template <Rows rows>
SE_DEVICE void second_weights_tile(const ExcitationBackward& g, int c0, int r0, float* shared) {
  product_tile(
      {c0, g.c, r0, g.fc.r, g.dfc2_weight, g.dfc2_bias}, g.n, g.fc.act, shared,
      [&](int64_t n, int c, float (&v)[4]) { load_four<rows>(g.dq + n * g.c, c, g.c, v); },
      [&](int64_t n, int r, float (&v)[4]) { load_four<rows>(g.hidden + n * g.fc.r, r, g.fc.r, v); });
}

// dW1[r, c] = sum_n dhidden[n, r] z[n, c]
template <Rows rows>
SE_DEVICE void first_weights_tile(const ExcitationBackward& g, int c0, int r0, float* shared) {
  ChannelNorm u[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) u[j] = channel_norm(g.norm, min(c0 + 4 * (thread_here() % 8) + j, g.c - 1));
  product_tile(
      {r0, g.fc.r, c0, g.c, g.dfc1_weight, g.dfc1_bias}, g.n, Act::identity, shared,
      [&](int64_t n, int r, float (&v)[4]) { load_four<rows>(g.dhidden + n * g.fc.r, r, g.fc.r, v); },
      [&](int64_t n, int c, float (&v)[4]) {
        load_four<rows>(g.mean + n * g.c, c, g.c, v);
#pragma unroll
        for (int j = 0; j < 4; ++j) v[j] = u[j](v[j]);
      });
}

}  // namespace se_fused::cuda

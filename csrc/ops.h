// Declarations of the functions that each backend folder implements. operators.h and register.cpp bind them as
// operators.
//
// Symbols (DESIGN section 2.1): N batch, C channels, S positions, R squeezed channels. `x`-shaped tensors are
// (N, C, *spatial) and dense in contiguous or channels_last order, the same for all of one call. All values per (n, c)
// are float32.
// se_fused/ops/ defines each operator in readable PyTorch, under the same name.
#pragma once

#include <string>
#include <tuple>

#include "params.h"

namespace se_fused {

// mean (N, C) and m2 (N, C) = sum (x - mean)^2
std::tuple<Tensor, Tensor> moments(const Tensor& x);

// (y, mask): y = out_act(scale * x + shift + residual), without shift if it is absent; mask: uint8, one bit per
// element, or empty without save_mask
std::tuple<Tensor, Tensor> scale_shift_act(const Tensor& x, const OptionalTensor& residual, const Tensor& scale,
                                           const OptionalTensor& shift, int64_t out_act, bool save_mask);

// (dr, P, Q): dr = dy * out_act', P = sum dr, Q = sum dr * (x - mean); dr is empty if not wanted
std::tuple<Tensor, Tensor, Tensor> moments_backward(const Tensor& dy, const Tensor& x, const OptionalTensor& residual,
                                                    const Tensor& mask, const Tensor& mean, const Tensor& scale,
                                                    const Tensor& shift, int64_t out_act, bool want_dr);

// dx = k1 * dr + k2 * (x - mean) + k3; x may be absent if k2 = 0. A mask that is not empty is applied to dr first.
Tensor scale_shift_act_backward(const Tensor& dr, const OptionalTensor& x, const Tensor& mask, const Tensor& mean,
                                const Tensor& k1, const Tensor& k2, const Tensor& k3);

// (y, mean): y = out_act(scale * x + shift), and the mean (N, C) of y before it is rounded
std::tuple<Tensor, Tensor> scale_shift_act_mean(const Tensor& x, const Tensor& scale, const Tensor& shift,
                                                int64_t out_act);

// The backward pass of scale_shift_act_mean up to scale * x + shift: (dr, P, Q) with
// dr = (dy + added) * out_act'(scale * x + shift), P and Q as in moments_backward
std::tuple<Tensor, Tensor, Tensor> scale_shift_act_mean_backward(const Tensor& dy, const Tensor& added, const Tensor& x,
                                                                 const Tensor& mean, const Tensor& scale,
                                                                 const Tensor& shift, int64_t out_act);

// The forward pass of the whole operator, for an x with elements. Writes y and what is wanted of mask, mean (N, C),
// factor (N, C), hidden (N, R) and stats (2, C) = batch mean and biased variance.
void block_forward(const Tensor& x, const BatchNormParams& bn, const ExcitationParams& fc, const BlockOptions& end,
                   const Tensor& y, const Kept& kept);

// The same with the running statistics and nothing kept. y may be x.
void block_inference(const Tensor& x, const BatchNormParams& bn, const ExcitationParams& fc, const BlockOptions& end,
                     const Tensor& y);

// The backward pass of the whole operator, for an x with elements. Writes dx, the residual's gradient dr if it is
// given, and the parameters' gradients, those of batch norm if there are statistics and those of the layers if there
// are any. bn has no running statistics, and fc no biases.
void block_backward(const Tensor& dy, const Saved& saved, const BatchNormParams& bn, const ExcitationParams& fc,
                    const BlockOptions& end, const Tensor& dx, const OptionalTensor& dr, const Slots& gradients);

// The dtype of a parameter's gradient: float32 on the CPU; on CUDA the parameter's, because each cast is a launch.
torch::headeronly::ScalarType gradient_type(torch::headeronly::ScalarType parameter);

// Batch norm, activation and the mean of the activated map, CPU only. Returns (y, squeezed (N, C), mean (N, C), stats
// (2, C)): squeezed is y's mean before it is rounded, mean the centre of the backward pass's sums, stats the mean and
// biased variance that normalised. mean is empty unless `save`, and stats unless `save` or batch_stats.
std::tuple<Tensor, Tensor, Tensor, Tensor> act_squeeze_forward(const Tensor& x, const BatchNormParams& bn, Act out_act,
                                                               bool save);

// Its backward pass, CPU only: (dx, dbn_weight, dbn_bias). bn has no running statistics.
std::tuple<Tensor, Tensor, Tensor> act_squeeze_backward(const Tensor& dy, const Tensor& dsqueezed, const Tensor& x,
                                                        const Tensor& mean, const Tensor& stats,
                                                        const BatchNormParams& bn, Act out_act);

// Caps the instruction set ("" removes the cap) and returns the name of the one in use. CPU only.
std::string capability(const std::optional<std::string>& cap);

// A 1x1 convolution with squeeze-excite, CPU only: y = out_act(s * (W h + b) + residual) for h in channels_last,
// written into y, which may be the residual. packed: W as float32 in panels, (ceil(C / 16), K, 16). s = gate(fc2(act(
// fc1_weight mean(h) + fc1_bias))), or 1 without fc1_weight; fc1_weight (R, K) and fc1_bias (R,) are W and b folded
// into the first layer, in float32.
void conv1x1_squeeze_excite(const Tensor& h, const Tensor& packed, const OptionalTensor& conv_bias,
                            const ExcitationParams& fc, const BlockOptions& end, const Tensor& y);

}  // namespace se_fused

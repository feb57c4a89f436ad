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

// The forward pass of the whole operator. Returns (y, mask, mean (N, C), factor (N, C), hidden (N, R), stats (2, C) =
// batch mean and biased variance). All but y and stats are empty unless `save`; stats is empty without batch norm.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> block_forward(const Tensor& x, const BatchNormParams& bn,
                                                                         const ExcitationParams& fc,
                                                                         const BlockOptions& end, bool save);

// The same with the running statistics and nothing saved. Writes into y, which may be x; not returning a tensor saves
// about 2 us per call.
void block_inference(const Tensor& x, const BatchNormParams& bn, const ExcitationParams& fc, const BlockOptions& end,
                     const Tensor& y);

// The backward pass of the whole operator. Returns (dx, dr, dbn_weight, dbn_bias, dfc1_weight, dfc1_bias, dfc2_weight,
// dfc2_bias). dr is the residual's gradient; it is empty if writes_dr() is false, and then equals dy or is not wanted.
// bn has no running statistics, and fc no biases. Parameter gradients are float32 on the CPU. On CUDA those of batch
// norm have its parameters' dtypes, and those of the two layers have the dtype of fc1_weight.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> block_backward(
    const Tensor& dy, const SavedTensors& saved, const BatchNormParams& bn, const ExcitationParams& fc,
    const BlockOptions& end, bool want_dr);

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

// Declarations of the operators of one backend. register.cpp binds them, and each backend folder implements them.
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

// (y, mask): y = out_act(scale * x + shift + residual); mask: uint8, one bit per element, or empty without save_mask
std::tuple<Tensor, Tensor> scale_shift_act(const Tensor& x, const OptionalTensor& residual, const Tensor& scale,
                                           const Tensor& shift, int64_t out_act, bool save_mask);

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
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_squeeze_excite_forward(
    const Tensor& x, const OptionalTensor& residual, const OptionalTensor& running_mean,
    const OptionalTensor& running_var, const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
    const OptionalTensor& fc1_weight, const OptionalTensor& fc1_bias, const OptionalTensor& fc2_weight,
    const OptionalTensor& fc2_bias, const OptionalTensor& drop_path_scale, bool batch_stats, double eps, int64_t act,
    int64_t gate, int64_t out_act, bool save);

// The same with the running statistics and nothing saved. Writes into y, which may be x; not returning a tensor saves
// about 2 us per call.
void batch_norm_squeeze_excite_inference(const Tensor& x, const OptionalTensor& residual,
                                         const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                         const OptionalTensor& bn_weight, const OptionalTensor& bn_bias,
                                         const OptionalTensor& fc1_weight, const OptionalTensor& fc1_bias,
                                         const OptionalTensor& fc2_weight, const OptionalTensor& fc2_bias,
                                         const OptionalTensor& drop_path_scale, double eps, int64_t act, int64_t gate,
                                         int64_t out_act, const Tensor& y);

// The backward pass of the whole operator. Returns (dx, dr, dbn_weight, dbn_bias, dfc1_weight, dfc1_bias, dfc2_weight,
// dfc2_bias). dr is the residual's gradient; it is empty if it equals dy (out_act none), or if it is neither wanted nor
// needed for dx. Parameter gradients are float32 on the CPU. On CUDA those of batch norm have its parameters' dtypes,
// and those of the two layers have the dtype of fc1_weight.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_squeeze_excite_backward(
    const Tensor& dy, const Tensor& x, const OptionalTensor& residual, const Tensor& mask, const Tensor& mean,
    const Tensor& factor, const Tensor& hidden, const Tensor& stats, const OptionalTensor& bn_weight,
    const OptionalTensor& bn_bias, const OptionalTensor& fc1_weight, const OptionalTensor& fc2_weight,
    const OptionalTensor& drop_path_scale, bool batch_stats, double eps, int64_t act, int64_t gate, int64_t out_act,
    bool want_dr);

// Caps the instruction set ("" removes the cap) and returns the name of the one in use. CPU only.
std::string capability(const std::optional<std::string>& cap);

// A 1x1 convolution with squeeze-excite, CPU only: y = out_act(s * (W h + b) + residual) for h in channels_last,
// written into y, which may be the residual. s = gate(fc2(act(folded_weight mean(h) + folded_bias))), or 1 without
// folded_weight. packed: W as float32 in panels, (ceil(C / 16), K, 16); folded_weight (R, K) and folded_bias (R,):
// float32.
void packed_conv1x1_squeeze_excite(const Tensor& h, const Tensor& packed, const OptionalTensor& bias,
                                   const OptionalTensor& folded_weight, const OptionalTensor& folded_bias,
                                   const OptionalTensor& fc2_weight, const OptionalTensor& fc2_bias,
                                   const OptionalTensor& residual, int64_t act, int64_t gate, int64_t out_act,
                                   const Tensor& y);

}  // namespace se_fused

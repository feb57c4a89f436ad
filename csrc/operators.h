// The operators of both libraries: schemas, and the functions that are bound to them. The functions of the whole
// operator make records of their arguments and call the backend's functions of ops.h.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "residual_block.h"

// The arguments of each record (params.h) in a schema. Only the forward pass changes the running statistics. Inference
// has no batch statistics and no momentum: each argument takes 600 instructions.
#define SE_BATCH_NORM_SCHEMA(mean_alias, var_alias, training) \
  "Tensor" mean_alias "? running_mean, Tensor" var_alias      \
  "? running_var, Tensor? bn_weight, Tensor? bn_bias, " training "float eps, "
#define SE_TRAINING_SCHEMA "bool batch_stats, float momentum, "
#define SE_EXCITATION_SCHEMA \
  "Tensor? fc1_weight, Tensor? fc1_bias, Tensor? fc2_weight, Tensor? fc2_bias, int act, int gate, "
#define SE_END_SCHEMA "Tensor? residual, Tensor? drop_path_scale, int out_act, "

// The same as parameters of the function that is bound to the schema, and the records made of them.
#define SE_BATCH_NORM_PARAMETERS(training)                                                                \
  const OptionalTensor &running_mean, const OptionalTensor &running_var, const OptionalTensor &bn_weight, \
      const OptionalTensor &bn_bias, training double eps
#define SE_TRAINING_PARAMETERS bool batch_stats, double momentum,
#define SE_EXCITATION_PARAMETERS                                                                      \
  const OptionalTensor &fc1_weight, const OptionalTensor &fc1_bias, const OptionalTensor &fc2_weight, \
      const OptionalTensor &fc2_bias, int64_t act, int64_t gate
#define SE_END_PARAMETERS const OptionalTensor &residual, const OptionalTensor &drop_path_scale, int64_t out_act
#define SE_BATCH_NORM_RECORD \
  BatchNormParams { running_mean, running_var, bn_weight, bn_bias, batch_stats, momentum, eps }
#define SE_EXCITATION_RECORD \
  ExcitationParams { fc1_weight, fc1_bias, fc2_weight, fc2_bias, act_of(act), gate_of(gate) }
#define SE_END_RECORD \
  BlockOptions { residual, drop_path_scale, out_act_of(out_act) }

namespace se_fused {

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_squeeze_excite_forward(
    const Tensor& x, SE_BATCH_NORM_PARAMETERS(SE_TRAINING_PARAMETERS), SE_EXCITATION_PARAMETERS, SE_END_PARAMETERS,
    bool save) {
  const BatchNormParams bn = SE_BATCH_NORM_RECORD;
  const ExcitationParams fc = SE_EXCITATION_RECORD;
  const BlockOptions end = SE_END_RECORD;
  const Layout layout = layout_of(x, "x");
  const KeptSizes sizes(layout, fc, end, save, bn.batch_stats || (save && bn.running_mean));
  const int64_t n = layout.n, c = layout.c;
  const Tensor nothing = new_nothing(x);  // shared by all absent results: each allocation takes about 1 us
  const auto wanted = [&](int64_t size, std::initializer_list<int64_t> shape) {
    return size ? new_float(x, shape) : nothing;
  };
  Tensor y = torch::stable::empty_like(x), mask = sizes.mask ? new_mask(x, layout) : nothing,
         mean = wanted(sizes.mean, {n, c}), factor = wanted(sizes.factor, {n, c}),
         hidden = wanted(sizes.hidden, {n, sizes.hidden / std::max<int64_t>(n, 1)}),
         stats = wanted(sizes.stats, {2, c});
  if (layout.numel()) {
    const auto at = [](const Tensor& t) { return t.numel() ? floats(t) : nullptr; };
    uint8_t* const bits = sizes.mask ? static_cast<uint8_t*>(mask.mutable_data_ptr()) : nullptr;
    block_forward(x, bn, fc, end, y, {bits, at(mean), at(factor), at(hidden), at(stats)});
  }
  return {y, mask, mean, factor, hidden, stats};
}

inline void batch_norm_squeeze_excite_inference(const Tensor& x, SE_BATCH_NORM_PARAMETERS(), SE_EXCITATION_PARAMETERS,
                                                SE_END_PARAMETERS, const Tensor& y) {
  const bool batch_stats = false;
  const double momentum = 0;
  block_inference(x, SE_BATCH_NORM_RECORD, SE_EXCITATION_RECORD, SE_END_RECORD, y);
}

inline std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> batch_norm_squeeze_excite_backward(
    const Tensor& dy, const Tensor& x, const Tensor& mask, const Tensor& mean, const Tensor& factor,
    const Tensor& hidden, const Tensor& stats, SE_BATCH_NORM_PARAMETERS(SE_TRAINING_PARAMETERS),
    SE_EXCITATION_PARAMETERS, SE_END_PARAMETERS, bool want_dr) {
  const BatchNormParams bn = SE_BATCH_NORM_RECORD;
  const ExcitationParams fc = SE_EXCITATION_RECORD;
  const BlockOptions end = SE_END_RECORD;
  const Layout layout = layout_of(x, "x");
  STD_TORCH_CHECK(layout.numel() > 0, "x must not be empty");
  const bool has_bn = stats.numel() != 0;
  const KeptSizes sizes(layout, fc, end, true, has_bn);
  const auto at = [](const Tensor& t, int64_t size, const char* name) {
    return size ? float_vector(t, size, name) : nullptr;
  };
  const Saved saved{x,
                    sizes.mask ? mask_of(mask, layout) : nullptr,
                    at(mean, sizes.mean, "mean"),
                    at(factor, sizes.factor, "factor"),
                    at(hidden, sizes.hidden, "hidden"),
                    at(stats, sizes.stats, "stats")};
  const Tensor nothing = new_nothing(x);
  const auto gradient = [&](bool wanted, const OptionalTensor& like, std::initializer_list<int64_t> shape) {
    const ScalarType type = like ? gradient_type(like->scalar_type()) : ScalarType::Float;
    return wanted ? torch::stable::new_empty(x, shape, type) : nothing;
  };
  const int64_t c = layout.c, r = fc.fc1_weight ? fc.fc1_weight->size(0) : 0;
  const bool write_dr = writes_dr(end.out_act, want_dr);
  Tensor dx = torch::stable::empty_like(x), dbn_weight = gradient(has_bn, bn.weight, {c}),
         dbn_bias = gradient(has_bn, bn.bias, {c}), dfc1_weight = gradient(r, fc.fc1_weight, {r, c}),
         dfc1_bias = gradient(r, fc.fc1_weight, {r}), dfc2_weight = gradient(r, fc.fc1_weight, {c, r}),
         dfc2_bias = gradient(r, fc.fc1_weight, {c});
  const OptionalTensor dr = write_dr ? OptionalTensor(torch::stable::empty_like(x)) : std::nullopt;
  const auto slot = [](const Tensor& t) { return Slot{t.mutable_data_ptr(), t.scalar_type()}; };
  block_backward(
      dy, saved, bn, fc, end, dx, dr,
      {slot(dbn_weight), slot(dbn_bias), slot(dfc1_weight), slot(dfc1_bias), slot(dfc2_weight), slot(dfc2_bias)});
  return {dx, dr ? *dr : nothing, dbn_weight, dbn_bias, dfc1_weight, dfc1_bias, dfc2_weight, dfc2_bias};
}

// CPU only.
inline void packed_conv1x1_squeeze_excite(const Tensor& h, const Tensor& packed, const OptionalTensor& conv_bias,
                                          SE_EXCITATION_PARAMETERS, SE_END_PARAMETERS, const Tensor& y) {
  conv1x1_squeeze_excite(h, packed, conv_bias, SE_EXCITATION_RECORD, SE_END_RECORD, y);
}

// CPU only.
inline std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_squeeze(
    const Tensor& x, SE_BATCH_NORM_PARAMETERS(SE_TRAINING_PARAMETERS), int64_t out_act, bool save) {
  return act_squeeze_forward(x, SE_BATCH_NORM_RECORD, out_act_of(out_act), save);
}

// CPU only.
inline std::tuple<Tensor, Tensor, Tensor> batch_norm_act_squeeze_backward(
    const Tensor& dy, const Tensor& dsqueezed, const Tensor& x, const Tensor& mean, const Tensor& stats,
    SE_BATCH_NORM_PARAMETERS(SE_TRAINING_PARAMETERS), int64_t out_act) {
  return act_squeeze_backward(dy, dsqueezed, x, mean, stats, SE_BATCH_NORM_RECORD, out_act_of(out_act));
}

template <class Library>
void define_operators(Library& m) {
  m.def("moments(Tensor x) -> (Tensor mean, Tensor m2)");
  m.def(
      "scale_shift_act(Tensor x, Tensor? residual, Tensor scale, Tensor? shift, int out_act, bool save_mask)"
      " -> (Tensor y, Tensor mask)");
  m.def(
      "moments_backward(Tensor dy, Tensor x, Tensor? residual, Tensor mask, Tensor mean, Tensor scale, Tensor shift,"
      " int out_act, bool want_dr) -> (Tensor dr, Tensor p, Tensor q)");
  m.def("scale_shift_act_mean(Tensor x, Tensor scale, Tensor shift, int out_act) -> (Tensor y, Tensor mean)");
  m.def(
      "scale_shift_act_mean_backward(Tensor dy, Tensor added, Tensor x, Tensor mean, Tensor scale, Tensor shift,"
      " int out_act) -> (Tensor dr, Tensor p, Tensor q)");
  m.def(
      "scale_shift_act_backward(Tensor dr, Tensor? x, Tensor mask, Tensor mean, Tensor k1, Tensor k2, Tensor k3)"
      " -> Tensor dx");
  m.def("batch_norm_squeeze_excite_forward(Tensor x, " SE_BATCH_NORM_SCHEMA("(a!)", "(b!)", SE_TRAINING_SCHEMA)
            SE_EXCITATION_SCHEMA SE_END_SCHEMA
        "bool save) -> (Tensor y, Tensor mask, Tensor mean, Tensor factor, Tensor hidden, Tensor stats)");
  m.def("batch_norm_squeeze_excite_inference(Tensor x, " SE_BATCH_NORM_SCHEMA("", "", "")
            SE_EXCITATION_SCHEMA SE_END_SCHEMA "Tensor(a!) y) -> ()");
  m.def(
      "batch_norm_squeeze_excite_backward(Tensor dy, Tensor x, Tensor mask, Tensor mean, Tensor factor,"
      " Tensor hidden, Tensor stats, " SE_BATCH_NORM_SCHEMA("", "", SE_TRAINING_SCHEMA)
          SE_EXCITATION_SCHEMA SE_END_SCHEMA
      "bool want_dr) -> (Tensor dx, Tensor dr, Tensor dbn_weight, Tensor dbn_bias, Tensor dfc1_weight,"
      " Tensor dfc1_bias, Tensor dfc2_weight, Tensor dfc2_bias)");
  // Tensors and settings of a residual block: residual_block.h.
  m.def("residual_block_plan(int[] settings, float[] norms) -> int");
  m.def(
      "residual_block_forward(Tensor x, Tensor(a!)?[] tensors, Tensor? residual, Tensor? drop_path_scale, int plan,"
      " bool save) -> Tensor[]");
  m.def(
      "residual_block_backward(Tensor dy, Tensor x, Tensor?[] tensors, Tensor? drop_path_scale, Tensor[] kept, int "
      "plan,"
      " int wanted) -> Tensor?[]");
}

template <class Library>
void implement_operators(Library& m) {
  m.impl("moments", TORCH_BOX(&moments));
  m.impl("scale_shift_act", TORCH_BOX(&scale_shift_act));
  m.impl("moments_backward", TORCH_BOX(&moments_backward));
  m.impl("scale_shift_act_backward", TORCH_BOX(&scale_shift_act_backward));
  m.impl("scale_shift_act_mean", TORCH_BOX(&scale_shift_act_mean));
  m.impl("scale_shift_act_mean_backward", TORCH_BOX(&scale_shift_act_mean_backward));
  m.impl("batch_norm_squeeze_excite_forward", TORCH_BOX(&batch_norm_squeeze_excite_forward));
  m.impl("batch_norm_squeeze_excite_inference", TORCH_BOX(&batch_norm_squeeze_excite_inference));
  m.impl("batch_norm_squeeze_excite_backward", TORCH_BOX(&batch_norm_squeeze_excite_backward));
  m.impl("residual_block_forward", TORCH_BOX(&residual_block_forward));
  m.impl("residual_block_backward", TORCH_BOX(&residual_block_backward));
}

// Operators without tensors, which the dispatcher finds by no device.
template <class Library>
void implement_settings(Library& m) {
  m.impl("residual_block_plan", TORCH_BOX(&residual_block_plan));
}

}  // namespace se_fused

// Operator schemas and implementations shared by the backends' libraries. batch_norm_squeeze_excite_forward is defined
// per backend, because CUDA adds arguments to it.
#pragma once

#include <torch/csrc/stable/library.h>

#include "ops.h"

// The input map and the parameters of the whole operator, the same in training and in inference.
#define SE_BLOCK_ARGUMENTS                                                                                     \
  "Tensor x, Tensor? residual, Tensor? running_mean, Tensor? running_var, Tensor? bn_weight, Tensor? bn_bias," \
  " Tensor? fc1_weight, Tensor? fc1_bias, Tensor? fc2_weight, Tensor? fc2_bias, Tensor? drop_path_scale"

#define SE_FORWARD_SCHEMA(more)                                                   \
  "batch_norm_squeeze_excite_forward(" SE_BLOCK_ARGUMENTS                         \
  ", bool batch_stats, float eps, int act, int gate, int out_act, bool save" more \
  ") -> (Tensor y, Tensor mask, Tensor mean, Tensor factor, Tensor hidden, Tensor stats)"

namespace se_fused {

template <class Library>
void define_operators(Library& m) {
  m.def("moments(Tensor x) -> (Tensor mean, Tensor m2)");
  m.def(
      "scale_shift_act(Tensor x, Tensor? residual, Tensor scale, Tensor shift, int out_act, bool save_mask)"
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
  m.def("batch_norm_squeeze_excite_inference(" SE_BLOCK_ARGUMENTS
        ", float eps, int act, int gate, int out_act, Tensor(a!) y) -> ()");
  m.def(
      "batch_norm_squeeze_excite_backward(Tensor dy, Tensor x, Tensor? residual, Tensor mask, Tensor mean,"
      " Tensor factor, Tensor hidden, Tensor stats, Tensor? bn_weight, Tensor? bn_bias, Tensor? fc1_weight,"
      " Tensor? fc2_weight, Tensor? drop_path_scale, bool batch_stats, float eps, int act, int gate, int out_act,"
      " bool want_dr)"
      " -> (Tensor dx, Tensor dr, Tensor dbn_weight, Tensor dbn_bias, Tensor dfc1_weight, Tensor dfc1_bias,"
      " Tensor dfc2_weight, Tensor dfc2_bias)");
}

template <class Library>
void implement_operators(Library& m) {
  m.impl("moments", TORCH_BOX(&moments));
  m.impl("scale_shift_act", TORCH_BOX(&scale_shift_act));
  m.impl("moments_backward", TORCH_BOX(&moments_backward));
  m.impl("scale_shift_act_backward", TORCH_BOX(&scale_shift_act_backward));
  m.impl("scale_shift_act_mean", TORCH_BOX(&scale_shift_act_mean));
  m.impl("scale_shift_act_mean_backward", TORCH_BOX(&scale_shift_act_mean_backward));
  m.impl("batch_norm_squeeze_excite_inference", TORCH_BOX(&batch_norm_squeeze_excite_inference));
  m.impl("batch_norm_squeeze_excite_backward", TORCH_BOX(&batch_norm_squeeze_excite_backward));
}

}  // namespace se_fused

// PyTorch's operators on the stand-in. The structured ones compute shapes with PyTorch's own code and build the same
// TensorIterator as on CUDA.
#include <ATen/EmptyTensor.h>
#include <ATen/ScalarOps.h>
#include <ATen/TensorIterator.h>
#include <ATen/native/ReduceOpsUtils.h>
#include <ATen/ops/_log_softmax_backward_data_meta.h>
#include <ATen/ops/_log_softmax_meta.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/add_meta.h>
#include <ATen/ops/addmm_meta.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/clamp_min_meta.h>
#include <ATen/ops/div_meta.h>
#include <ATen/ops/max_pool2d_with_indices_backward_meta.h>
#include <ATen/ops/max_pool2d_with_indices_meta.h>
#include <ATen/ops/mean_meta.h>
#include <ATen/ops/mm_meta.h>
#include <ATen/ops/mul_meta.h>
#include <ATen/ops/nll_loss_backward_meta.h>
#include <ATen/ops/nll_loss_forward_meta.h>
#include <ATen/ops/relu_native.h>
#include <ATen/ops/sigmoid_backward_meta.h>
#include <ATen/ops/sigmoid_meta.h>
#include <ATen/ops/sub_meta.h>
#include <ATen/ops/sum_meta.h>
#include <ATen/ops/threshold_backward_meta.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "device.h"

#if __has_include(<ATen/core/Dimname.h>)  // older versions of PyTorch name the dimensions of results
#define SE_NAMES , at::DimnameList
#define SE_NO_NAMES \
  , {}
#else
#define SE_NAMES
#define SE_NO_NAMES
#endif

namespace standin {
namespace {

using at::IntArrayRef;
using at::OptionalIntArrayRef;
using at::Scalar;
using at::ScalarType;
using at::Tensor;
using std::optional;

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

Tensor empty(IntArrayRef size, optional<ScalarType> dtype, optional<at::Layout>, optional<at::Device> device,
             optional<bool>, optional<at::MemoryFormat> format) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_generic(size, allocator(), kKeys, c10::dtype_or_default(dtype), format);
}
Tensor empty_strided(IntArrayRef size, IntArrayRef stride, optional<ScalarType> dtype, optional<at::Layout>,
                     optional<at::Device> device, optional<bool>) {
  const c10::OptionalDeviceGuard guard(device);
  return at::detail::empty_strided_generic(size, stride, allocator(), kKeys, c10::dtype_or_default(dtype));
}

Tensor& copy_(Tensor& to, const Tensor& from, bool) {
  const c10::OptionalDeviceGuard guard(device_of(to));
  TORCH_CHECK(to.is_privateuseone(), "the stand-in device computes nothing: its tensors have no values to copy");
  if (to.is_same(from) || to.numel() == 0) return to;
  const at::TensorIterator iter = at::TensorIteratorConfig()
                                      .add_output(to)
                                      .add_const_input(from)
                                      .resize_outputs(false)
                                      .check_all_same_dtype(false)
                                      .check_all_same_device(false)
                                      .build();
  SE_COUNT_LAUNCH("copy");
  return to;
}

Tensor& fill_(Tensor& to, const Scalar&) {
  const c10::OptionalDeviceGuard guard(device_of(to));
  const at::TensorIterator iter = at::TensorIteratorConfig()
                                      .set_check_mem_overlap(false)
                                      .check_all_same_dtype(false)
                                      .add_output(to)
                                      .resize_outputs(false)
                                      .build();
  SE_COUNT_LAUNCH("fill");
  return to;
}
Tensor& zero_(Tensor& to) { return to.fill_(0); }

// A structured operator with new results, or with given ones. These are the classes that PyTorch generates for CUDA.
template <class Op>
struct Structured : Op {
  static constexpr bool kIterates = std::is_base_of_v<at::TensorIteratorBase, Op>;
  std::array<Tensor, 2> out;

  void set_output_strided(int64_t i, IntArrayRef sizes, IntArrayRef strides,
                          at::TensorOptions options SE_NAMES) override {
    set(i, sizes, strides, options);
  }
  void set_output_raw_strided(int64_t i, IntArrayRef sizes, IntArrayRef strides,
                              at::TensorOptions options SE_NAMES) override {
    set(i, sizes, strides, options);
  }
  const Tensor& maybe_get_output(int64_t i) override { return out[i]; }

 private:
  void set(int64_t i, IntArrayRef sizes, IntArrayRef strides, at::TensorOptions options) {
    const ScalarType dtype = c10::typeMetaToScalarType(options.dtype());
    if (out[i].defined()) {
      TORCH_CHECK(out[i].sizes() == sizes && out[i].scalar_type() == dtype, "an in-place result has another shape");
    } else if (strides.empty()) {
      out[i] = at::detail::empty_generic(sizes, allocator(), kKeys, dtype, options.memory_format_opt());
    } else {
      out[i] = at::detail::empty_strided_generic(sizes, strides, allocator(), kKeys, dtype);
    }
    if constexpr (kIterates) Op::set_output_raw_strided(i, sizes, strides, options SE_NO_NAMES);
  }
};

template <class Op, class... Args>
Tensor made(const Args&... args) {
  const auto& first = std::get<0>(std::tie(args...));
  const c10::OptionalDeviceGuard guard(device_of(first));
  Structured<Op> op;
  op.meta(args...);
  return std::move(op.out[0]);
}
template <class Op, class... Args>
std::tuple<Tensor, Tensor> made_two(const Args&... args) {
  const auto& first = std::get<0>(std::tie(args...));
  const c10::OptionalDeviceGuard guard(device_of(first));
  Structured<Op> op;
  op.meta(args...);
  return {std::move(op.out[0]), std::move(op.out[1])};
}
template <class Op, class... Args>
Tensor& in_place(Tensor& self, const Args&... args) {
  const c10::OptionalDeviceGuard guard(device_of(self));
  Structured<Op> op;
  op.out[0] = self;
  op.meta(self, args...);
  return self;
}

// mean and sum: the shapes, and the iterator with which CUDA reduces.
template <class Op>
Tensor reduced(const Tensor& x, OptionalIntArrayRef dim, bool keepdim, optional<ScalarType> dtype) {
  const Tensor y = made<Op>(x, dim, keepdim, dtype);
  const at::TensorIterator iter = at::meta::make_reduction_from_out_ty(x, y, dim, keepdim, y.scalar_type());
  return y;
}

// clang-format off
#define SE_BINARY(name, op)                                                                                        \
  m.impl(name ".Tensor", [](const Tensor& a, const Tensor& b) { SE_COUNT_LAUNCH(name); return made<op>(a, b); });    \
  m.impl(name "_.Tensor", [](Tensor& a, const Tensor& b) -> Tensor& { SE_COUNT_LAUNCH(name); return in_place<op>(a, b); });
#define SE_SUM(name, op)                                                                                             \
  m.impl(name ".Tensor", [](const Tensor& a, const Tensor& b, const Scalar& s) { SE_COUNT_LAUNCH(name); return made<op>(a, b, s); }); \
  m.impl(name "_.Tensor", [](Tensor& a, const Tensor& b, const Scalar& s) -> Tensor& { SE_COUNT_LAUNCH(name); return in_place<op>(a, b, s); });
// clang-format on

namespace meta = at::meta;

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("copy_", &copy_);
  m.impl("fill_.Scalar", &fill_);
  m.impl("zero_", &zero_);
  m.impl("relu", TORCH_FN(at::native::relu));  // clamp_min, as on CUDA
  m.impl("relu_", TORCH_FN(at::native::relu_));
  m.impl("clamp_min", [](const Tensor& x, const Scalar& min) {
    SE_COUNT_LAUNCH("clamp_min");
    return made<meta::structured_clamp_min>(x, min);
  });
  m.impl("clamp_min_", [](Tensor& x, const Scalar& min) -> Tensor& {
    SE_COUNT_LAUNCH("clamp_min");
    return in_place<meta::structured_clamp_min>(x, min);
  });
  m.impl("threshold_backward", [](const Tensor& dy, const Tensor& x, const Scalar& threshold) {
    SE_COUNT_LAUNCH("threshold_backward");
    return made<meta::structured_threshold_backward>(dy, x, threshold);
  });
  SE_SUM("add", meta::structured_add_Tensor)
  SE_SUM("sub", meta::structured_sub_Tensor)
  SE_BINARY("mul", meta::structured_mul_Tensor)
  SE_BINARY("div", meta::structured_div_Tensor)
  m.impl("sigmoid", [](const Tensor& x) {
    SE_COUNT_LAUNCH("sigmoid");
    return made<meta::structured_sigmoid>(x);
  });
  m.impl("sigmoid_backward", [](const Tensor& dy, const Tensor& y) {
    SE_COUNT_LAUNCH("sigmoid_backward");
    return made<meta::structured_sigmoid_backward>(dy, y);
  });
  m.impl("mean.dim", [](const Tensor& x, OptionalIntArrayRef dim, bool keepdim, optional<ScalarType> dtype) {
    SE_COUNT_LAUNCH("mean");
    return reduced<meta::structured_mean_dim>(x, dim, keepdim, dtype);
  });
  m.impl("sum.dim_IntList", [](const Tensor& x, OptionalIntArrayRef dim, bool keepdim, optional<ScalarType> dtype) {
    SE_COUNT_LAUNCH("sum");
    return reduced<meta::structured_sum_dim_IntList>(x, dim, keepdim, dtype);
  });
  m.impl("mm", [](const Tensor& a, const Tensor& b) {
    SE_COUNT_LAUNCH("mm");
    return made<meta::structured_mm>(a, b);
  });
  m.impl("addmm", [](const Tensor& c, const Tensor& a, const Tensor& b, const Scalar& beta, const Scalar& alpha) {
    SE_COUNT_LAUNCH("addmm");
    return made<meta::structured_addmm>(c, a, b, beta, alpha);
  });
  m.impl("addmm.out",
         [](const Tensor&, const Tensor&, const Tensor&, const Scalar&, const Scalar&, Tensor& out) -> Tensor& {
           SE_COUNT_LAUNCH("addmm");
           return out;
         });
  m.impl("_foreach_add_.Scalar", [](at::TensorList, const Scalar&) { SE_COUNT_LAUNCH("foreach_add"); });
  m.impl("max_pool2d_with_indices", [](const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                                       IntArrayRef dilation, bool ceil_mode) {
    SE_COUNT_LAUNCH("max_pool2d");
    return made_two<meta::structured_max_pool2d_with_indices>(x, kernel, stride, padding, dilation, ceil_mode);
  });
  m.impl("max_pool2d_with_indices_backward",
         [](const Tensor& dy, const Tensor& x, IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
            IntArrayRef dilation, bool ceil_mode, const Tensor& indices) {
           SE_COUNT_LAUNCH("max_pool2d_backward");
           return made<meta::structured_max_pool2d_with_indices_backward>(dy, x, kernel, stride, padding, dilation,
                                                                          ceil_mode, indices);
         });
  m.impl("_log_softmax", [](const Tensor& x, int64_t dim, bool half_to_float) {
    SE_COUNT_LAUNCH("log_softmax");
    return made<meta::structured__log_softmax>(x, dim, half_to_float);
  });
  m.impl("_log_softmax_backward_data", [](const Tensor& dy, const Tensor& y, int64_t dim, ScalarType dtype) {
    SE_COUNT_LAUNCH("log_softmax_backward");
    return made<meta::structured__log_softmax_backward_data>(dy, y, dim, dtype);
  });
  m.impl("nll_loss_forward", [](const Tensor& x, const Tensor& target, const optional<Tensor>& weight,
                                int64_t reduction, at::SymInt ignored) {
    SE_COUNT_LAUNCH("nll_loss");
    const at::OptionalTensorRef given =
        weight && weight->defined() ? at::OptionalTensorRef(*weight) : at::OptionalTensorRef();
    return made_two<meta::structured_nll_loss_forward>(x, target, given, reduction, ignored.expect_int());
  });
  m.impl(
      "nll_loss_backward", [](const Tensor& dy, const Tensor& x, const Tensor& target, const optional<Tensor>& weight,
                              int64_t reduction, at::SymInt ignored, const Tensor& total) {
        SE_COUNT_LAUNCH("nll_loss_backward");
        const at::OptionalTensorRef given =
            weight && weight->defined() ? at::OptionalTensorRef(*weight) : at::OptionalTensorRef();
        return made<meta::structured_nll_loss_backward>(dy, x, target, given, reduction, ignored.expect_int(), total);
      });
}

}  // namespace
}  // namespace standin

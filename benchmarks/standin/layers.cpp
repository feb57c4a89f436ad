// Convolution and batch norm on the stand-in, with the operators, allocations and memory formats of cuDNN's.
#include <ATen/core/Tensor.h>
#include <ATen/native/ConvUtils.h>
#include <ATen/ops/cudnn_batch_norm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <array>
#include <optional>
#include <tuple>

#include "device.h"

namespace standin {
namespace {

using at::IntArrayRef;
using at::Tensor;
using std::optional;

constexpr size_t kWorkspace = 1 << 20;  // bytes that cuDNN asks for in a call

bool is_last(const Tensor& t) { return t.suggest_memory_format() == at::MemoryFormat::ChannelsLast; }

at::MemoryFormat format_of(const Tensor& input, const Tensor& weight) {
  return is_last(input) || is_last(weight) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

Tensor convolution(const Tensor& input, const Tensor& weight, const optional<Tensor>& bias, IntArrayRef stride,
                   IntArrayRef padding, IntArrayRef dilation, bool transposed, IntArrayRef, int64_t) {
  TORCH_CHECK(!transposed, "the stand-in has no transposed convolution");
  const c10::OptionalDeviceGuard guard(device_of(input));
  const at::MemoryFormat format = format_of(input, weight);
  const Tensor x = input.contiguous(format);
  const Tensor y = at::empty(at::native::conv_output_size(x.sizes(), weight.sizes(), padding, stride, dilation),
                             x.options().memory_format(format));
  const Tensor w = weight.contiguous(format);
  const c10::DataPtr workspace = allocator()->allocate(kWorkspace);
  SE_COUNT_LAUNCH("convolution");
  if (bias && bias->defined()) y.add_(at::native::reshape_bias(x.dim(), *bias));
  return y;
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                        IntArrayRef, IntArrayRef, IntArrayRef, bool, IntArrayRef,
                                                        int64_t, std::array<bool, 3> wanted) {
  const c10::OptionalDeviceGuard guard(device_of(input));
  const at::MemoryFormat format = format_of(input, weight);
  const Tensor x = input.contiguous(format), w = weight.contiguous(format), dy = grad.contiguous(format);
  Tensor dx, dw, db;
  if (wanted[0]) {
    dx = at::empty(x.sizes(), x.options().memory_format(format));
    const c10::DataPtr workspace = allocator()->allocate(kWorkspace);
    SE_COUNT_LAUNCH("convolution_backward_input");
  }
  if (wanted[1]) {
    dw = at::empty(w.sizes(), w.options().memory_format(format));
    const c10::DataPtr workspace = allocator()->allocate(kWorkspace);
    SE_COUNT_LAUNCH("convolution_backward_weight");
  }
  if (wanted[2]) db = grad.sum(IntArrayRef{0, 2, 3});
  return {dx, dw, db};
}

Tensor contiguous(const optional<Tensor>& t) { return t && t->defined() ? t->contiguous() : Tensor(); }

// What PyTorch does on CUDA for maps that cuDNN's batch norm takes.
std::tuple<Tensor, Tensor, Tensor, Tensor, int64_t> choose_batch_norm(
    const Tensor& input, const optional<Tensor>& weight, const optional<Tensor>& bias,
    const optional<Tensor>& running_mean, const optional<Tensor>& running_var, bool training, double momentum,
    double eps, bool) {
  const Tensor x = input.contiguous(input.suggest_memory_format()), w = contiguous(weight), b = contiguous(bias),
               mean = contiguous(running_mean), var = contiguous(running_var);
  auto [y, save_mean, save_var, reserve] = at::cudnn_batch_norm(x, w, b, mean, var, training, momentum, eps);
  return {y, save_mean, save_var, reserve, 1};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm(const Tensor& x, const Tensor& weight, const optional<Tensor>&,
                                                      const optional<Tensor>&, const optional<Tensor>&, bool training,
                                                      double, double) {
  const c10::OptionalDeviceGuard guard(device_of(x));
  const Tensor y = at::empty_like(x, x.options(), x.suggest_memory_format());
  const auto bytes = x.options().dtype(at::kByte);
  const int64_t saved = training ? weight.size(0) : 0;
  const Tensor mean = at::empty({saved}, weight.options()), var = at::empty({saved}, weight.options());
  const Tensor reserve = at::empty({training ? x.numel() / 8 : 0}, bytes);
  if (training) at::empty({(int64_t)kWorkspace}, bytes);
  SE_COUNT_LAUNCH("batch_norm");
  return {y, mean, var, reserve};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(const Tensor& x, const Tensor& grad, const Tensor& weight,
                                                       const optional<Tensor>&, const optional<Tensor>&,
                                                       const optional<Tensor>&, const optional<Tensor>&, double,
                                                       const Tensor&) {
  const c10::OptionalDeviceGuard guard(device_of(x));
  const at::MemoryFormat format = x.suggest_memory_format();
  const Tensor dy = grad.contiguous(format), dx = at::empty(x.sizes(), x.options().memory_format(format));
  const Tensor dweight = at::empty(weight.sizes(), weight.options()), dbias = at::empty_like(dweight);
  at::empty({(int64_t)kWorkspace}, x.options().dtype(at::kByte));
  SE_COUNT_LAUNCH("batch_norm_backward");
  return {dx, dweight, dbias};
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("convolution_overrideable", &convolution);
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("_batch_norm_impl_index", &choose_batch_norm);
  m.impl("cudnn_batch_norm", &batch_norm);
  m.impl("cudnn_batch_norm_backward", &batch_norm_backward);
}
TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, m) { m.impl("_batch_norm_impl_index", &choose_batch_norm); }

}  // namespace
}  // namespace standin

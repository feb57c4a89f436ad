// Batch norm of one call: its arguments and the running statistics.
#include "batch_norm.h"

namespace se_fused::cpu {

BatchNormArgs batch_norm_args(const Layout& layout, const BatchNormParams& norm, float* stats, Scratch& scratch) {
  const int64_t c = layout.c;
  BatchNormArgs args{};
  args.n = layout.n;
  args.c = c;
  args.s = layout.s;
  args.weight = as_floats(norm.weight, c, scratch, "bn_weight");
  args.bias = as_floats(norm.bias, c, scratch, "bn_bias");
  args.eps = static_cast<float>(norm.eps);
  args.mu = stats ? stats : scratch.take(2 * c);
  args.var = args.mu + c;
  args.rstd = scratch.take(c);
  args.a = scratch.take(c);
  args.b = scratch.take(c);
  return args;
}

void use_running(const BatchNormParams& norm, const BatchNormArgs& args, Scratch& scratch) {
  std::copy_n(as_floats(norm.running_mean, args.c, scratch, "running_mean"), args.c, args.mu);
  std::copy_n(as_floats(norm.running_var, args.c, scratch, "running_var"), args.c, args.var);
  batch_norm(args);
}

void check_running(const BatchNormParams& norm, int64_t c) {
  STD_TORCH_CHECK(norm.running_mean.has_value() == norm.running_var.has_value(),
                  "running_mean and running_var are required together");
  if (!norm.running_mean || !norm.batch_stats) return;  // as_floats checks statistics that are read
  check_vector(*norm.running_mean, c, "running_mean");
  check_vector(*norm.running_var, c, "running_var");
  type_index(*norm.running_mean, "running_mean");
  type_index(*norm.running_var, "running_var");
}

void update_running(const BatchNormParams& norm, const BatchNormArgs& args) {
  if (!norm.running_mean) return;
  const auto move = [&](const Tensor& running, const float* batch, double factor) {
    kernels().move[type_index(running, "running statistics")](mutable_bytes(running), batch, static_cast<float>(factor),
                                                              static_cast<float>(norm.momentum), args.c);
  };
  const double count = static_cast<double>(args.n * args.s);
  move(*norm.running_mean, args.mu, 1);
  move(*norm.running_var, args.var, count / (count - 1));
}

}  // namespace se_fused::cpu

// A whole residual block in one call: out_act(drop_path_scale * SE(branch(x)) + residual), where the residual is x,
// shortcut(x), another tensor or absent. PyTorch computes the convolutions, called through its dispatcher, and a
// backend's functions (ops.h) all else. The same code serves every backend. se_fused/ops/compose_residual_block.py is
// its definition in Python.
//
// Layers are numbered along the branch; the shortcut's, if there is one, is the last. `tensors` holds six of each
// layer, and four of the excitation: the weight and bias of the convolution; running mean, running variance, weight and
// bias of batch norm; the weights and biases of the two layers.
#pragma once

#include <torch/csrc/stable/library.h>

#include <array>
#include <deque>
#include <mutex>

#include "block_memory.h"

namespace se_fused {

// Settings of a block, which do not change from call to call.
struct ResidualBlockPlan {
  struct Layer {
    std::vector<int64_t> stride, padding, dilation, zeros;
    int64_t groups;
    Act out_act;
    bool batch_stats;
    double momentum, eps;
  };
  enum class Residual { none, x, shortcut, given };
  std::vector<Layer> layers;
  Residual residual;
  Act act;
  Gate gate;

  bool has_shortcut() const { return residual == Residual::shortcut; }
  int64_t branch() const { return static_cast<int64_t>(layers.size()) - has_shortcut(); }
  // Whether the backward pass adds a residual again that it has not got as x.
  bool keeps_residual() const {
    return keeps_input(layers[branch() - 1].out_act) && (has_shortcut() || residual == Residual::given);
  }
};

// Plans live as long as the process: there are as many as there are different blocks.
struct ResidualBlockPlans {
  std::mutex mutex;
  std::deque<ResidualBlockPlan> plans;  // references to its elements stay valid

  static ResidualBlockPlans& all() {
    static ResidualBlockPlans plans;
    return plans;
  }
  static const ResidualBlockPlan& at(int64_t number) {
    ResidualBlockPlans& known = all();
    const std::lock_guard<std::mutex> lock(known.mutex);
    STD_TORCH_CHECK(number >= 0 && number < static_cast<int64_t>(known.plans.size()), "plan ", number,
                    " is not the number of a plan");
    return known.plans[number];
  }
};

// Makes a plan and returns its number. settings: spatial dimensions, number of layers, the residual, act, gate; then of
// each layer stride, padding and dilation (one number per dimension each), groups, out_act. norms: of each layer
// batch_stats, momentum, eps.
inline int64_t residual_block_plan(std::vector<int64_t> settings, std::vector<double> norms) {
  size_t at = 0;
  const auto next = [&] {
    STD_TORCH_CHECK(at < settings.size(), "settings are incomplete");
    return settings[at++];
  };
  const int64_t dims = next(), layers = next();
  STD_TORCH_CHECK(dims >= 1 && dims <= 3 && static_cast<int64_t>(norms.size()) == 3 * layers,
                  "settings and norms do not fit");
  ResidualBlockPlan plan{};
  const int64_t residual = next();
  STD_TORCH_CHECK(residual >= 0 && residual <= 3, "residual ", residual, " is not the number of a kind of residual");
  plan.residual = static_cast<ResidualBlockPlan::Residual>(residual);
  plan.act = act_of(next());
  plan.gate = gate_of(next());
  for (int64_t i = 0; i < layers; ++i) {
    ResidualBlockPlan::Layer layer{};
    for (auto* values : {&layer.stride, &layer.padding, &layer.dilation})
      for (int64_t d = 0; d < dims; ++d) values->push_back(next());
    layer.zeros.assign(dims, 0);
    layer.groups = next();
    layer.out_act = out_act_of(next());
    layer.batch_stats = norms[3 * i] != 0;
    layer.momentum = norms[3 * i + 1];
    layer.eps = norms[3 * i + 2];
    plan.layers.push_back(std::move(layer));
  }
  STD_TORCH_CHECK(layers > plan.has_shortcut(), "a block has at least one layer in its branch");
  ResidualBlockPlans& known = ResidualBlockPlans::all();
  const std::lock_guard<std::mutex> lock(known.mutex);
  known.plans.push_back(std::move(plan));
  return static_cast<int64_t>(known.plans.size()) - 1;
}

namespace block {

using Tensors = std::vector<OptionalTensor>;
using Layer = ResidualBlockPlan::Layer;
constexpr int64_t kTensors = 6;  // of a layer

inline void check_tensors(const ResidualBlockPlan& plan, const Tensors& tensors, const Tensor& x) {
  STD_TORCH_CHECK(tensors.size() == kTensors * plan.layers.size() + 4, "tensors do not fit the plan");
  int32_t type, other;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &type));
  for (const OptionalTensor& t : tensors) {
    if (!t) continue;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t->get(), &other));
    STD_TORCH_CHECK(other == type && t->get_device_index() == x.get_device_index(),
                    "all parameters must be on x's device");
  }
}

inline Tensor convolution(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Layer& layer) {
  using torch::stable::detail::from;
  std::array<StableIValue, 9> stack{
      from(x),     from(weight),      from(bias),        from(layer.stride), from(layer.padding), from(layer.dilation),
      from(false), from(layer.zeros), from(layer.groups)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Gradients of input, weight and bias; null if not wanted.
inline std::array<OptionalTensor, 3> convolution_backward(const Tensor& du, const Tensor& x, const Tensor& weight,
                                                          const Layer& layer, const std::array<bool, 3>& wanted) {
  using torch::stable::detail::from;
  std::array<OptionalTensor, 3> found;
  if (!wanted[0] && !wanted[1] && !wanted[2]) return found;
  std::optional<std::vector<int64_t>> bias;
  if (wanted[2]) bias = std::vector<int64_t>{weight.size(0)};
  const torch::headeronly::HeaderOnlyArrayRef<bool> masks(wanted.data(), 3);
  std::array<StableIValue, 11> stack{from(du),
                                     from(x),
                                     from(weight),
                                     from(bias),
                                     from(layer.stride),
                                     from(layer.padding),
                                     from(layer.dilation),
                                     from(false),
                                     from(layer.zeros),
                                     from(layer.groups),
                                     from(masks)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  for (int i = 0; i < 3; ++i) {
    Tensor t = torch::stable::detail::to<Tensor>(stack[i]);  // undefined if not wanted; owned all the same
    if (wanted[i]) found[i] = t;
  }
  return found;
}

// t in x's memory order.
inline Tensor ordered_like(const Tensor& t, const Tensor& x, const Layout& layout) {
  if (layout.channels_last ? is_channels_last(t) : t.is_contiguous()) return t;
  Tensor copy = torch::stable::empty_like(x);
  return torch::stable::copy_(copy, t);
}

// The gradients of all vectors and of the excitation in one allocation, in the dtype that they share; in float32 if
// they share none, and autograd converts them.
class GradientMemory {
 public:
  explicit GradientMemory(const Tensor& x) : x_(x) {}

  // `like` has the gradient's dtype, sizes and strides; absent parameters need memory too.
  void add(const OptionalTensor& like, int64_t numel) {
    numels_.push_back(numel);
    if (!like) return;
    const ScalarType type = gradient_type(like->scalar_type());
    type_ = !type_ || *type_ == type ? type : ScalarType::Float;
  }
  void allocate() {
    item_ = type_.value_or(ScalarType::Float) == ScalarType::Float ? 4 : 2;
    Parts parts;
    for (const int64_t numel : numels_) offsets_.push_back(parts.add(numel, item_));
    memory_ = torch::stable::new_empty(x_, {parts.bytes() / item_}, type_.value_or(ScalarType::Float));
  }
  Slot slot(int64_t i) const {
    return {static_cast<char*>(memory_->mutable_data_ptr()) + offsets_[i], memory_->scalar_type()};
  }
  Tensor tensor(int64_t i, const Tensor& like) const {
    const auto sizes = like.sizes(), strides = like.strides();
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(memory_->get(), like.dim(), sizes.data(), strides.data(),
                                                          offsets_[i] / item_, &handle));
    return Tensor(handle);
  }

 private:
  const Tensor& x_;
  std::vector<int64_t> numels_, offsets_;
  std::optional<ScalarType> type_;
  int64_t item_ = 4;
  OptionalTensor memory_;
};

}  // namespace block

// Returns y and, with `save`, what the backward pass needs: of each layer the convolution's result and one tensor of
// bytes; then the results of the branch's layers but the last, and the residual if keeps_residual(). `added` is the
// residual if it is given. Running statistics are updated.
inline std::vector<Tensor> residual_block_forward(const Tensor& x, block::Tensors tensors, const OptionalTensor& added,
                                                  const OptionalTensor& drop_path_scale, int64_t number, bool save) {
  const ResidualBlockPlan& plan = ResidualBlockPlans::at(number);
  block::check_tensors(plan, tensors, x);
  const OptionalTensor none;
  const int64_t layers = static_cast<int64_t>(plan.layers.size()), last = plan.branch() - 1;
  const OptionalTensor* const fc = tensors.data() + block::kTensors * layers;
  std::vector<Tensor> kept(2 * layers, x), inner;
  const auto run = [&](int64_t i, const Tensor& a, const OptionalTensor& to_add) {
    const block::Layer& layer = plan.layers[i];
    const OptionalTensor* const t = tensors.data() + block::kTensors * i;
    STD_TORCH_CHECK(t[0].has_value(), "a convolution has no weight");
    Tensor u = block::convolution(a, *t[0], t[1], layer);
    const Layout layout = layout_of(u, "the convolution's result");
    const bool closes = i == last;
    OptionalTensor residual;
    if (to_add) residual = block::ordered_like(*to_add, u, layout);
    const BatchNormParams bn{t[2], t[3], t[4], t[5], layer.batch_stats, layer.momentum, layer.eps};
    const ExcitationParams excitation{closes ? fc[0] : none,
                                      closes ? fc[1] : none,
                                      closes ? fc[2] : none,
                                      closes ? fc[3] : none,
                                      plan.act,
                                      plan.gate};
    const BlockOptions end{residual, closes ? drop_path_scale : none, layer.out_act};
    if (!save && !layer.batch_stats) {
      block_inference(u, bn, excitation, end, u);
      return u;
    }
    const KeptParts parts(KeptSizes(layout, excitation, end, save, true));
    const Tensor memory = torch::stable::new_empty(x, {parts.parts.bytes()}, ScalarType::Byte);
    Tensor y = torch::stable::empty_like(u);
    block_forward(u, bn, excitation, end, y, parts.in(memory));
    kept[2 * i] = u;
    kept[2 * i + 1] = memory;
    if (closes && plan.keeps_residual()) inner.push_back(*residual);
    return y;
  };
  using Residual = ResidualBlockPlan::Residual;
  STD_TORCH_CHECK(added.has_value() == (plan.residual == Residual::given), "the residual does not fit the plan");
  OptionalTensor residual = added;
  if (plan.residual == Residual::x) residual = x;
  if (plan.has_shortcut()) residual = run(layers - 1, x, none);
  Tensor a = x;
  for (int64_t i = 0; i < last; ++i) {
    a = run(i, a, none);
    if (save) inner.push_back(a);
  }
  std::vector<Tensor> results{run(last, a, residual)};
  if (save) {
    results.insert(results.end(), kept.begin(), kept.end());
    results.insert(results.end(), inner.begin(), inner.end());
  }
  return results;
}

// The bits of `wanted`: x's gradient; that the first convolution's input gradient is left to a product; the gradient of
// a given residual; then four of each layer, in the order of its gradients.
constexpr int64_t kWantsX = 1, kLeftToProduct = 2, kWantsResidual = 4, kBeforeLayers = 3, kGradients = 4;

// Returns (of the residual, of the first layer, four of each layer, four of the excitation). The first is the gradient
// of a given residual or, in x's gradient, that of x or of the shortcut's input; null if it is dy itself. The second is
// the gradient of the first convolution's input; with kLeftToProduct that of its result. x's gradient is their sum
// unless the residual is given or absent. Of a layer: weight, bias, weight and bias of batch norm. kept: the forward
// pass's results but y. tensors: without running statistics.
inline block::Tensors residual_block_backward(const Tensor& dy, const Tensor& x, block::Tensors tensors,
                                              const OptionalTensor& drop_path_scale, std::vector<Tensor> kept,
                                              int64_t number, int64_t wanted) {
  using namespace block;
  const ResidualBlockPlan& plan = ResidualBlockPlans::at(number);
  check_tensors(plan, tensors, x);
  const OptionalTensor none;
  const int64_t layers = static_cast<int64_t>(plan.layers.size()), last = plan.branch() - 1;
  const OptionalTensor* const fc = tensors.data() + kTensors * layers;
  using Residual = ResidualBlockPlan::Residual;
  STD_TORCH_CHECK(static_cast<int64_t>(kept.size()) == 2 * layers + last + plan.keeps_residual(),
                  "kept tensors do not fit the plan");
  const auto parameters = [&](int64_t i) { return tensors.data() + kTensors * i; };
  const auto wants = [&](int64_t i) { return wanted >> (kBeforeLayers + kGradients * i) & 15; };
  const bool want_x = wanted & kWantsX;

  GradientMemory memory(x);
  for (int64_t i = 0; i < layers; ++i)
    for (int64_t k = 4; k < kTensors; ++k) memory.add(parameters(i)[k], parameters(i)[0]->size(0));
  if (fc[0]) {
    const int64_t r = fc[0]->size(0), c = parameters(last)[0]->size(0);
    memory.add(fc[0], r * c);
    memory.add(fc[1], r);
    memory.add(fc[2], r * c);
    memory.add(fc[3], c);
  }
  memory.allocate();

  Tensors found(2 + kGradients * layers + 4);
  // The gradient of layer i's convolution's result. dr receives the gradient before the addition, if it is not `given`
  // itself.
  const auto norm = [&](int64_t i, const Tensor& given, bool want_dr, OptionalTensor& dr) {
    const Layer& layer = plan.layers[i];
    const OptionalTensor* const t = parameters(i);
    const Tensor& u = kept[2 * i];
    const Layout layout = layout_of(u, "the convolution's result");
    const bool closes = i == last;
    OptionalTensor residual;
    if (closes && plan.keeps_residual()) residual = kept.back();
    if (closes && keeps_input(layer.out_act) && plan.residual == Residual::x) residual = ordered_like(x, u, layout);
    const BatchNormParams bn{none, none, t[4], t[5], layer.batch_stats, layer.momentum, layer.eps};
    const ExcitationParams excitation{closes ? fc[0] : none, none, closes ? fc[2] : none, none, plan.act, plan.gate};
    const BlockOptions end{residual, closes ? drop_path_scale : none, layer.out_act};
    const KeptParts parts(KeptSizes(layout, excitation, end, true, true));
    check_vector(kept[2 * i + 1], parts.parts.bytes(), "what a layer keeps");
    const Kept k = parts.in(kept[2 * i + 1]);
    Tensor du = torch::stable::empty_like(u);
    if (writes_dr(layer.out_act, want_dr)) dr = torch::stable::empty_like(u);
    Slots slots{memory.slot(2 * i), memory.slot(2 * i + 1), {}, {}, {}, {}};
    for (int64_t j = 0; closes && fc[0] && j < 4; ++j) (&slots.fc1_weight)[j] = memory.slot(2 * layers + j);
    block_backward(ordered_like(given, u, layout), {u, k.mask, k.mean, k.factor, k.hidden, k.stats}, bn, excitation,
                   end, du, dr, slots);
    for (int64_t j = 0; j < 2; ++j)
      if (t[4 + j]) found[2 + kGradients * i + 2 + j] = memory.tensor(2 * i + j, *t[4 + j]);
    for (int64_t j = 0; closes && fc[0] && j < 4; ++j)
      if (fc[j]) found[2 + kGradients * layers + j] = memory.tensor(2 * layers + j, *fc[j]);
    return du;
  };
  // The gradients of layer i's weight and bias, and that of its input if it is wanted.
  const auto conv = [&](int64_t i, const Tensor& du, const Tensor& a, bool want_input) {
    const auto g = convolution_backward(du, a, *parameters(i)[0], plan.layers[i],
                                        {want_input, (wants(i) & 1) != 0, (wants(i) & 2) != 0});
    found[2 + kGradients * i] = g[1];
    found[2 + kGradients * i + 1] = g[2];
    return g[0];
  };
  const auto input = [&](int64_t i) -> const Tensor& { return i ? kept[2 * layers + i - 1] : x; };

  bool want_dr = want_x;
  if (plan.has_shortcut()) want_dr = want_x || wants(layers - 1);
  if (plan.residual == Residual::given) want_dr = wanted & kWantsResidual;
  if (plan.residual == Residual::none) want_dr = false;
  OptionalTensor dr;
  Tensor du = norm(last, dy, want_dr, dr);
  int64_t i = last;
  const auto wants_before = [&](int64_t end) {
    for (int64_t j = 0; j < end; ++j)
      if (wants(j)) return true;
    return want_x;
  };
  for (; i > 0 && wants_before(i); --i) {
    OptionalTensor inner;               // some activations need it for du
    du = *conv(i, du, input(i), true);  // frees the gradient before it
    du = norm(i - 1, du, false, inner);
  }
  const bool by_product = wanted & kLeftToProduct;
  const OptionalTensor dx = conv(i, du, input(i), i == 0 && want_x && !by_product);
  if (want_x) found[1] = by_product ? du : dx;
  if (plan.has_shortcut() && want_dr) {
    OptionalTensor inner;
    dr = conv(layers - 1, norm(layers - 1, dr ? *dr : dy, false, inner), x, want_x);
    want_dr = want_x;
  }
  if (want_dr) found[0] = dr;
  return found;
}

}  // namespace se_fused

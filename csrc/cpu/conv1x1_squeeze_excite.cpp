// A 1x1 convolution followed by squeeze-excite in one operator: the squeeze of the convolution's input h, the
// excitation, and the matrix product with its epilogue.
#include "excitation.h"
#include "passes.h"

namespace se_fused::cpu {
namespace {

// Bytes of weight panels that stay in the L2 cache while the rows pass over them, and row tiles per task.
constexpr int64_t kPanelBytes = 256 << 10, kTilesOfTask = 4;

// Tasks run over all rows for one group of panels before the next group, so that a thread's weights change rarely.
void products(int type, const ProductArgs& g, int64_t rows) {
  const Kernels& k = kernels();
  const int64_t panels = (g.c + 15) / 16, fit = kPanelBytes / (g.k * 16 * 4);
  const int64_t width = std::clamp<int64_t>(fit / k.tile_panels * k.tile_panels, k.tile_panels, panels);
  const int64_t height = kTilesOfTask * k.tile_rows;
  const int64_t across = (panels + width - 1) / width, down = (rows + height - 1) / height;
  const int64_t grain = std::max<int64_t>(1, kGrainFlops / (height * width * 16 * g.k));
  torch::stable::parallel_for(0, across * down, grain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<float[]> scratch(type ? new float[k.tile_rows * g.k] : nullptr);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t panel = task / down * width, row = task % down * height;
      k.product[type](g, {row, std::min(row + height, rows), panel, std::min(panel + width, panels)}, scratch.get());
    }
  });
}

}  // namespace
}  // namespace se_fused::cpu

namespace se_fused {

void conv1x1_squeeze_excite(const Tensor& h, const Tensor& packed, const OptionalTensor& conv_bias,
                            const ExcitationParams& fc, const BlockOptions& end, const Tensor& y) {
  using namespace cpu;
  const Layout in = layout_of(h, "h"), out = layout_of(y, "y");
  STD_TORCH_CHECK(in.channels_last && out.channels_last, "h and y must be channels_last");
  STD_TORCH_CHECK(in.n == out.n && in.s == out.s && h.scalar_type() == y.scalar_type(),
                  "y must have h's N, spatial size and dtype");
  check_like(end.residual, y, out, "residual");
  STD_TORCH_CHECK(!end.drop_path_scale, "drop_path_scale must be absent: the operator is for inference");
  const int64_t n = in.n, k = in.c, c = out.c, nc = n * c;
  const float* const weight = float_vector(packed, (c + 15) / 16 * 16 * k, "packed");
  if (out.numel() == 0) return;

  const int64_t r = fc.fc1_weight ? fc.fc1_weight->size(0) : 0;
  Scratch scratch(n * k + 2 * n * r + 3 * nc + 3 * c);
  const float* const shift = as_floats(conv_bias, c, scratch, "conv_bias");

  ProductArgs g{};
  g.h = bytes(h);
  g.weight = weight;
  g.shift = shift;
  g.residual = bytes(end.residual);
  g.y = mutable_bytes(y);
  g.k = k;
  g.c = c;
  g.s = in.s;
  g.out_act = end.out_act;

  if (fc.fc1_weight) {
    STD_TORCH_CHECK(fc.fc2_weight.has_value(), "fc2_weight is required with fc1_weight");
    check_vector(*fc.fc2_weight, c * r, "fc2_weight");
    ExcitationArgs first{};
    first.n = n;
    first.c = k;
    first.r = r;
    float* const mean = scratch.take(n * k);
    moments(pass_kernels(h), bytes(h), item_bytes(h), in, mean, nullptr);
    first.z = mean;
    first.fc1_weight = float_vector(*fc.fc1_weight, r * k, "fc1_weight");
    first.fc1_bias = fc.fc1_bias ? float_vector(*fc.fc1_bias, r, "fc1_bias") : nullptr;
    first.act = fc.act;
    first.hidden = scratch.take(n * r);
    first.active = scratch.take(n * r);
    ExcitationArgs second = first;
    second.c = c;
    second.fc2_weight = bytes(*fc.fc2_weight);
    second.fc2_bias = as_floats(fc.fc2_bias, c, scratch, "fc2_bias");
    second.gate = fc.gate;
    second.factor = scratch.take(nc);
    second.scale = scratch.take(nc);
    second.shift = scratch.take(nc);
    if (shift) {  // s * (W h + b) = s * W h + s * b
      float* const ones = scratch.take(c);
      std::fill_n(ones, c, 1.f);
      second.a = ones;
      second.b = shift;
    }
    excitation_layers(kernels().excitation[0], first, kernels().excitation[type_index(*fc.fc2_weight, "fc2_weight")],
                      second);
    g.scale = second.scale;
    g.shift = second.shift;
    g.stride = c;
  }
  products(type_index(h, "h"), g, n * in.s);
}

}  // namespace se_fused

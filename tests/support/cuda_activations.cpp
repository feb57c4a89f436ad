// The kernels' activations over an array, for tests/backends/cuda/test_activations.py: approximate functions of the
// shim have a GPU's largest errors.
#include "../../csrc/cuda/activations.cuh"

using namespace se_fused;

extern "C" {
void sigmoid_approx(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = cuda::sigmoid_approx(x[i]);
}
void silu_approx(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = cuda::silu_approx(x[i]);
}
void silu_slope_approx(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = cuda::silu_slope_approx(x[i]);
}
void hard_sigmoid(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = cuda::open_gate(Gate::hard_sigmoid, x[i]);
}
}

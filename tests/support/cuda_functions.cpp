// Device functions of the kernels over an array, for tests/backends/cuda/test_functions.py. Approximate functions of
// the shim have a GPU's largest errors.
#include "../../csrc/cuda/tiles.cuh"

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
// Numbers first + i that Periods divides wrongly, for i below n.
int64_t wrong_periods(int64_t first, int length, int64_t n) {
  const cuda::Periods periods(first, length);
  int64_t wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t row;
    int rest;
    periods.find((uint32_t)i, row, rest);
    wrong += periods.row + row != (first + i) / length || rest != (first + i) % length;
  }
  return wrong;
}
}

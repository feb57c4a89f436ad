// Interface of the CPU row kernels: the functions that every instruction set provides, and their arguments.
//
// A "row" is a run of contiguous elements. In a contiguous tensor it is one (n, c) with its S positions, and a
// coefficient is one number per row. In a channels_last tensor it is one (n, s) with its C channels, and a coefficient
// is a vector of C that all rows of a sample share. The suffixes _rows and _cols name the two cases; in the comments
// below, [rows] is one number per row and [len] one per element of a row.
// Kernels are serial and never allocate. The operators (moments.cpp, scale_shift_act.cpp, excitation.cpp,
// batch_norm_squeeze_excite.cpp) split the work between threads.
#pragma once

#include <cstdint>

#include "../enums.h"

namespace se_fused::cpu {

// y = act(scale * x + shift + residual); mask: one bit per element, rows padded to whole bytes.
struct ScaleShiftActArgs {
  const void* x;
  const void* residual;  // may be null
  void* y;
  uint8_t* mask;       // may be null
  const float* scale;  // _rows: [rows]; _cols: [len]
  const float* shift;
  int64_t rows, len;
  Act out_act;
  bool past_caches;  // store y with non-temporal stores: see passes.h
};

// dr = dy * act'; P = sum dr; Q = sum dr * (x - mean).
struct MomentsBackwardArgs {
  const void* dy;
  const void* x;
  const void* residual;  // used if keeps_input(out_act): the derivative needs the sum before the activation
  const uint8_t* mask;   // used if keeps_mask(out_act), without `added`
  const float* mean;     // _rows: [rows]; _cols: [len]
  const float* scale;    // used if keeps_input(out_act), or with `added`
  const float* shift;
  const float* added;  // added to dy; may be null. With it there is no residual
  void* dr;            // may be null: pass 2 then reads dy and the mask again
  float* p;            // _rows: [rows]; _cols: [len]
  float* q;
  int64_t rows, len;
  Act out_act;
  bool past_caches;
};

// dx = k1 * dr + k2 * (x - mean) + k3.
struct ScaleShiftActBackwardArgs {
  const void* dr;
  const uint8_t* mask;  // if not null, dr points to dy and the mask is applied here
  const void* x;        // null if k2 is zero everywhere
  const float* mean;    // _rows: [rows]; _cols: [len]; null if x is
  const float* k1;
  const float* k2;
  const float* k3;
  void* dx;
  int64_t rows, len;
  bool past_caches;
};

// y = act(scale * x + shift); total = sum of the float32 values before they are rounded to y.
struct ScaleShiftActMeanArgs {
  const void* x;
  void* y;
  const float* scale;  // _rows: [rows]; _cols: [len]
  const float* shift;
  float* total;  // _rows: [rows]; _cols: [len]
  int64_t rows, len;
  Act out_act;
  bool past_caches;
};

struct PassKernels {
  // mean[row] and m2[row] = sum (x - mean)^2 over the row; m2 may be null, because inference needs only the means
  void (*moments_rows)(const void* x, int64_t rows, int64_t len, float* mean, float* m2);
  // the same per column: mean[len] and m2[len], over all rows
  void (*moments_cols)(const void* x, int64_t rows, int64_t len, float* mean, float* m2);
  void (*scale_shift_act_rows)(const ScaleShiftActArgs&);
  void (*scale_shift_act_cols)(const ScaleShiftActArgs&);
  void (*moments_backward_rows)(const MomentsBackwardArgs&);
  void (*moments_backward_cols)(const MomentsBackwardArgs&);
  void (*scale_shift_act_backward_rows)(const ScaleShiftActBackwardArgs&);
  void (*scale_shift_act_backward_cols)(const ScaleShiftActBackwardArgs&);
  void (*scale_shift_act_mean_rows)(const ScaleShiftActMeanArgs&);
  void (*scale_shift_act_mean_cols)(const ScaleShiftActMeanArgs&);
};

// The outputs and all inputs but the weights are float32. a and b are null without batch norm, drop without drop path.
struct ExcitationArgs {
  int64_t n, c, r;
  const float* mean;       // (N, C)
  const float* a;          // (C,)   u = a * x + b is the normalised map
  const float* b;          // (C,)
  const float* drop;       // (N,)
  const void* fc1_weight;  // (R, C)
  const float* fc1_bias;   // (R,)
  const void* fc2_weight;  // (C, R)
  const float* fc2_bias;   // (C,)
  Act act;
  Gate gate;
  float* z;       // (N, C) squeeze of u
  float* hidden;  // (N, R) before the activation
  float* active;  // (N, R) after it
  float* factor;  // (N, C) the gate's value
  float* scale;   // (N, C) = drop * factor * a
  float* shift;   // (N, C) = drop * factor * b
};

struct ExcitationBackwardArgs {
  int64_t n, c, r, s;
  const float* mean;    // (N, C)
  const float* factor;  // (N, C); null without squeeze-excite
  const float* hidden;  // (N, R)
  const float* a;       // (C,); null without batch norm
  const float* b;
  const float* mu;    // (C,)
  const float* rstd;  // (C,)
  const float* drop;  // (N,)
  const float* p;     // (N, C)
  const float* q;     // (N, C)
  const void* fc1_weight;
  const void* fc2_weight;
  Act act;
  Gate gate;
  bool batch_stats;
  float* z;            // (N, C) scratch
  float* active;       // (N, R) scratch
  float* dq;           // (N, C) scratch
  float* dhidden;      // (N, R) scratch
  float* dz;           // (N, C) scratch
  float* dfc1_weight;  // (R, C)
  float* dfc1_bias;
  float* dfc2_weight;  // (C, R)
  float* dfc2_bias;
  float* dbn_weight;  // (C,)
  float* dbn_bias;
  float* k1;  // (N, C): dx = k1 * dr + k2 * (x - mean) + k3
  float* k2;  // (N, C): one value per channel, repeated for every n, so that both layouts index it like k1
  float* k3;  // (N, C)
};

// The arguments after the struct are the range of results to compute, [c0, c1), [r0, r1) or [n0, n1): the share of one
// thread. Ranges do not overlap.
struct ExcitationKernels {
  void (*squeeze)(const ExcitationArgs&, int64_t c0, int64_t c1);
  void (*fc1)(const ExcitationArgs&, int64_t r0, int64_t r1);
  void (*fc2)(const ExcitationArgs&, int64_t c0, int64_t c1);
  void (*scale_shift)(const ExcitationArgs&, int64_t c0, int64_t c1);                    // without squeeze-excite
  void (*activate)(const ExcitationBackwardArgs&);                                       // active, from hidden
  void (*backward_fc2)(const ExcitationBackwardArgs&, int64_t c0, int64_t c1);           // dq, dfc2
  void (*backward_hidden)(const ExcitationBackwardArgs&, int64_t n0, int64_t n1);        // dhidden
  void (*backward_fc1)(const ExcitationBackwardArgs&, int64_t c0, int64_t c1);           // dz, dfc1
  void (*backward_coefficients)(const ExcitationBackwardArgs&, int64_t c0, int64_t c1);  // dbn, k1, k2, k3
};

// Batch statistics from the per-sample moments by Chan's merge, which does not cancel, and the coefficients a and b of
// the normalised map a * x + b.
struct BatchNormArgs {
  int64_t n, c, s;
  const float* mean;    // (N, C)
  const float* m2;      // (N, C)
  const float* weight;  // (C,) or null
  const float* bias;    // (C,) or null
  float eps;
  bool batch_stats;  // compute mu and var; if false, they are inputs
  float* mu;         // (C,)
  float* var;        // (C,) biased
  float* rstd;       // (C,)
  float* a;          // (C,)
  float* b;          // (C,)
};

// y = act(scale * (W h) + shift + residual) over rows of channels: h (rows, K), y and residual (rows, C).
struct ProductArgs {
  const void* h;
  const float* weight;   // (ceil(C / 16), K, 16): panels of 16 channels, padded with zeros after the last channel
  const float* scale;    // (C,) at offset stride * sample; null stands for 1
  const float* shift;    // (C,) at offset stride * sample; null stands for 0
  const void* residual;  // may be null, and may be y
  void* y;
  int64_t k, c, s, stride;  // s: rows per sample; stride: C, or 0 if all samples share scale and shift
  Act out_act;
};

struct ProductPart {  // rows [row0, row1) by panels [panel0, panel1)
  int64_t row0, row1, panel0, panel1;
};

struct Kernels {
  const char* name;
  PassKernels passes[3];            // indexed by element type: float, BFloat16, Half
  ExcitationKernels excitation[3];  // indexed by weight type, in the same order
  void (*batch_norm)(const BatchNormArgs&, int64_t c0, int64_t c1);
  // Joins (mean, m2) of `count` elements with (mean2, m22) of `more`, in place; vectors of length len; m2 may be null
  void (*merge)(float* mean, float* m2, float count, const float* mean2, const float* m22, float more, int64_t len);
  void (*add)(float* into, const float* from, int64_t len);
  void (*to_float[3])(const void* from, float* into, int64_t len);
  // Running statistics, in place: running + momentum (factor * batch - running)
  void (*move[3])(void* running, const float* batch, float factor, float momentum, int64_t len);
  // indexed by the type of h and y; scratch: tile_rows * K floats
  void (*product[3])(const ProductArgs&, const ProductPart&, float* scratch);
  int tile_rows, tile_panels;
};

namespace baseline {
extern const Kernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

// The kernels of the fastest instruction set that this processor has, capped by ATEN_CPU_CAPABILITY as in PyTorch.
const Kernels& kernels();
// Changes the cap: "" (no cap), "default", "avx2" or "avx512". Returns false for any other name.
bool set_capability(const char* cap);

}  // namespace se_fused::cpu

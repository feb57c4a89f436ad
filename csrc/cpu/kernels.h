// The row kernels of the CPU backend: what every instruction set provides, and the arguments they take.
//
// A "row" is a run of contiguous elements. In a contiguous tensor it is one (n, c) with its S positions, and a
// coefficient is one number per row; in a channels_last tensor it is one (n, s) with its C channels, and coefficients
// are vectors that all rows of a sample share. The suffixes _rows and _cols name the two.
// Kernels are serial and never allocate; the operators (moments.cpp, scale_shift_act.cpp, excitation.cpp,
// batch_norm_squeeze_excite.cpp) own the threads.
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
  OutAct out_act;
  bool past_caches;  // y is too large for them: see passes.h
};

// dr = dy * act'; P = sum dr; Q = sum dr * (x - mean).
struct MomentsBackwardArgs {
  const void* dy;
  const void* x;
  const void* residual;  // where the derivative needs the sum before the activation: recomputed(out_act)
  const uint8_t* mask;   // relu without `added`
  const float* mean;     // _rows: [rows]; _cols: [len]
  const float* scale;    // recomputed(out_act), or `added`
  const float* shift;
  const float* added;  // to dy; may be null, and with it there is no residual
  void* dr;            // may be null: then pass 2 takes dy and the mask again
  float* p;            // _rows: [rows]; _cols: [len]
  float* q;
  int64_t rows, len;
  OutAct out_act;
  bool past_caches;
};

// dx = k1 * dr + k2 * (x - mean) + k3.
struct ScaleShiftActBackwardArgs {
  const void* dr;
  const uint8_t* mask;  // not null: dr is dy, still to be masked
  const void* x;        // null where k2 is zero everywhere
  const float* mean;    // _rows: [rows]; _cols: [len]; null with x
  const float* k1;
  const float* k2;
  const float* k3;
  void* dx;
  int64_t rows, len;
  bool past_caches;
};

// y = act(scale * x + shift); total = sum of what is rounded to y.
struct ScaleShiftActMeanArgs {
  const void* x;
  void* y;
  const float* scale;  // _rows: [rows]; _cols: [len]
  const float* shift;
  float* total;  // _rows: [rows]; _cols: [len]
  int64_t rows, len;
  OutAct out_act;
  bool past_caches;
};

struct PassKernels {
  // mean[row] and m2[row] = sum (x - mean)^2 over the row; m2 may be null: inference needs the means alone
  void (*moments_rows)(const void* x, int64_t rows, int64_t len, float* mean, float* m2);
  // the same per column, over the rows
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

// Everything per (n, c), float32. Absent things are null: no batch norm -> a, b; no drop path -> drop.
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
  float* k2;  // (N, C): one value per channel, repeated, so that both layouts read it alike
  float* k3;  // (N, C)
};

// Ranges are halves of a loop that is split between threads; each element belongs to exactly one range.
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

// Statistics of the batch from those of its samples: Chan's merge, no cancellation.
struct BatchNormArgs {
  int64_t n, c, s;
  const float* mean;    // (N, C)
  const float* m2;      // (N, C)
  const float* weight;  // (C,) or null
  const float* bias;    // (C,) or null
  float eps;
  bool batch_stats;  // else mu and var are given
  float* mu;         // (C,)
  float* var;        // (C,) biased
  float* rstd;       // (C,)
  float* a;          // (C,)
  float* b;          // (C,)
};

// y = act(scale * (W h) + shift + residual) over rows of channels: h (rows, K), y and residual (rows, C).
struct ProductArgs {
  const void* h;
  const float* weight;   // (ceil(C / 16), K, 16): panels of 16 channels, zero behind the last channel
  const float* scale;    // (C,) from stride * sample on; null: 1
  const float* shift;    // the same; null: 0
  const void* residual;  // may be null, and may be y
  void* y;
  int64_t k, c, s, stride;  // s: rows of a sample
  OutAct out_act;
};

struct ProductPart {
  int64_t row0, row1, panel0, panel1;
};

struct Kernels {
  const char* name;
  PassKernels passes[3];            // by element type: float, BFloat16, Half
  ExcitationKernels excitation[3];  // by weight type
  void (*batch_norm)(const BatchNormArgs&, int64_t c0, int64_t c1);
  // (mean, m2) of `count` elements joined with those of `more`; vectors of length len; m2 may be null
  void (*merge)(float* mean, float* m2, float count, const float* mean2, const float* m22, float more, int64_t len);
  void (*add)(float* into, const float* from, int64_t len);
  void (*to_float[3])(const void* from, float* into, int64_t len);
  // by the type of h and y; scratch: tile_rows * K floats
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

// The fastest set that this processor has, capped by ATEN_CPU_CAPABILITY as in PyTorch itself.
const Kernels& kernels();
// Changes the cap: "" (as the processor has), "default", "avx2", "avx512". Returns false for any other name.
bool set_capability(const char* cap);

}  // namespace se_fused::cpu

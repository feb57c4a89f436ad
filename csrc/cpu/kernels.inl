// All kernels of one instruction set. kernels_*.cpp includes this file once per set, inside the set's namespace.
#include "vec.inl"

#include "row_steps.inl"

#include "activations.inl"

#include "moments.inl"

#include "scale_shift_act.inl"

#include "scale_shift_act_mean.inl"

#include "excitation.inl"

#include "conv1x1_squeeze_excite.inl"

#define SE_PASSES(T)                 \
  {moments_rows<T>,                  \
   moments_cols<T>,                  \
   scale_shift_act_rows<T>,          \
   scale_shift_act_cols<T>,          \
   moments_backward_rows<T>,         \
   moments_backward_cols<T>,         \
   scale_shift_act_backward_rows<T>, \
   scale_shift_act_backward_cols<T>, \
   scale_shift_act_mean_rows<T>,     \
   scale_shift_act_mean_cols<T>}
#define SE_EXCITATION(W) \
  {squeeze,              \
   fc1<W>,               \
   fc2<W>,               \
   scale_shift,          \
   activate_hidden,      \
   backward_fc2<W>,      \
   backward_hidden<W>,   \
   backward_fc1<W>,      \
   backward_coefficients<W>}

extern const Kernels kernels;
const Kernels kernels = {SE_KERNELS_NAME,
                         {SE_PASSES(float), SE_PASSES(BFloat16), SE_PASSES(Half)},
                         {SE_EXCITATION(float), SE_EXCITATION(BFloat16), SE_EXCITATION(Half)},
                         batch_norm,
                         merge,
                         add,
                         {to_float<float>, to_float<BFloat16>, to_float<Half>},
                         {move<float>, move<BFloat16>, move<Half>},
                         {product<float>, product<BFloat16>, product<Half>},
                         kTileRows,
                         kTilePanels};

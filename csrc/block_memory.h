// Memory of the whole operator's results beside the maps, in one place for all backends: what the forward pass keeps,
// and the parameters' gradients.
#pragma once

#include "new_tensors.h"

namespace se_fused {

// What the forward pass keeps: bytes of the mask, and floats of the rest; 0 for an absent result.
struct KeptSizes {
  int64_t mask = 0, mean = 0, factor = 0, hidden = 0, stats = 0;

  // save: for the backward pass; has_stats: there are statistics to keep.
  KeptSizes(const Layout& layout, const ExcitationParams& fc, const BlockOptions& end, bool save, bool has_stats) {
    const int64_t nc = layout.n * layout.c;
    if (has_stats) stats = 2 * layout.c;
    if (!save) return;
    if (keeps_mask(end.out_act)) mask = layout.rows() * layout.row_mask_bytes();
    mean = nc;
    if (!fc.fc1_weight) return;
    factor = nc;
    hidden = layout.n * fc.fc1_weight->size(0);
  }
};

// The parts of one allocation, each aligned to 16 bytes.
class Parts {
 public:
  int64_t bytes() const { return next_; }
  // The offset of a part of `count` elements, or -1 if it is absent.
  int64_t add(int64_t count, int64_t item) {
    if (!count) return -1;
    const int64_t offset = next_;
    next_ += (count * item + 15) / 16 * 16;
    return offset;
  }

 private:
  int64_t next_ = 0;
};

// What one layer keeps, in one tensor of bytes.
struct KeptParts {
  Parts parts;
  int64_t mask, mean, factor, hidden, stats;

  explicit KeptParts(const KeptSizes& sizes)
      : mask(parts.add(sizes.mask, 1)),
        mean(parts.add(sizes.mean, 4)),
        factor(parts.add(sizes.factor, 4)),
        hidden(parts.add(sizes.hidden, 4)),
        stats(parts.add(sizes.stats, 4)) {}

  Kept in(const Tensor& memory) const {
    uint8_t* const start = static_cast<uint8_t*>(memory.mutable_data_ptr());
    const auto at = [&](int64_t offset) { return offset < 0 ? nullptr : reinterpret_cast<float*>(start + offset); };
    return {mask < 0 ? nullptr : start + mask, at(mean), at(factor), at(hidden), at(stats)};
  }
};

}  // namespace se_fused

// What the kernels of linear attention have in common.
#pragma once

#include "geometry.cuh"

// What `src/cuda/linear.rs` says of the mechanism: phi (elu + 1, relu, identity), and whether rows are divided by the sum of
// their weights plus 1e-6, else multiplied by the scale.
struct Mechanism {
    i32 feature_map, is_normalised;

    DEVICE bool is_identity() const { return feature_map == 2; }
    DEVICE f32 phi(f32 x) const {
        if (feature_map == 0) return x > 0.0f ? x + 1.0f : exp2_fast(x * LOG2_E);
        if (feature_map == 1) return max_f32(x, 0.0f);
        return x;
    }
    DEVICE f32 factor(f32 denominator, f32 scale) const { return is_normalised ? 1.0f / (denominator + 1e-6f) : scale; }
};

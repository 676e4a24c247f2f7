// What the compiled kernels share.

#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

// exp(x) within 8e-8 of its value, for x held to [-87, 88]; NaN stays NaN. As 2^whole times a polynomial (minimax, own
// fit) of the rest: adding 1.5 * 2^23 leaves the whole number in the low bits of the mantissa, so a compiler must
// not reorder these sums (no -ffast-math).
inline float exponential(float x) {
    const float above = x < -87.0f ? -87.0f : x;
    const float bounded = above > 88.0f ? 88.0f : above;
    const float shifted = bounded * 1.44269504f + 12582912.0f;
    const float rest = bounded * 1.44269504f - (shifted - 12582912.0f);
    float y = 1.535336192e-4f;
    y = y * rest + 1.339887441e-3f;
    y = y * rest + 9.618437358e-3f;
    y = y * rest + 5.550332471e-2f;
    y = y * rest + 2.402264791e-1f;
    y = y * rest + 6.931472029e-1f;
    y = y * rest + 1.0f;
    return std::bit_cast<float>(std::bit_cast<int32_t>(y) + (std::bit_cast<int32_t>(shifted) << 23));
}

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

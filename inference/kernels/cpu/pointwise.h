// What lies between a layer's products: y = norm(x) * weight, act(gate) * up, rotated heads. A row or a number at a time,
// the same in whichever batch it is.
#pragma once
#include <omp.h>

#include "kernels.h"
#include "vector.h"

namespace {

constexpr int64_t SERIAL_NUMBERS = 1 << 16;

// y[r] = x[r] / sqrt(mean(x[r] ** 2) + eps) * (weight + offset)
void rms_norm(float *y, const float *x, const float *weight, int64_t rows, int64_t width, float eps, float offset) {
#pragma omp parallel for schedule(static) if (rows * width > SERIAL_NUMBERS)
  for (int64_t r = 0; r < rows; ++r) {
    const float *from = x + r * width;
    float *to = y + r * width;
    Vec squares[2] = {zero(), zero()};
    int64_t i = 0;
    for (; i + 2 * W <= width; i += 2 * W)
      for (int n = 0; n < 2; ++n) squares[n] = fma(load(from + i + n * W), load(from + i + n * W), squares[n]);
    for (; i < width; i += W) {
      const Vec rest = load(from + i, (int)least(W, width - i));
      squares[0] = fma(rest, rest, squares[0]);
    }
    const float scale = 1.0f / __builtin_sqrtf(sum(add(squares[0], squares[1])) / (float)width + eps);
    for (i = 0; i + W <= width; i += W)
      store(to + i, mul(add(load(weight + i), all(offset)), mul(load(from + i), all(scale))));
    if (const int rest = (int)(width - i))
      store(to + i, mul(add(load(weight + i, rest), all(offset)), mul(load(from + i, rest), all(scale))), rest);
  }
}

INLINE Vec silu(Vec x) { return div(x, add(all(1.0f), exp(min(sub(zero(), x), all(88.0f))))); }

INLINE Vec gelu_tanh(Vec x) {
  const Vec inner = mul(all(0.7978845608028654f), fma(mul(all(0.044715f), mul(x, x)), x, x));
  return mul(mul(all(0.5f), x), add(all(1.0f), tanh(inner)));
}

template <typename F> INLINE void gate_with(float *gate, const float *up, int64_t count, F &&act) {
#pragma omp parallel for schedule(static) if (count > SERIAL_NUMBERS)
  for (int64_t i = 0; i < count; i += W) {
    const int here = (int)least(W, count - i);
    if (here == W)
      store(gate + i, mul(act(load(gate + i)), load(up + i)));
    else
      store(gate + i, mul(act(load(gate + i, here)), load(up + i, here)), here);
  }
}

// gate = act(gate) * up; act 0: x * sigmoid(x), 1: GELU by tanh
void gated(float *gate, const float *up, int64_t count, int64_t act) {
  if (act == 0) gate_with(gate, up, count, [](Vec x) __attribute__((always_inline)) { return silu(x); });
  if (act == 1) gate_with(gate, up, count, [](Vec x) __attribute__((always_inline)) { return gelu_tanh(x); });
}

// x[t, h, :turned] = x * cos[t] + (-x[turned / 2:], x[:turned / 2]) * sin[t], in place
void rotate(float *x, const float *cos, const float *sin, int64_t tokens, int64_t heads, int64_t dim, int64_t turned) {
  const int64_t half = turned / 2;
#pragma omp parallel for schedule(static) if (tokens * heads * dim > SERIAL_NUMBERS)
  for (int64_t t = 0; t < tokens; ++t) {
    const float *c = cos + t * turned, *s = sin + t * turned;
    for (int64_t h = 0; h < heads; ++h) {
      float *low = x + (t * heads + h) * dim, *high = low + half;
      int64_t i = 0;
      for (; i + W <= half; i += W) {
        const Vec a = load(low + i), b = load(high + i);
        store(low + i, sub(mul(a, load(c + i)), mul(b, load(s + i))));
        store(high + i, add(mul(b, load(c + half + i)), mul(a, load(s + half + i))));
      }
      for (; i < half; ++i) {
        const float a = low[i], b = high[i];
        low[i] = a * c[i] - b * s[i];
        high[i] = b * c[half + i] + a * s[half + i];
      }
    }
  }
}

}  // namespace

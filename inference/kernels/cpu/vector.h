// One vector of floats of this file's ISA (16, 8 or 4 lanes), its arithmetic, and what both kernels share. Every
// operation is explicit (no contraction), so a row's arithmetic is the same in whichever tile it lands.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

namespace {

struct Bfloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

#if defined(__AVX512F__)

constexpr int W = 16;
using Vec = __m512;
INLINE __mmask16 first(int n) { return (__mmask16)((1u << n) - 1); }
INLINE Vec zero() { return _mm512_setzero_ps(); }
INLINE Vec all(float v) { return _mm512_set1_ps(v); }
INLINE Vec load(const float *p) { return _mm512_loadu_ps(p); }
INLINE Vec load(const Bfloat16 *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
INLINE Vec load(const Float16 *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE void store(float *p, Vec v) { _mm512_storeu_ps(p, v); }
INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Vec if_less(Vec a, Vec b, Vec yes, Vec no) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes);
}
INLINE Vec scale_by_exponent(Vec p, Vec shifted) {
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}
INLINE float sum(Vec v) { return _mm512_reduce_add_ps(v); }
INLINE float top(Vec v) { return _mm512_reduce_max_ps(v); }

#elif defined(__AVX2__)

constexpr int W = 8;
using Vec = __m256;
INLINE Vec zero() { return _mm256_setzero_ps(); }
INLINE Vec all(float v) { return _mm256_set1_ps(v); }
INLINE Vec load(const float *p) { return _mm256_loadu_ps(p); }
INLINE Vec load(const Bfloat16 *p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
INLINE Vec load(const Float16 *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE void store(float *p, Vec v) { _mm256_storeu_ps(p, v); }
INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE Vec if_less(Vec a, Vec b, Vec yes, Vec no) {
  return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
INLINE Vec scale_by_exponent(Vec p, Vec shifted) {
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}
INLINE float sum(Vec v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
INLINE float top(Vec v) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

#else

constexpr int W = 4;
typedef float Vec __attribute__((vector_size(16)));
typedef int32_t Bits __attribute__((vector_size(16)));
INLINE float widen(Bfloat16 v) {
  const uint32_t bits = (uint32_t)v.bits << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}
INLINE float widen(Float16 v) {  // subnormals by a multiplication, infinities and NaNs by a second shift of the exponent
  const uint32_t sign = (uint32_t)(v.bits & 0x8000) << 16, magnitude = (uint32_t)(v.bits & 0x7fff) << 13;
  float out;
  memcpy(&out, &magnitude, 4);
  out *= 0x1p112f;
  uint32_t bits;
  memcpy(&bits, &out, 4);
  if ((v.bits & 0x7c00) == 0x7c00) bits |= 0x7f800000;
  bits |= sign;
  memcpy(&out, &bits, 4);
  return out;
}
INLINE Vec zero() { return Vec{0, 0, 0, 0}; }
INLINE Vec all(float v) { return Vec{v, v, v, v}; }
INLINE Vec load(const float *p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <typename T> INLINE Vec load(const T *p) { return Vec{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}; }
INLINE void store(float *p, Vec v) { memcpy(p, &v, sizeof v); }
INLINE Vec add(Vec a, Vec b) { return a + b; }
INLINE Vec sub(Vec a, Vec b) { return a - b; }
INLINE Vec mul(Vec a, Vec b) { return a * b; }
INLINE Vec div(Vec a, Vec b) { return a / b; }
INLINE Vec max(Vec a, Vec b) { return a > b ? a : b; }
INLINE Vec min(Vec a, Vec b) { return a < b ? a : b; }
INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
INLINE Vec if_less(Vec a, Vec b, Vec yes, Vec no) { return a < b ? yes : no; }
INLINE Vec scale_by_exponent(Vec p, Vec shifted) { return (Vec)((Bits)p + ((Bits)shifted << 23)); }
INLINE float sum(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
INLINE float top(Vec v) {
  const float a = v[0] > v[2] ? v[0] : v[2], b = v[1] > v[3] ? v[1] : v[3];
  return a > b ? a : b;
}

#endif

// The first n lanes, zeros after.
template <typename T> INLINE Vec load(const T *p, int n) {
  T lanes[W] = {};
  memcpy(lanes, p, n * sizeof(T));
  return load(lanes);
}
INLINE void store(float *p, Vec v, int n) {
  float lanes[W];
  store(lanes, v);
  memcpy(p, lanes, n * sizeof(float));
}

// e**x for x <= 88, exactly 1 at 0 and exactly 0 below -87. Cephes' polynomial, 2 ulp.
INLINE Vec exp(Vec x) {
  const Vec clamped = max(x, all(-87.0f)), magic = all(12582912.0f);  // 1.5 * 2**23: adding it rounds to an integer
  const Vec shifted = fma(clamped, all(1.44269504088896341f), magic), n = sub(shifted, magic);
  Vec r = fma(n, all(-0.693359375f), clamped);
  r = fma(n, all(2.12194440e-4f), r);
  Vec p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), all(1.0f));
  return if_less(x, all(-87.0f), zero(), scale_by_exponent(p, shifted));
}

// Cephes' tanhf: a polynomial near 0, by the exponential elsewhere.
INLINE Vec tanh(Vec x) {
  const Vec size = max(x, sub(zero(), x)), square = mul(x, x);
  Vec p = all(-5.70498872745e-3f);
  p = fma(p, square, all(2.06390887954e-2f));
  p = fma(p, square, all(-5.37397155531e-2f));
  p = fma(p, square, all(1.33314422036e-1f));
  p = fma(p, square, all(-3.33332819422e-1f));
  const Vec near = fma(mul(p, square), x, x);
  const Vec grown = exp(min(add(size, size), all(40.0f)));
  const Vec far = sub(all(1.0f), div(all(2.0f), add(grown, all(1.0f))));
  return if_less(size, all(0.625f), near, if_less(x, zero(), sub(zero(), far), far));
}

// to[c * stride + i] = rows[i][c] for W rows and `columns` columns.
INLINE void transpose(const float *const *rows, int64_t columns, float *to, int64_t stride) {
  int64_t c = 0;
#if defined(__AVX2__)
  for (; c + 4 <= columns; c += 4) {
#if defined(__AVX512F__)
#define FOUR(i)                                                                                                       \
  _mm512_insertf32x4(_mm512_insertf32x4(_mm512_insertf32x4(_mm512_castps128_ps512(_mm_loadu_ps(rows[i] + c)),         \
                                                           _mm_loadu_ps(rows[(i) + 4] + c), 1),                       \
                                        _mm_loadu_ps(rows[(i) + 8] + c), 2),                                          \
                     _mm_loadu_ps(rows[(i) + 12] + c), 3)
    const Vec a = FOUR(0), b = FOUR(1), d = FOUR(2), e = FOUR(3);
    const Vec ab = _mm512_unpacklo_ps(a, b), AB = _mm512_unpackhi_ps(a, b);
    const Vec de = _mm512_unpacklo_ps(d, e), DE = _mm512_unpackhi_ps(d, e);
    store(to + c * stride, _mm512_shuffle_ps(ab, de, 0x44));
    store(to + (c + 1) * stride, _mm512_shuffle_ps(ab, de, 0xee));
    store(to + (c + 2) * stride, _mm512_shuffle_ps(AB, DE, 0x44));
    store(to + (c + 3) * stride, _mm512_shuffle_ps(AB, DE, 0xee));
#else
#define FOUR(i)                                                                                                       \
  _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[i] + c)), _mm_loadu_ps(rows[(i) + 4] + c), 1)
    const Vec a = FOUR(0), b = FOUR(1), d = FOUR(2), e = FOUR(3);
    const Vec ab = _mm256_unpacklo_ps(a, b), AB = _mm256_unpackhi_ps(a, b);
    const Vec de = _mm256_unpacklo_ps(d, e), DE = _mm256_unpackhi_ps(d, e);
    store(to + c * stride, _mm256_shuffle_ps(ab, de, 0x44));
    store(to + (c + 1) * stride, _mm256_shuffle_ps(ab, de, 0xee));
    store(to + (c + 2) * stride, _mm256_shuffle_ps(AB, DE, 0x44));
    store(to + (c + 3) * stride, _mm256_shuffle_ps(AB, DE, 0xee));
#endif
#undef FOUR
  }
#endif
  for (; c < columns; ++c)
    for (int i = 0; i < W; ++i) to[c * stride + i] = rows[i][c];
}

// A thread's memory for one kernel: grows, is kept, never shared.
struct Scratch {
  void *memory = nullptr;
  size_t size = 0;
  template <typename T> T *get(size_t count) {
    if (count * sizeof(T) > size) {
      free(memory);
      size = (count * sizeof(T) * 3 / 2 + 63) / 64 * 64;
      memory = aligned_alloc(64, size);
      if (!memory) abort();
    }
    return (T *)memory;
  }
  ~Scratch() { free(memory); }
};

INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace

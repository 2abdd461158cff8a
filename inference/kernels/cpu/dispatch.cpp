// The C ABI. Chooses the widest kernels that this processor runs, once; knows no arithmetic.
#include <cstring>

#include "kernels.h"

namespace {

const Kernels *const built[] = {
#ifdef LORAYARD_X86
    &avx512::kernels,
    &avx2::kernels,
#endif
    &portable::kernels,
};

bool supported(const Kernels *kernels) {
#ifdef LORAYARD_X86
  __builtin_cpu_init();
  const bool narrow = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (kernels == &avx2::kernels) return narrow;
  if (kernels == &avx512::kernels)
    return narrow && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
  return true;
}

const Kernels *chosen = &portable::kernels;

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Use the named kernels, or the widest for an empty name. Returns the name in use, null if the processor lacks them.
EXPORT const char *lorayard_select(const char *name) {
  for (const Kernels *kernels : built)
    if (supported(kernels) && (!*name || !strcmp(name, kernels->name))) {
      chosen = kernels;
      return kernels->name;
    }
  return nullptr;
}

EXPORT void lorayard_sgmm(float *y, int64_t ldy, const float *x, int64_t ldx, const Table *table, const Segments *segments) {
  chosen->sgmm(y, ldy, x, ldx, *table, *segments);
}

// Outputs of a panel of packed weights, for the kernels in use.
EXPORT int64_t lorayard_panel() { return chosen->panel; }

EXPORT void lorayard_linear(float *const *y, const float *x, int64_t ldx, int64_t rows, const Linear *linear,
                            const Segments *segments) {
  chosen->linear(y, x, ldx, rows, *linear, *segments);
}

EXPORT void lorayard_attend(const Attention *attention) { chosen->attend(*attention); }

EXPORT void lorayard_rms_norm(float *y, const float *x, const float *weight, int64_t rows, int64_t width, float eps,
                              float offset) {
  chosen->rms_norm(y, x, weight, rows, width, eps, offset);
}

EXPORT void lorayard_gated(float *gate, const float *up, int64_t count, int64_t act) { chosen->gated(gate, up, count, act); }

EXPORT void lorayard_rotate(float *x, const float *cos, const float *sin, int64_t tokens, int64_t heads, int64_t dim,
                            int64_t turned) {
  chosen->rotate(x, cos, sin, tokens, heads, dim, turned);
}

// cache[slots[t]] = rows[t], for keys and values; strides in elements. Slot -1: nowhere.
EXPORT void lorayard_store(const float *rows, int64_t row_token, int64_t row_head, float *cache, int64_t block, int64_t token,
                           int64_t head, const int64_t *slots, int64_t tokens, int64_t heads, int64_t dim,
                           int64_t block_size) {
  for (int64_t t = 0; t < tokens; ++t) {
    if (slots[t] < 0) continue;
    float *to = cache + slots[t] / block_size * block + slots[t] % block_size * token;
    for (int64_t h = 0; h < heads; ++h) memcpy(to + h * head, rows + t * row_token + h * row_head, dim * sizeof(float));
  }
}

// What crosses between Python, the dispatcher and the per-ISA kernels: plain C structs, no PyTorch, no standard library.
#pragma once
#include <cstdint>

// One adapter's pair at one linear; rank 0: none. Mirrors sgmm.Table's numpy record.
struct Pair {
  const void *a;  // [rank, inputs]
  const void *b;  // [outputs, rank]
  int32_t rank;
  int32_t dtype;  // 0 float32, 1 bfloat16, 2 float16
  float scale;
  int32_t unused;
};

struct Table {
  const Pair *pairs;  // by slot
  int64_t inputs, outputs;
};

// Row starts[i] up to ends[i] uses slots[i].
struct Segments {
  const int32_t *starts, *ends, *slots;
  int64_t count;
};

// One linear's frozen weights in panels (linear.h), its bias filled up with zeros, and its pairs by slot.
struct Weights {
  const void *panels;
  const float *bias;
  const Pair *pairs;          // null: no adapter may change it
  int64_t outputs;
  int64_t dtype;              // as in Pair
};

// Linears that read the same x.
struct Linear {
  const Weights *parts;
  int64_t count, inputs;
};

struct Attention {
  float *out;                 // [tokens, heads, dim]
  const float *q;             // strides in elements
  int64_t q_token, q_head;
  const float *keys, *values; // [blocks, block_size, kv_heads, dim]
  int64_t block, token, head; // strides of both caches
  const int32_t *tables;      // [sequences, table_width]
  int64_t table_width;
  const int32_t *starts;      // [sequences + 1]
  const int32_t *contexts;    // [sequences]
  int64_t sequences, heads, kv_heads, dim, block_size;
  float scale;
  int64_t window;             // 0: none
  float softcap;              // 0: none
};

struct Kernels {
  const char *name;
  int64_t panel;  // outputs side by side in packed weights
  void (*sgmm)(float *y, int64_t ldy, const float *x, int64_t ldx, const Table &, const Segments &);
  void (*linear)(float *const *y, const float *x, int64_t ldx, int64_t rows, const Linear &, const Segments &);
  void (*attend)(const Attention &);
  void (*rms_norm)(float *y, const float *x, const float *weight, int64_t rows, int64_t width, float eps, float offset);
  void (*gated)(float *gate, const float *up, int64_t count, int64_t act);
  void (*rotate)(float *x, const float *cos, const float *sin, int64_t tokens, int64_t heads, int64_t dim, int64_t turned);
};

namespace avx512 { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace portable { extern const Kernels kernels; }

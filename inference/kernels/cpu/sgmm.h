// y[s:e] += scale * (x[s:e] @ A.T) @ B.T for every segment.
//
// Two phases in one parallel region, each a list of independent tiles: shrink into a small bridge, then expand from it.
// shrink   bridge[row, r] = scale * sum_k x[row, k] A[r, k]    vectors along k, A read as it lies
// expand   y[row, o] += sum_r bridge[row, r] B[o, r]           vectors along o, W rows of B transposed in registers
// One (row, r) or (row, o) is always summed in the same order, however many rows and ranks share its tile.
#pragma once
#include <omp.h>

#include "kernels.h"
#include "vector.h"

namespace {

constexpr int TILE_ROWS = W == 16 ? 4 : 2;  // accumulators of a tile stay in registers
constexpr int SHRINK_ROWS = 16, SHRINK_RANKS = 8, EXPAND_ROWS = 64, EXPAND_OUTPUTS = 256;
constexpr int64_t SERIAL_WORK = 1 << 17;  // some 20 us; below it a second thread costs more than it brings

struct Job {
  const Pair *pair;
  int64_t start, rows;
  float *bridge;  // [rows, rank]
};

struct Tile {
  int32_t job, row, column;
};

template <typename T, int M, int N>
INLINE void dots(const float *x, int64_t ldx, const T *a, int64_t inputs, float scale, float *bridge, int64_t rank) {
  Vec sums[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = zero();
  auto step = [&](int64_t k, auto get) __attribute__((always_inline)) {
    Vec left[M];
    for (int m = 0; m < M; ++m) left[m] = get(x + m * ldx + k);
    for (int n = 0; n < N; ++n) {
      const Vec right = get(a + n * inputs + k);
      for (int m = 0; m < M; ++m) sums[m][n] = fma(left[m], right, sums[m][n]);
    }
  };
  int64_t k = 0;
  for (; k + W <= inputs; k += W) step(k, [](auto *p) __attribute__((always_inline)) { return load(p); });
  if (const int rest = (int)(inputs - k))
    step(k, [rest](auto *p) __attribute__((always_inline)) { return load(p, rest); });
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) bridge[m * rank + n] = scale * sum(sums[m][n]);
}

template <typename T, int M>
INLINE void shrink_rows(const float *x, int64_t ldx, const T *a, int64_t inputs, int64_t ranks, float scale,
                        float *bridge, int64_t rank) {
  int64_t r = 0;
  if (M == 1)
    for (; r + 8 <= ranks; r += 8) dots<T, M, 8>(x, ldx, a + r * inputs, inputs, scale, bridge + r, rank);
  for (; r + 4 <= ranks; r += 4) dots<T, M, 4>(x, ldx, a + r * inputs, inputs, scale, bridge + r, rank);
  for (; r < ranks; ++r) dots<T, M, 1>(x, ldx, a + r * inputs, inputs, scale, bridge + r, rank);
}

template <typename T>
void shrink(const float *x, int64_t ldx, int64_t inputs, const Job &job, const Tile &tile) {
  const int64_t rank = job.pair->rank, ranks = least(SHRINK_RANKS, rank - tile.column);
  const T *a = (const T *)job.pair->a + tile.column * inputs;
  int64_t row = tile.row;
  const int64_t end = least(row + SHRINK_ROWS, job.rows);
  const float scale = job.pair->scale;
  x += job.start * ldx;
  float *bridge = job.bridge + tile.column;
  for (; row + TILE_ROWS <= end; row += TILE_ROWS)
    shrink_rows<T, TILE_ROWS>(x + row * ldx, ldx, a, inputs, ranks, scale, bridge + row * rank, rank);
  for (; row < end; ++row) shrink_rows<T, 1>(x + row * ldx, ldx, a, inputs, ranks, scale, bridge + row * rank, rank);
}

template <int M, int N>
INLINE void add_outputs(float *y, int64_t ldy, const float *bridge, const float *columns, int64_t rank, int last) {
  Vec sums[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = zero();
  for (int64_t r = 0; r < rank; ++r) {
    Vec right[N];
    for (int n = 0; n < N; ++n) right[n] = load(columns + (n * rank + r) * W);
    for (int m = 0; m < M; ++m) {
      const Vec left = all(bridge[m * rank + r]);
      for (int n = 0; n < N; ++n) sums[m][n] = fma(left, right[n], sums[m][n]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      float *at = y + m * ldy + n * W;
      if (n == N - 1 && last < W)
        store(at, add(load(at, last), sums[m][n]), last);
      else
        store(at, add(load(at), sums[m][n]));
    }
}

// M rows of all the tile's outputs, side by side in memory.
template <int M>
INLINE void expand_rows(float *y, int64_t ldy, const float *bridge, const float *columns, int64_t rank, int64_t outputs) {
  constexpr int STRIPS = 4;
  int64_t o = 0;
  for (; o + STRIPS * W <= outputs; o += STRIPS * W)
    add_outputs<M, STRIPS>(y + o, ldy, bridge, columns + o * rank, rank, W);
  for (; o < outputs; o += W)
    add_outputs<M, 1>(y + o, ldy, bridge, columns + o * rank, rank, (int)least(W, outputs - o));
}

// columns[r][i] = B[i, r] for the next W outputs (fewer: the rest repeat the first); `wide` holds them as floats.
template <typename T>
INLINE void gather_columns(const T *b, int64_t rank, int outputs, float *wide, float *columns) {
  const float *source = wide;
  if constexpr (sizeof(T) == sizeof(float)) {
    source = (const float *)b;
  } else {
    const int64_t count = outputs * rank;
    int64_t i = 0;
    for (; i + W <= count; i += W) store(wide + i, load(b + i));
    if (i < count) store(wide + i, load(b + i, (int)(count - i)));
  }
  const float *rows[W];
  for (int i = 0; i < W; ++i) rows[i] = source + (i < outputs ? i : 0) * rank;
  transpose(rows, rank, columns, W);
}

// The job's rows `row` to `end`, `here` outputs (at most EXPAND_OUTPUTS) from `output` on.
template <typename T>
void expand(float *y, int64_t ldy, int64_t output, int64_t here, const Job &job, int64_t row, int64_t end) {
  static thread_local Scratch scratch;
  const int64_t rank = job.pair->rank;
  float *columns = scratch.get<float>((EXPAND_OUTPUTS + 2 * W) * (rank + 1)), *wide = columns + EXPAND_OUTPUTS * rank;
  const T *b = (const T *)job.pair->b + output * rank;
  for (int64_t o = 0; o < here; o += W)
    gather_columns(b + o * rank, rank, (int)least(W, here - o), wide, columns + o * rank);
  y += job.start * ldy + output;
  for (; row + TILE_ROWS <= end; row += TILE_ROWS)
    expand_rows<TILE_ROWS>(y + row * ldy, ldy, job.bridge + row * rank, columns, rank, here);
  for (; row < end; ++row) expand_rows<1>(y + row * ldy, ldy, job.bridge + row * rank, columns, rank, here);
}

template <typename T> struct Pointee;
template <typename T> struct Pointee<T *> { using Type = T; };

// Calls run with a null pointer to the dtype's C++ type.
template <typename F> INLINE void with_dtype(int dtype, F &&run) {
  if (dtype == 0) run((float *)nullptr);
  if (dtype == 1) run((Bfloat16 *)nullptr);
  if (dtype == 2) run((Float16 *)nullptr);
}

// The pairs that a step's segments name, and the first of their two products.
struct Jobs {
  Job *list;
  int64_t count = 0, bridge_size = 0, shrinks = 0;
  Tile *tiles = nullptr;

  explicit Jobs(Job *room) : list(room) {}

  void add(const Pair *pairs, const Segments &segments) {
    for (int64_t i = 0; i < segments.count; ++i) {
      const Pair &pair = pairs[segments.slots[i]];
      const int64_t rows = segments.ends[i] - segments.starts[i];
      if (pair.rank == 0 || rows <= 0) continue;
      list[count++] = {&pair, segments.starts[i], rows, nullptr};
      bridge_size += rows * pair.rank;
      shrinks += ceil_div(rows, SHRINK_ROWS) * ceil_div(pair.rank, SHRINK_RANKS);
    }
  }

  // Give every job its bridge, and list the tiles to be run before any expand.
  void plan_shrink() {
    static thread_local Scratch bridge_memory, tile_memory;
    float *bridge = bridge_memory.get<float>(bridge_size);
    Tile *next = tiles = tile_memory.get<Tile>(shrinks);
    for (int64_t i = 0; i < count; ++i) {
      list[i].bridge = bridge;
      bridge += list[i].rows * list[i].pair->rank;
      for (int64_t row = 0; row < list[i].rows; row += SHRINK_ROWS)
        for (int64_t rank = 0; rank < list[i].pair->rank; rank += SHRINK_RANKS)
          *next++ = {(int32_t)i, (int32_t)row, (int32_t)rank};
    }
  }

  void shrink_tile(int64_t i, const float *x, int64_t ldx, int64_t inputs) const {
    const Job &job = list[tiles[i].job];
    with_dtype(job.pair->dtype, [&](auto *type) {
      shrink<typename Pointee<decltype(type)>::Type>(x, ldx, inputs, job, tiles[i]);
    });
  }
};

void sgmm(float *y, int64_t ldy, const float *x, int64_t ldx, const Table &table, const Segments &segments) {
  static thread_local Scratch job_memory;
  Jobs jobs(job_memory.get<Job>(segments.count));
  jobs.add(table.pairs, segments);
  if (jobs.count == 0) return;
  jobs.plan_shrink();
  int64_t work = 0;
  for (int64_t i = 0; i < jobs.count; ++i)
    work += jobs.list[i].pair->rank * (table.inputs + table.outputs) * (1 + jobs.list[i].rows / 4);
  const int64_t strips = ceil_div(table.outputs, EXPAND_OUTPUTS);
  auto run_expand = [&](int64_t i) {
    const Job &job = jobs.list[i / strips];
    const int64_t output = i % strips * EXPAND_OUTPUTS, here = least(EXPAND_OUTPUTS, table.outputs - output);
    with_dtype(job.pair->dtype, [&](auto *type) {
      for (int64_t row = 0; row < job.rows; row += EXPAND_ROWS)
        expand<typename Pointee<decltype(type)>::Type>(y, ldy, output, here, job, row, least(row + EXPAND_ROWS, job.rows));
    });
  };
  const int threads = work < SERIAL_WORK ? 1 : omp_get_max_threads();
  if (threads == 1) {
    for (int64_t i = 0; i < jobs.shrinks; ++i) jobs.shrink_tile(i, x, ldx, table.inputs);
    for (int64_t i = 0; i < jobs.count * strips; ++i) run_expand(i);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < jobs.shrinks; ++i) jobs.shrink_tile(i, x, ldx, table.inputs);
#pragma omp for schedule(dynamic) nowait
    for (int64_t i = 0; i < jobs.count * strips; ++i) run_expand(i);
  }
}

}  // namespace

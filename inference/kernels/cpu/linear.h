// y_i = x @ W_i.T + bias_i, then every segment's low-rank product, for linears i that read the same x.
//
// A weight lies in panels of P outputs: [outputs / P][inputs][P], the last one filled up with zeros, in the dtype it came
// in, and is widened in registers. Threads take neighbouring panels. While a panel is multiplied, what the next one needs
// (its weights, its rows of every adapter's B) is fetched into the second-level cache, so that reading and arithmetic
// overlap. One (row, output) is always one chain of fused multiply-adds along k, however many rows share the step.
#pragma once
#include "sgmm.h"

namespace {

constexpr int P = 2 * W;                                       // outputs of a panel
constexpr int BLOCK = W == 16 ? 12 : W == 8 ? 6 : 4;           // rows whose sums stay in registers
constexpr int64_t CHUNK_ROWS = 240, CHUNK_INPUTS = 256;        // what of x stays in the cache while panels pass
constexpr int FETCH_EVERY = 8;                                 // inputs between two looks at what to fetch

#define INLINE_MEMBER inline __attribute__((always_inline))

struct Range {
  const char *from, *to;
};

// Memory that is needed soon, fetched a few lines at a time.
struct Ahead {
  const Range *next, *last;
  const char *at, *end;
  int lines;  // per look

  INLINE_MEMBER void look() {
    for (int i = 0; i < lines; ++i) {
      if (at >= end) {
        if (next == last) return;
        at = next->from, end = next->to, ++next;
      }
      __builtin_prefetch(at, 0, 2);
      at += 64;
    }
  }
};

// M rows of one panel: y = start, or what y holds, + sum over k.
template <int M, typename T>
INLINE void multiply(float *y, int64_t ldy, const float *x, int64_t ldx, const T *panel, int64_t inputs,
                     const float *start, int outputs, Ahead &ahead) {
  Vec sums[M][2];
  const int second = outputs - W;  // lanes in use of the second vector
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    const float *at = y + m * ldy;
    if (start) {
      sums[m][0] = load(start), sums[m][1] = load(start + W);
    } else if (second == W) {
      sums[m][0] = load(at), sums[m][1] = load(at + W);
    } else {
      sums[m][0] = load(at, (int)least(outputs, W)), sums[m][1] = second > 0 ? load(at + W, second) : zero();
    }
  }
  auto step = [&](int64_t k) __attribute__((always_inline)) {
    const Vec left = load(panel + k * P), right = load(panel + k * P + W);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const Vec value = all(x[m * ldx + k]);
      sums[m][0] = fma(value, left, sums[m][0]);
      sums[m][1] = fma(value, right, sums[m][1]);
    }
  };
  int64_t k = 0;
  for (; k + FETCH_EVERY <= inputs; k += FETCH_EVERY) {
    ahead.look();
    for (int i = 0; i < FETCH_EVERY; ++i) step(k + i);
  }
  for (; k < inputs; ++k) step(k);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    float *at = y + m * ldy;
    if (second == W) {
      store(at, sums[m][0]), store(at + W, sums[m][1]);
    } else {
      store(at, sums[m][0], (int)least(outputs, W));
      if (second > 0) store(at + W, sums[m][1], second);
    }
  }
}

template <int M = BLOCK, typename T>
INLINE void multiply_rows(int64_t rows, float *y, int64_t ldy, const float *x, int64_t ldx, const T *panel,
                          int64_t inputs, const float *start, int outputs, Ahead &ahead) {
  if constexpr (M > 0) {
    if (rows == M) return multiply<M>(y, ldy, x, ldx, panel, inputs, start, outputs, ahead);
    multiply_rows<M - 1>(rows, y, ldy, x, ldx, panel, inputs, start, outputs, ahead);
  }
}

// Rows in blocks as even as can be.
struct Blocks {
  int64_t rows, count;
  explicit Blocks(int64_t rows) : rows(rows), count(ceil_div(rows, BLOCK)) {}
  int64_t first(int64_t block) const { return rows * block / count; }
  int64_t size(int64_t block) const { return first(block + 1) - first(block); }
};

INLINE int64_t width(int dtype) { return dtype == 0 ? 4 : 2; }

// Where one panel of all parts lies.
struct Place {
  const Weights *part;
  int64_t index, output;
  int outputs;
};

struct Step {
  const Linear &linear;
  float *const *y;
  const float *x;
  int64_t ldx;
  const Job *jobs;
  const int64_t *first_job;  // of each part; one more at the end

  Place place(int64_t panel) const {
    int64_t index = 0;
    while (panel >= ceil_div(linear.parts[index].outputs, P)) panel -= ceil_div(linear.parts[index++].outputs, P);
    const Weights &part = linear.parts[index];
    return {&part, index, panel * P, (int)least(P, part.outputs - panel * P)};
  }

  const char *weights(const Place &at, int64_t k) const {
    return (const char *)at.part->panels + (at.output * linear.inputs + k * P) * width(at.part->dtype);
  }

  // What is read after inputs k to k + CHUNK_INPUTS of a panel: the next inputs' weights; at the end the adapters' rows
  // for this panel's outputs are read, and the next panel begins.
  Ahead fetch(int64_t panel, int64_t end, int64_t k, int64_t row, const Blocks &blocks, Range *ranges) const {
    int64_t n = 0, bytes = 0;
    auto add = [&](const char *from, int64_t size) {
      ranges[n++] = {from, from + size};
      bytes += size + 64;
    };
    const Place at = place(panel);
    const int64_t here = least(CHUNK_INPUTS, linear.inputs - k), after = k + here;
    if (after < linear.inputs) {
      add(weights(at, after), least(CHUNK_INPUTS, linear.inputs - after) * P * width(at.part->dtype));
    } else if (panel + 1 < end) {
      const Place next = place(panel + 1);
      add(weights(next, 0), least(CHUNK_INPUTS, linear.inputs) * P * width(next.part->dtype));
    }
    // each chunk of inputs fetches its share of the adapters
    const int64_t from = first_job[at.index], jobs_here = first_job[at.index + 1] - from;
    for (int64_t j = from + jobs_here * k / linear.inputs; j < from + jobs_here * after / linear.inputs; ++j) {
      if (jobs[j].start >= row + blocks.rows || jobs[j].start + jobs[j].rows <= row) continue;
      const Pair &pair = *jobs[j].pair;
      const int64_t line = pair.rank * width(pair.dtype);
      add((const char *)pair.b + at.output * line, at.outputs * line);
    }
    const int64_t looks = most(1, blocks.count * (here / FETCH_EVERY));
    return {ranges, ranges + n, nullptr, nullptr, (int)ceil_div(bytes / 64, looks)};
  }

  // Panels `begin` to `end` of a chunk's rows `row` to `row + blocks.rows`.
  void run(int64_t row, const Blocks &blocks, int64_t begin, int64_t end) const {
    static thread_local Scratch memory;
    Range *ranges = memory.get<Range>(first_job[linear.count] + 2);
    for (int64_t panel = begin; panel < end; ++panel) {
      const Place at = place(panel);
      float *out = y[at.index] + row * at.part->outputs + at.output;
      for (int64_t k = 0; k < linear.inputs; k += CHUNK_INPUTS) {
        const int64_t inputs = least(CHUNK_INPUTS, linear.inputs - k);
        Ahead ahead = fetch(panel, end, k, row, blocks, ranges);
        with_dtype(at.part->dtype, [&](auto *type) {
          const auto *weights = (decltype(type))this->weights(at, k);
          for (int64_t block = 0; block < blocks.count; ++block)
            multiply_rows(blocks.size(block), out + blocks.first(block) * at.part->outputs, at.part->outputs,
                          x + (row + blocks.first(block)) * ldx + k, ldx, weights, inputs,
                          k ? nullptr : at.part->bias + at.output, at.outputs, ahead);
        });
      }
      adapt(at, row, blocks.rows);
    }
  }

  // Add the adapters' products to the panel's outputs of rows `row` to `row + here`.
  void adapt(const Place &at, int64_t row, int64_t here) const {
    for (int64_t j = first_job[at.index]; j < first_job[at.index + 1]; ++j) {
      const Job &job = jobs[j];
      const int64_t from = most(job.start, row), to = least(job.start + job.rows, row + here);
      if (from >= to) continue;
      with_dtype(job.pair->dtype, [&](auto *type) {
        using T = typename Pointee<decltype(type)>::Type;
        expand<T>(y[at.index], at.part->outputs, at.output, at.outputs, job, from - job.start, to - job.start);
      });
    }
  }
};

void linear(float *const *y, const float *x, int64_t ldx, int64_t rows, const Linear &linear, const Segments &segments) {
  static thread_local Scratch first_memory, job_memory;
  int64_t *first = first_memory.get<int64_t>(linear.count + 1);
  Jobs jobs(job_memory.get<Job>(linear.count * segments.count));
  int64_t panels = 0;
  for (int64_t i = 0; i < linear.count; ++i) {
    first[i] = jobs.count;
    panels += ceil_div(linear.parts[i].outputs, P);
    if (linear.parts[i].pairs) jobs.add(linear.parts[i].pairs, segments);
  }
  first[linear.count] = jobs.count;
  jobs.plan_shrink();
  const Step step{linear, y, x, ldx, jobs.list, first};
  const int threads = panels * P * linear.inputs < SERIAL_WORK ? 1 : (int)least(omp_get_max_threads(), panels);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
    if (jobs.shrinks) {
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < jobs.shrinks; ++i) jobs.shrink_tile(i, x, ldx, linear.inputs);
    }
    for (int64_t row = 0; row < rows; row += CHUNK_ROWS)
      step.run(row, Blocks(least(CHUNK_ROWS, rows - row)), panels * me / all, panels * (me + 1) / all);
  }
}

}  // namespace

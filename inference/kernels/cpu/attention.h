// out[t, h] = softmax(scale * q[t, h] . K) V, flat batch, keys and values read in place from their blocks.
//
// A task is some query rows (token, head) that share one kv head of one sequence. It walks that sequence's keys in tiles
// of KEYS, always aligned to key 0, with an online softmax. Keys are transposed once per tile, so that vectors run along
// keys for the scores and along dim for the values, and each (row, key) and (row, dim) is summed in one fixed order:
// a row's result is the same alone, in a batch, or in another chunk of its prompt.
#pragma once
#include <omp.h>

#include "kernels.h"
#include "vector.h"

namespace {

constexpr int KEYS = 64, ROWS = 64;        // keys per tile, query rows per task
constexpr int STRIPS = W == 16 ? 4 : 2;    // vectors per register tile
constexpr int REGISTER_ROWS = W == 4 ? 2 : 4;
constexpr int PACKED_FROM = 8;             // rows from which a copy of the values, contiguous, pays
constexpr int64_t SERIAL_ATTENTION = 1 << 17;  // multiply-adds, some 20 us; below it one thread does all

struct Task {
  int32_t sequence, token, tokens, head, heads;  // tokens and heads: the rows of this task; head: the first, of q
};

struct Buffers {
  float *q, *keys, *scores, *out, *values, *rows, *top, *sum;
  static int64_t padded(int64_t dim) { return ceil_div(dim, W * STRIPS) * W * STRIPS; }
  static int64_t size(int64_t dim) { return padded(dim) * (2 * ROWS + 2 * KEYS + W) + W * W + KEYS * ROWS + 2 * ROWS; }
  Buffers(float *memory, int64_t dim) {
    const int64_t wide = padded(dim);
    q = memory;
    out = q + ROWS * wide;
    keys = out + ROWS * wide;
    values = keys + KEYS * wide;
    scores = values + KEYS * wide;
    rows = scores + KEYS * ROWS;
    top = rows + W * (wide + W);
    sum = top + ROWS;
  }
};

// The blocks of one kv head of one sequence.
struct Cached {
  const Attention &a;
  const int32_t *table;
  int64_t head;
  int64_t offset(int64_t at) const { return table[at / a.block_size] * a.block + at % a.block_size * a.token + head; }
  void prefetch(int64_t at) const {
    const int64_t from = offset(at);
    for (int64_t d = 0; d < a.dim; d += 16) {
      __builtin_prefetch(a.keys + from + d, 0, 2);
      __builtin_prefetch(a.values + from + d, 0, 2);
    }
  }
};

// to[d * KEYS + i] = key `at + i`'s d for W keys, zeros from `end` on. Rows are copied first: heads of many tokens lie
// powers of two apart, in the same few sets of the cache.
INLINE void transpose_keys(const Cached &cached, int64_t at, int64_t end, float *copy, int64_t wide, float *to) {
  const float *rows[W];
  for (int i = 0; i < W; ++i) {
    float *row = copy + i * (wide + W);
    if (at + i < end)
      memcpy(row, cached.a.keys + cached.offset(at + i), cached.a.dim * sizeof(float));
    else
      memset(row, 0, cached.a.dim * sizeof(float));
    rows[i] = row;
  }
  transpose(rows, cached.a.dim, to, KEYS);
}

// scores[m][i] = q[m] . keys[:, i] for N * W keys
template <int M, int N>
INLINE void score_tile(const float *q, int64_t wide, const float *keys, int64_t dim, float *scores) {
  Vec sums[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = zero();
  for (int64_t d = 0; d < dim; ++d) {
    Vec right[N];
    for (int n = 0; n < N; ++n) right[n] = load(keys + d * KEYS + n * W);
    for (int m = 0; m < M; ++m) {
      const Vec left = all(q[m * wide + d]);
      for (int n = 0; n < N; ++n) sums[m][n] = fma(left, right[n], sums[m][n]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) store(scores + m * KEYS + n * W, sums[m][n]);
}

template <int M>
INLINE void score_rows(const float *q, int64_t wide, const float *keys, int64_t dim, int vectors, float *scores) {
  int n = 0;
  for (; n + STRIPS <= vectors; n += STRIPS) score_tile<M, STRIPS>(q, wide, keys + n * W, dim, scores + n * W);
  for (; n < vectors; ++n) score_tile<M, 1>(q, wide, keys + n * W, dim, scores + n * W);
}

// out[m] += sum over keys of weights[m][key] * values[key], N * W of dim
template <int M, int N>
INLINE void mix_tile(const float *weights, const float *const *values, int64_t d, int count, float *out, int64_t wide) {
  Vec sums[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) sums[m][n] = load(out + m * wide + d + n * W);
  for (int key = 0; key < count; ++key) {
    Vec right[N];
    for (int n = 0; n < N; ++n) right[n] = load(values[key] + d + n * W);
    for (int m = 0; m < M; ++m) {
      const Vec left = all(weights[m * KEYS + key]);
      for (int n = 0; n < N; ++n) sums[m][n] = fma(left, right[n], sums[m][n]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) store(out + m * wide + d + n * W, sums[m][n]);
}

template <int M>
INLINE void mix_rows(const float *weights, const float *const *values, int64_t dim, int count, float *out, int64_t wide) {
  int64_t d = 0;
  for (; d + STRIPS * W <= dim; d += STRIPS * W) mix_tile<M, STRIPS>(weights, values, d, count, out, wide);
  for (; d < dim; d += W) mix_tile<M, 1>(weights, values, d, count, out, wide);
}

// One row, one tile: scores become weights against the row's running maximum; keys outside [low, high) weigh nothing.
INLINE void weigh(float *scores, int vectors, int low, int high, float scale, float softcap, float &top_score, float &total,
                  float *out, int64_t wide) {
  if (low >= high) {
    for (int n = 0; n < vectors; ++n) store(scores + n * W, zero());
    return;
  }
  for (int n = 0; n < vectors; ++n) {
    Vec s = mul(load(scores + n * W), all(scale));
    if (softcap != 0) s = mul(tanh(div(s, all(softcap))), all(softcap));
    store(scores + n * W, s);
  }
  for (int i = 0; i < low; ++i) scores[i] = -__builtin_inff();
  for (int i = high; i < vectors * W; ++i) scores[i] = -__builtin_inff();
  Vec highest = all(top_score);
  for (int n = 0; n < vectors; ++n) highest = max(highest, load(scores + n * W));
  const float now = top(highest);
  if (now > top_score) {
    const Vec fade = exp(all(top_score - now));
    for (int64_t d = 0; d < wide; d += W) store(out + d, mul(load(out + d), fade));
    float lanes[W];
    store(lanes, fade);
    total *= lanes[0];
    top_score = now;
  }
  Vec sums = zero();
  for (int n = 0; n < vectors; ++n) {
    const Vec weight = exp(sub(load(scores + n * W), all(now)));
    store(scores + n * W, weight);
    sums = add(sums, weight);
  }
  total += sum(sums);
}

void attend_task(const Attention &a, const Task &task) {
  static thread_local Scratch scratch;
  const int64_t wide = Buffers::padded(a.dim);
  const Buffers buffer(scratch.get<float>(Buffers::size(a.dim)), a.dim);
  const int rows = task.tokens * task.heads;
  const int64_t first_row = a.starts[task.sequence] + task.token;
  const int64_t queries = a.starts[task.sequence + 1] - a.starts[task.sequence];
  const int64_t first_at = a.contexts[task.sequence] - queries + task.token;  // position of the task's first token
  const int64_t kv_head = task.head / (a.heads / a.kv_heads);
  const Cached cached{a, a.tables + task.sequence * a.table_width, kv_head * a.head};

  for (int r = 0; r < rows; ++r) {
    memcpy(buffer.q + r * wide,
           a.q + (first_row + r / task.heads) * a.q_token + (task.head + r % task.heads) * a.q_head,
           a.dim * sizeof(float));
    buffer.top[r] = -__builtin_inff();
    buffer.sum[r] = 0;
  }
  memset(buffer.out, 0, rows * wide * sizeof(float));

  const bool packed = rows >= PACKED_FROM || a.dim % W != 0;
  const int64_t end = first_at + task.tokens;
  const int64_t begin = a.window ? most(0, first_at - a.window + 1) / KEYS * KEYS : 0;
  for (int64_t tile = begin; tile < end; tile += KEYS) {
    const int count = (int)least(KEYS, end - tile), vectors = (int)ceil_div(count, W);
    for (int n = 0; n < vectors; ++n) {
      transpose_keys(cached, tile + n * W, end, buffer.rows, wide, buffer.keys + n * W);
      for (int64_t next = tile + KEYS + n * W; next < least(tile + KEYS + n * W + W, end); ++next) cached.prefetch(next);
    }
    const float *values[KEYS];
    for (int i = 0; i < count; ++i) {
      values[i] = a.values + cached.offset(tile + i);
      if (!packed) continue;
      memcpy(buffer.values + i * wide, values[i], a.dim * sizeof(float));
      memset(buffer.values + i * wide + a.dim, 0, (wide - a.dim) * sizeof(float));
      values[i] = buffer.values + i * wide;
    }

    int r = 0;
    for (; r + REGISTER_ROWS <= rows; r += REGISTER_ROWS)
      score_rows<REGISTER_ROWS>(buffer.q + r * wide, wide, buffer.keys, a.dim, vectors, buffer.scores + r * KEYS);
    for (; r < rows; ++r) score_rows<1>(buffer.q + r * wide, wide, buffer.keys, a.dim, vectors, buffer.scores + r * KEYS);

    for (r = 0; r < rows; ++r) {
      const int64_t at = first_at + r / task.heads;
      const int64_t low = a.window ? at - a.window + 1 - tile : 0, high = at + 1 - tile;
      weigh(buffer.scores + r * KEYS, vectors, (int)most(low, 0), (int)least(high, count), a.scale, a.softcap,
            buffer.top[r], buffer.sum[r], buffer.out + r * wide, wide);
    }

    r = 0;
    for (; r + REGISTER_ROWS <= rows; r += REGISTER_ROWS)
      mix_rows<REGISTER_ROWS>(buffer.scores + r * KEYS, values, a.dim, count, buffer.out + r * wide, wide);
    for (; r < rows; ++r) mix_rows<1>(buffer.scores + r * KEYS, values, a.dim, count, buffer.out + r * wide, wide);
  }

  for (int r = 0; r < rows; ++r) {
    float *to = a.out + ((first_row + r / task.heads) * a.heads + task.head + r % task.heads) * a.dim;
    const float *from = buffer.out + r * wide;
    for (int64_t d = 0; d < a.dim; ++d) to[d] = from[d] / buffer.sum[r];
  }
}

// Heads of one kv head together, as many tokens as fill ROWS; the last chunks of a prompt, which are longest, first.
int64_t plan(const Attention &a, Task *tasks) {
  const int64_t group = a.heads / a.kv_heads, heads = least(group, ROWS), tokens = most(1, ROWS / heads);
  int64_t count = 0;
  for (int64_t s = 0; s < a.sequences; ++s) {
    const int64_t queries = a.starts[s + 1] - a.starts[s];
    for (int64_t token = (ceil_div(queries, tokens) - 1) * tokens; token >= 0; token -= tokens)
      for (int64_t kv = 0; kv < a.kv_heads; ++kv)
        for (int64_t head = 0; head < group; head += heads, ++count)
          if (tasks)
            tasks[count] = {(int32_t)s, (int32_t)token, (int32_t)least(tokens, queries - token),
                            (int32_t)(kv * group + head), (int32_t)least(heads, group - head)};
  }
  return count;
}

void attend(const Attention &a) {
  static thread_local Scratch task_memory;
  const int64_t count = plan(a, nullptr);
  Task *const tasks = task_memory.get<Task>(count);
  plan(a, tasks);
  int64_t work = 0;
  for (int64_t s = 0; s < a.sequences; ++s) work += (int64_t)(a.starts[s + 1] - a.starts[s]) * a.contexts[s];
  const int threads = work * a.heads * a.dim < SERIAL_ATTENTION ? 1 : omp_get_max_threads();
  if (threads == 1) {
    for (int64_t i = 0; i < count; ++i) attend_task(a, tasks[i]);
    return;
  }
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t i = 0; i < count; ++i) attend_task(a, tasks[i]);
}

}  // namespace

// The kernels of `kernels.py` as one pass over memory each, compiled on first use by `native.py`.
//
// All arrays are float32, contiguous, row-major. Each function works on rows (or batch elements) [begin, end), so
// that a caller can split the work. Loops are plain, for the compiler to vectorise; only `tile` spells vectors out.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "native.h"

namespace {

typedef float Lanes __attribute__((vector_size(32)));
typedef float Unaligned __attribute__((vector_size(32), aligned(4), may_alias));

// c[m, 8 n] = (add ? c : 0) + a[m, k] b[k, 8 n], held in registers: a is read by strides, b and c by rows.
template <int M, int N>
__attribute__((always_inline)) inline void tile(const float* a, long a_row, long a_col, const float* b, long b_row, float* c, long c_row, long k,
                 bool add) {
    Lanes sum[M][N];
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) sum[i][j] = add ? Lanes(*(const Unaligned*)(c + i * c_row + 8 * j)) : Lanes{};
    for (long p = 0; p < k; p++) {
        Lanes right[N];
        for (int j = 0; j < N; j++) right[j] = *(const Unaligned*)(b + p * b_row + 8 * j);
        for (int i = 0; i < M; i++) {
            const float left = a[i * a_row + p * a_col];
            for (int j = 0; j < N; j++) sum[i][j] += left * right[j];
        }
    }
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) *(Unaligned*)(c + i * c_row + 8 * j) = sum[i][j];
}

template <int N>
inline void columns(long m, long k, const float* a, long a_row, long a_col, const float* b, long b_row, float* c,
                    long c_row, bool add) {
    long i = 0;
    for (; i + 6 <= m; i += 6) tile<6, N>(a + i * a_row, a_row, a_col, b, b_row, c + i * c_row, c_row, k, add);
    for (; i + 2 <= m; i += 2) tile<2, N>(a + i * a_row, a_row, a_col, b, b_row, c + i * c_row, c_row, k, add);
    for (; i < m; i++) tile<1, N>(a + i * a_row, a_row, a_col, b, b_row, c + i * c_row, c_row, k, add);
}

// c[m, n] = (add ? c : 0) + a[m, k] b[k, n] with n a multiple of 8.
void product(long m, long n, long k, const float* a, long a_row, long a_col, const float* b, long b_row, float* c,
             long c_row, bool add = false) {
    long j = 0;
    for (; j + 16 <= n; j += 16) columns<2>(m, k, a, a_row, a_col, b + j, b_row, c + j, c_row, add);
    for (; j < n; j += 8) columns<1>(m, k, a, a_row, a_col, b + j, b_row, c + j, c_row, add);
}

// Attention works on tiles of LANES pairs (position, query head): the heads that share a key-value head, at some
// consecutive positions. Arrays of a tile are [D or keys, LANES], so that softmax needs no sums across a vector.
constexpr long LANES = 32;

inline void transpose8(Lanes* x) {
    Lanes y[8];
    for (int i = 0; i < 8; i += 2) {
        y[i] = __builtin_shufflevector(x[i], x[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
        y[i + 1] = __builtin_shufflevector(x[i], x[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = __builtin_shufflevector(y[i + j], y[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            x[i + 2 * j + 1] = __builtin_shufflevector(y[i + j], y[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        y[i] = __builtin_shufflevector(x[i], x[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
        y[i + 4] = __builtin_shufflevector(x[i], x[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    std::copy_n(y, 8, x);
}

// out [D, LANES] from a row of D for each lane, and back.
inline void to_lanes(float* const* rows, long D, float* out) {
    for (long lane = 0; lane < LANES; lane += 8) {
        long i = 0;
        for (; i + 8 <= D; i += 8) {
            Lanes x[8];
            for (int j = 0; j < 8; j++) x[j] = *(const Unaligned*)(rows[lane + j] + i);
            transpose8(x);
            for (int j = 0; j < 8; j++) *(Unaligned*)(out + (i + j) * LANES + lane) = x[j];
        }
        for (; i < D; i++)
            for (int j = 0; j < 8; j++) out[i * LANES + lane + j] = rows[lane + j][i];
    }
}

inline void from_lanes(const float* in, long D, float* const* rows) {
    for (long lane = 0; lane < LANES; lane += 8) {
        long i = 0;
        for (; i + 8 <= D; i += 8) {
            Lanes x[8];
            for (int j = 0; j < 8; j++) x[j] = *(const Unaligned*)(in + (i + j) * LANES + lane);
            transpose8(x);
            for (int j = 0; j < 8; j++) *(Unaligned*)(rows[lane + j] + i) = x[j];
        }
        for (; i < D; i++)
            for (int j = 0; j < 8; j++) rows[lane + j][i] = in[i * LANES + lane + j];
    }
}

// Rotary turn of n numbers each of the two halves (RoFormer, arXiv 2104.09864, eq. 34); `sign` -1 turns back.
inline void turn(const float* first, const float* second, const float* cos, const float* sin, long n, float scale,
                 float sign, float* out_first, float* out_second) {
#pragma omp simd
    for (long i = 0; i < n; i++) {
        const float a = first[i], b = second[i];
        out_first[i] = scale * (a * cos[i] - sign * b * sin[i]);
        out_second[i] = scale * (b * cos[i] + sign * a * sin[i]);
    }
}

// One batch element and one key-value head at a time, G query heads; `window` > 0 keys are seen, or all. With
// `starts` [B, T], which never falls along a row, position t sees no key before starts[t].
struct Head {
    long T, D, G, window, row, positions, wide, queries, keys_at, values_at;
    const float *qkv, *cos, *sin;
    const int64_t *starts, *first_of;
    std::vector<float> keys, values, tables, query, scores, spare;
    float* rows[LANES];

    Head(const float* qkv, const float* cos, const float* sin, const int64_t* starts, long T, long H, long K, long D,
         long window)
        : T(T), D(D), G(H / K), window(window), row((H + 2 * K) * D), positions(LANES / G), wide((D + 7) / 8 * 8),
          qkv(qkv), cos(cos), sin(sin), starts(starts), first_of(nullptr), keys(T * wide), values(T * wide),
          tables((T + positions - 1) / positions * D * LANES), query(D * LANES), scores(T * LANES), spare(wide) {
        for (long t = 0; t < T; t++)
            for (long i = 0; i < D / 2; i++)
                for (long g = 0; g < G; g++) {
                    float* table = &tables[t / positions * D * LANES + i * LANES + t % positions * G + g];
                    table[0] = cos[t * D + i];
                    table[D / 2 * LANES] = sin[t * D + i];
                }
    }

    void open(long b, long head, long H, long K) {
        if (starts) first_of = starts + b * T;
        queries = b * T * row + head * G * D;
        keys_at = b * T * row + (H + head) * D;
        values_at = keys_at + K * D;
        for (long t = 0; t < T; t++) {
            turn_key(qkv + keys_at + t * row, t, 1.0f, &keys[t * wide]);
            std::copy_n(qkv + values_at + t * row, D, &values[t * wide]);
        }
    }

    void turn_key(const float* x, long t, float sign, float* out) const {
        turn(x, x + D / 2, cos + t * D, sin + t * D, D / 2, 1.0f, sign, out, out + D / 2);
    }

    // In place: the tile's [D, LANES] at `start`, times the softmax's scale.
    void turn_tile(long start, float sign, float* x) const {
        const float* table = &tables[start / positions * D * LANES];
        const long n = D / 2 * LANES;
        turn(x, x + n, table, table + n, n, 1.0f / std::sqrt(float(D)), sign, x, x + n);
    }

    // The row of each lane in an array whose position t has its heads' D numbers at base + t * step; lanes that are
    // left over share a row that nobody reads.
    float* const* rows_of(const float* base, long step, long start) {
        std::fill(rows, rows + LANES, spare.data());
        for (long t = start; t < last(start); t++)
            for (long g = 0; g < G; g++) rows[(t - start) * G + g] = const_cast<float*>(base) + t * step + g * D;
        return rows;
    }

    long first_key(long start) const {
        const long seen = window ? std::max(0L, start - window + 1) : 0;
        return first_of ? std::max(seen, long(first_of[start])) : seen;
    }
    long last(long start) const { return std::min(T, start + positions); }

    // Scores [keys first..last, LANES] of the positions from `start`, before masking.
    void score(long start) {
        to_lanes(rows_of(qkv + queries, row, start), D, query.data());
        turn_tile(start, 1.0f, query.data());
        const long from = first_key(start);
        product(last(start) - from, LANES, D, &keys[from * wide], wide, 1, query.data(), LANES, scores.data(), LANES);
    }

    // Lanes [begin, end) of a tile that may look at `key`.
    void visible(long start, long key, long& begin, long& end) const {
        begin = std::max(0L, key - start) * G;
        end = window ? std::min(LANES, std::max(0L, key + window - start) * G) : LANES;
        if (!first_of) return;
        long t = last(start);
        if (first_of[t - 1] <= key) return;
        while (t > start && first_of[t - 1] > key) t--;
        end = std::min(end, (t - start) * G);
    }
};

// Rows whose gradients to a weight are summed together, as in `native.py`.
constexpr long BLOCK = 256;

}  // namespace

extern "C" {

// out = x / rms(x) * weight and scale = 1 / rms(x), row by row; x [n, d]. With `other`, x is their sum, kept in
// `total`.
void rms_norm(long begin, long end, const float* x, const float* other, const float* weight, float* total, float* out,
              float* scale, long d, float eps) {
    for (long n = begin; n < end; n++) {
        const float* row = x + n * d;
        if (other) {
            for (long i = 0; i < d; i++) total[n * d + i] = row[i] + other[n * d + i];
            row = total + n * d;
        }
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (long i = 0; i < d; i++) squares += row[i] * row[i];
        const float s = scale[n] = 1.0f / std::sqrt(squares / d + eps);
        for (long i = 0; i < d; i++) out[n * d + i] = row[i] * s * weight[i];
    }
}

// Gradients to x [rows, d] (plus `direct`, if any) and to weight; the latter a sum for each BLOCK of rows. Range: of
// blocks.
void rms_norm_back(long begin, long end, const float* grad, const float* direct, const float* x, const float* weight,
                   const float* scale, float* to_x, float* to_weight, long rows, long d) {
    std::fill(to_weight + begin * d, to_weight + end * d, 0.0f);
    for (long n = begin * BLOCK; n < std::min(end * BLOCK, rows); n++) {
        const float *row = x + n * d, *g = grad + n * d, s = scale[n];
        float *sum = to_weight + n / BLOCK * d, *to = to_x + n * d, along = 0;
#pragma omp simd reduction(+ : along)
        for (long i = 0; i < d; i++) along += g[i] * weight[i] * row[i];
        const float slope = along * s * s / d;
#pragma omp simd
        for (long i = 0; i < d; i++) {
            sum[i] += g[i] * row[i] * s;
            to[i] = s * (g[i] * weight[i] - row[i] * slope);
        }
        if (direct)
            for (long i = 0; i < d; i++) to[i] += direct[n * d + i];
    }
}

// out [n, f] = silu(gate) * up for x [n, 2 f] = gate, up.
void swiglu(long begin, long end, const float* x, float* out, long f) {
    for (long n = begin; n < end; n++) {
        const float *gate = x + 2 * n * f, *up = gate + f;
#pragma omp simd
        for (long i = 0; i < f; i++) out[n * f + i] = gate[i] * sigmoid(gate[i]) * up[i];
    }
}

void swiglu_back(long begin, long end, const float* grad, const float* x, float* to_x, long f) {
    for (long n = begin; n < end; n++) {
        const float *gate = x + 2 * n * f, *up = gate + f, *g = grad + n * f;
        float *to_gate = to_x + 2 * n * f, *to_up = to_gate + f;
#pragma omp simd
        for (long i = 0; i < f; i++) {
            const float s = sigmoid(gate[i]);
            to_gate[i] = g[i] * up[i] * s * (1.0f + gate[i] * (1.0f - s));
            to_up[i] = g[i] * gate[i] * s;
        }
    }
}

// In place: logits [n, v] become exp(logit - max) and total [n] their sum; chosen [n] is log softmax at target [n],
// log_z [n] the log of its denominator.
void log_softmax(long begin, long end, float* logits, const int64_t* target, float* total, float* chosen, float* log_z,
                 long v) {
    for (long n = begin; n < end; n++) {
        float* row = logits + n * v;
        const float at_target = row[target[n]];
        float top = row[0], sum = 0;
#pragma omp simd reduction(max : top)
        for (long i = 0; i < v; i++) top = std::max(top, row[i]);
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < v; i++) sum += row[i] = exponential(row[i] - top);
        total[n] = sum;
        log_z[n] = top + std::log(sum);
        chosen[n] = at_target - log_z[n];
    }
}

// In place: what `log_softmax` left becomes the gradient to the logits, given those to chosen and to log_z.
void log_softmax_back(long begin, long end, const float* grad, const float* to_log_z, const int64_t* target,
                      const float* total, float* exps, long v) {
    for (long n = begin; n < end; n++) {
        float* row = exps + n * v;
        const float factor = (to_log_z[n] - grad[n]) / total[n];
        for (long i = 0; i < v; i++) row[i] *= factor;
        row[target[n]] += grad[n];
    }
}

// Causal attention with rotary positions over qkv [B, T, (H + 2 K) D]: out [B, T, H D], and log_sum [B, K, tiles,
// LANES] of the exponentials, which the gradient needs. `window` > 0: that many keys are seen; `starts` [B, T], if any:
// the first key that a position sees. Range: of B.
void attention(long begin, long end, const float* qkv, const float* cos, const float* sin, const int64_t* starts,
               float* out, float* log_sum, long T, long H, long K, long D, long window) {
    Head head(qkv, cos, sin, starts, T, H, K, D, window);
    const long tiles = (T + head.positions - 1) / head.positions;
    std::vector<float> mixed(D * LANES);
    for (long b = begin; b < end; b++)
        for (long k = 0; k < K; k++) {
            head.open(b, k, H, K);
            for (long start = 0; start < T; start += head.positions) {
                head.score(start);
                const long from = head.first_key(start), stop = head.last(start);
                float top[LANES], sum[LANES] = {};
                std::fill(top, top + LANES, -INFINITY);
                for (long key = from; key < stop; key++) {
                    float* s = &head.scores[(key - from) * LANES];
                    long first, last;
                    head.visible(start, key, first, last);
                    std::fill(s, s + first, -INFINITY);
                    std::fill(s + last, s + LANES, -INFINITY);
#pragma omp simd
                    for (long i = 0; i < LANES; i++) top[i] = s[i] > top[i] ? s[i] : top[i];
                }
                for (long key = from; key < stop; key++) {
                    float* s = &head.scores[(key - from) * LANES];
#pragma omp simd
                    for (long i = 0; i < LANES; i++) s[i] = exponential(s[i] - top[i]);
                    for (long i = 0; i < LANES; i++) sum[i] += s[i];
                }
                product(D, LANES, stop - from, &head.values[from * head.wide], 1, head.wide, head.scores.data(), LANES,
                        mixed.data(), LANES);
                float* kept = log_sum + ((b * K + k) * tiles + start / head.positions) * LANES;
                for (long i = 0; i < LANES; i++) kept[i] = top[i] + std::log(sum[i]);
                for (long i = 0; i < LANES; i++) sum[i] = 1.0f / sum[i];
                for (long d = 0; d < D; d++)
                    for (long i = 0; i < LANES; i++) mixed[d * LANES + i] *= sum[i];
                from_lanes(mixed.data(), D, head.rows_of(out + b * T * H * D + k * head.G * D, H * D, start));
            }
        }
}

// Gradient to qkv, by making the weights of the forward pass again (Dao, arXiv 2307.08691, algorithm 2).
void attention_back(long begin, long end, const float* grad, const float* qkv, const float* cos, const float* sin,
                    const int64_t* starts, const float* log_sum, float* to_qkv, long T, long H, long K, long D,
                    long window) {
    Head head(qkv, cos, sin, starts, T, H, K, D, window);
    const long G = head.G, W = head.wide, tiles = (T + head.positions - 1) / head.positions;
    std::vector<float> to_keys(T * W), to_values(T * W), to_scores(T * LANES), given(D * LANES), to_query(D * LANES),
        given_rows(LANES * W), query_rows(LANES * W);
    float* row_of[LANES];
    for (long i = 0; i < LANES; i++) row_of[i] = &query_rows[i * W];
    for (long b = begin; b < end; b++)
        for (long k = 0; k < K; k++) {
            head.open(b, k, H, K);
            std::fill(to_keys.begin(), to_keys.end(), 0.0f);
            std::fill(to_values.begin(), to_values.end(), 0.0f);
            for (long start = 0; start < T; start += head.positions) {
                head.score(start);
                from_lanes(head.query.data(), D, row_of);
                const long from = head.first_key(start), stop = head.last(start), n = stop - from;
                float* const* rows = head.rows_of(grad + b * T * H * D + k * G * D, H * D, start);
                to_lanes(rows, D, given.data());
                for (long i = 0; i < (stop - start) * G; i++) std::copy_n(rows[i], D, &given_rows[i * W]);
                product(n, LANES, D, &head.values[from * W], W, 1, given.data(), LANES, to_scores.data(), LANES);
                const float* known = log_sum + ((b * K + k) * tiles + start / head.positions) * LANES;
                float shift[LANES] = {};
                for (long key = from; key < stop; key++) {
                    float *s = &head.scores[(key - from) * LANES], *to_s = &to_scores[(key - from) * LANES];
                    long first, last;
                    head.visible(start, key, first, last);
#pragma omp simd
                    for (long i = 0; i < LANES; i++) s[i] = exponential(s[i] - known[i]);
                    std::fill(s, s + first, 0.0f);
                    std::fill(s + last, s + LANES, 0.0f);
                    for (long i = 0; i < LANES; i++) shift[i] += s[i] * to_s[i];
                }
                for (long key = 0; key < n; key++) {
                    float *s = &head.scores[key * LANES], *to_s = &to_scores[key * LANES];
                    for (long i = 0; i < LANES; i++) to_s[i] = s[i] * (to_s[i] - shift[i]);
                }
                const long used = (stop - start) * G;
                product(n, W, used, head.scores.data(), LANES, 1, given_rows.data(), W, &to_values[from * W], W, true);
                product(n, W, used, to_scores.data(), LANES, 1, query_rows.data(), W, &to_keys[from * W], W, true);
                product(D, LANES, n, &head.keys[from * W], 1, W, to_scores.data(), LANES, to_query.data(), LANES);
                head.turn_tile(start, -1.0f, to_query.data());
                from_lanes(to_query.data(), D, head.rows_of(to_qkv + head.queries, head.row, start));
            }
            for (long t = 0; t < T; t++) {
                head.turn_key(&to_keys[t * W], t, -1.0f, to_qkv + head.keys_at + t * head.row);
                std::copy_n(&to_values[t * W], D, to_qkv + head.values_at + t * head.row);
            }
        }
}
}

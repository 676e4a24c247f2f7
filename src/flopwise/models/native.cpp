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
inline void tile(const float* a, long a_row, long a_col, const float* b, long b_row, float* c, long c_row, long k,
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

// Rotary turn of one head's x[D] by row `cos`, `sin`; `sign` -1 turns back.
inline void turn(const float* x, const float* cos, const float* sin, long D, float scale, float sign, float* out) {
    const long half = D / 2;
    for (long i = 0; i < half; i++) {
        out[i] = scale * (x[i] * cos[i] - sign * x[i + half] * sin[i]);
        out[i + half] = scale * (x[i + half] * cos[i + half] + sign * x[i] * sin[i + half]);
    }
}

// Attention of one batch element and one key-value head: G query heads share K keys and values of T positions.
// Lanes are the pairs (position, query head) of some consecutive positions; scores are [keys, lanes], so that
// softmax needs no sums across a vector.
constexpr long LANES = 32;

struct Head {
    long T, D, G, window, row, queries, keys_at, values_at;
    const float *qkv, *cos, *sin;
    long positions, wide;
    std::vector<float> keys, values, query, query_rows, scores;

    Head(const float* qkv, const float* cos, const float* sin, long T, long H, long K, long D, long window)
        : T(T), D(D), G(H / K), window(window), row((H + 2 * K) * D), qkv(qkv), cos(cos), sin(sin),
          positions(LANES / G), wide((D + 7) / 8 * 8), keys(T * wide), values(T * wide), query(D * LANES),
          query_rows(LANES * wide), scores(T * LANES) {}

    void open(long b, long head, long H, long K) {
        queries = b * T * row + head * G * D;
        keys_at = b * T * row + (H + head) * D;
        values_at = keys_at + K * D;
        for (long t = 0; t < T; t++) {
            turn(qkv + keys_at + t * row, cos + t * D, sin + t * D, D, 1.0f, 1.0f, &keys[t * wide]);
            std::copy_n(qkv + values_at + t * row, D, &values[t * wide]);
        }
    }

    long first_key(long start) const { return window ? std::max(0L, start - window + 1) : 0; }
    long last(long start) const { return std::min(T, start + positions); }

    // Scores [keys, LANES] of the positions from `start`, before masking.
    void score(long start) {
        const float scale = 1.0f / std::sqrt(float(D));
        for (long t = start; t < last(start); t++)
            for (long g = 0; g < G; g++) {
                const long lane = (t - start) * G + g;
                float* rows = &query_rows[lane * wide];
                turn(qkv + queries + t * row + g * D, cos + t * D, sin + t * D, D, scale, 1.0f, rows);
                for (long i = 0; i < D; i++) query[i * LANES + lane] = rows[i];
            }
        const long from = first_key(start);
        product(last(start) - from, LANES, D, &keys[from * wide], wide, 1, query.data(), LANES, scores.data(), LANES);
    }

    // Lanes [begin, end) of a tile that may look at `key`.
    void visible(long start, long key, long& begin, long& end) const {
        begin = std::max(0L, key - start) * G;
        end = window ? std::min(LANES, std::max(0L, key + window - start) * G) : LANES;
    }
};

// Rows whose gradients to a weight are summed together, as in `native.py`.
constexpr long BLOCK = 256;

}  // namespace

extern "C" {

// out = x / rms(x) * weight and scale = 1 / rms(x), row by row; x [n, d].
void rms_norm(long begin, long end, const float* x, const float* weight, float* out, float* scale, long d, float eps) {
    for (long n = begin; n < end; n++) {
        const float* row = x + n * d;
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (long i = 0; i < d; i++) total += row[i] * row[i];
        const float s = scale[n] = 1.0f / std::sqrt(total / d + eps);
        for (long i = 0; i < d; i++) out[n * d + i] = row[i] * s * weight[i];
    }
}

// Gradients to x [rows, d] and to weight; the latter a sum for each BLOCK of rows. `begin`, `end`: of blocks.
void rms_norm_back(long begin, long end, const float* grad, const float* x, const float* weight, const float* scale,
                   float* to_x, float* to_weight, long rows, long d) {
    std::fill(to_weight + begin * d, to_weight + end * d, 0.0f);
    for (long n = begin * BLOCK; n < std::min(end * BLOCK, rows); n++) {
        const float *row = x + n * d, *g = grad + n * d, s = scale[n];
        float *sum = to_weight + n / BLOCK * d, along = 0;
#pragma omp simd reduction(+ : along)
        for (long i = 0; i < d; i++) along += g[i] * weight[i] * row[i];
        const float slope = along * s * s / d;
#pragma omp simd
        for (long i = 0; i < d; i++) {
            sum[i] += g[i] * row[i] * s;
            to_x[n * d + i] = s * (g[i] * weight[i] - row[i] * slope);
        }
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

// Causal attention with rotary positions over qkv [B, T, (H + 2 K) D]: out [B, T, H D], and log_sum [B, K, T H / K]
// of the exponentials, which the gradient needs. `window` > 0: that many keys are seen. `begin`, `end`: of B.
void attention(long begin, long end, const float* qkv, const float* cos, const float* sin, float* out, float* log_sum,
               long T, long H, long K, long D, long window) {
    Head head(qkv, cos, sin, T, H, K, D, window);
    constexpr long L = LANES;
    const long G = head.G;
    std::vector<float> mixed(D * L), top(L), sum(L);
    for (long b = begin; b < end; b++)
        for (long k = 0; k < K; k++) {
            head.open(b, k, H, K);
            for (long start = 0; start < T; start += head.positions) {
                head.score(start);
                const long from = head.first_key(start), stop = head.last(start);
                std::fill(top.begin(), top.end(), -INFINITY);
                std::fill(sum.begin(), sum.end(), 0.0f);
                for (long key = from; key < stop; key++) {
                    float* s = &head.scores[(key - from) * L];
                    long first, last;
                    head.visible(start, key, first, last);
                    std::fill(s, s + first, -INFINITY);
                    std::fill(s + last, s + L, -INFINITY);
                    for (long i = 0; i < L; i++) top[i] = std::max(top[i], s[i]);
                }
                for (long key = from; key < stop; key++) {
                    float* s = &head.scores[(key - from) * L];
#pragma omp simd
                    for (long i = 0; i < L; i++) sum[i] += s[i] = exponential(s[i] - top[i]);
                }
                product(D, L, stop - from, &head.values[from * head.wide], 1, head.wide, head.scores.data(), L,
                        mixed.data(), L);
                for (long t = start; t < stop; t++)
                    for (long g = 0; g < G; g++) {
                        const long lane = (t - start) * G + g;
                        float* to = out + ((b * T + t) * H + k * G + g) * D;
                        for (long i = 0; i < D; i++) to[i] = mixed[i * L + lane] / sum[lane];
                        log_sum[((b * K + k) * T + t) * G + g] = top[lane] + std::log(sum[lane]);
                    }
            }
        }
}

// Gradient to qkv, by making the weights of the forward pass again (Dao, arXiv 2307.08691, algorithm 2).
void attention_back(long begin, long end, const float* grad, const float* qkv, const float* cos, const float* sin,
                    const float* out, const float* log_sum, float* to_qkv, long T, long H, long K, long D, long window) {
    Head head(qkv, cos, sin, T, H, K, D, window);
    constexpr long L = LANES;
    const long G = head.G, W = head.wide;
    const float scale = 1.0f / std::sqrt(float(D));
    std::vector<float> to_keys(T * W), to_values(T * W), to_scores(T * L), given(D * L), given_rows(L * W),
        to_query(D * L), known(L), shift(L), one(D);
    for (long b = begin; b < end; b++)
        for (long k = 0; k < K; k++) {
            head.open(b, k, H, K);
            std::fill(to_keys.begin(), to_keys.end(), 0.0f);
            std::fill(to_values.begin(), to_values.end(), 0.0f);
            for (long start = 0; start < T; start += head.positions) {
                head.score(start);
                const long from = head.first_key(start), stop = head.last(start), n = stop - from;
                for (long t = start; t < stop; t++)
                    for (long g = 0; g < G; g++) {
                        const long lane = (t - start) * G + g, at = ((b * T + t) * H + k * G + g) * D;
                        float dot = 0;
                        for (long i = 0; i < D; i++) {
                            given[i * L + lane] = given_rows[lane * W + i] = grad[at + i];
                            dot += grad[at + i] * out[at + i];
                        }
                        shift[lane] = dot;
                        known[lane] = log_sum[((b * K + k) * T + t) * G + g];
                    }
                product(n, L, D, &head.values[from * W], W, 1, given.data(), L, to_scores.data(), L);
                for (long key = from; key < stop; key++) {
                    float *s = &head.scores[(key - from) * L], *to_s = &to_scores[(key - from) * L];
                    long first, last;
                    head.visible(start, key, first, last);
#pragma omp simd
                    for (long i = 0; i < L; i++) {
                        s[i] = exponential(s[i] - known[i]);
                        to_s[i] = s[i] * (to_s[i] - shift[i]);
                    }
                    std::fill(s, s + first, 0.0f);
                    std::fill(s + last, s + L, 0.0f);
                    std::fill(to_s, to_s + first, 0.0f);
                    std::fill(to_s + last, to_s + L, 0.0f);
                }
                const long used = (stop - start) * G;
                product(n, W, used, head.scores.data(), L, 1, given_rows.data(), W, &to_values[from * W], W, true);
                product(n, W, used, to_scores.data(), L, 1, head.query_rows.data(), W, &to_keys[from * W], W, true);
                product(D, L, n, &head.keys[from * W], 1, W, to_scores.data(), L, to_query.data(), L);
                for (long t = start; t < stop; t++)
                    for (long g = 0; g < G; g++) {
                        for (long i = 0; i < D; i++) one[i] = to_query[i * L + (t - start) * G + g];
                        turn(one.data(), cos + t * D, sin + t * D, D, scale, -1.0f,
                             to_qkv + head.queries + t * head.row + g * D);
                    }
            }
            for (long t = 0; t < T; t++) {
                turn(&to_keys[t * W], cos + t * D, sin + t * D, D, 1.0f, -1.0f, to_qkv + head.keys_at + t * head.row);
                std::copy_n(&to_values[t * W], D, to_qkv + head.values_at + t * head.row);
            }
        }
}
}

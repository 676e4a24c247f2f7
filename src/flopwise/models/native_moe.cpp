// What a mixture of experts does beside its products, one pass over memory each: `native_moe.py` calls it.
//
// All arrays are contiguous and row-major, float32 or int64. Functions work on rows [begin, end), so that a caller
// can split the work. N tokens, E experts, k of them for each token; "rows" are the N k copies of tokens in
// the order of their experts.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "native.h"

extern "C" {

// Scores [N, E] of logits [N, E], the k highest of score + bias as chosen [N, k], and their weights [N, k]:
// their scores, over their sum if `norm`, times `scale`; log_z [N] is the log-sum-exp of each row's logits.
void route(long begin, long end, const float* logits, const float* bias, float* scores, int64_t* chosen, float* weights,
           float* log_z, long E, long k, long softmax, long norm, float scale) {
    std::vector<float> best(k);
    for (long n = begin; n < end; n++) {
        const float* row = logits + n * E;
        float* s = scores + n * E;
        float top = row[0], total = 0;
        for (long e = 1; e < E; e++) top = std::max(top, row[e]);
#pragma omp simd reduction(+ : total)
        for (long e = 0; e < E; e++) total += s[e] = exponential(row[e] - top);
        log_z[n] = top + std::log(total);
        if (softmax) {
            const float share = 1.0f / total;
            for (long e = 0; e < E; e++) s[e] *= share;
        } else {
#pragma omp simd
            for (long e = 0; e < E; e++) s[e] = sigmoid(row[e]);
        }
        int64_t* picked = chosen + n * k;
        long held = 0;
        for (long e = 0; e < E; e++) {
            const float value = s[e] + bias[e];
            if (held == k && !(value > best[k - 1])) continue;
            long at = held < k ? held++ : k - 1;
            for (; at > 0 && value > best[at - 1]; at--) {
                best[at] = best[at - 1];
                picked[at] = picked[at - 1];
            }
            best[at] = value;
            picked[at] = e;
        }
        float sum = 0;
        for (long j = 0; j < k; j++) sum += s[picked[j]];
        const float factor = norm ? scale / sum : scale;
        for (long j = 0; j < k; j++) weights[n * k + j] = s[picked[j]] * factor;
    }
}

// Gradient to the logits, given those to the weights [N, k], to each expert's share of the scores in each row [E]
// (scores over their sum), and to the log-sum-exp of each row's logits [N]. `log_z` [N] is that log-sum-exp.
void route_back(long begin, long end, const float* to_weights, const float* to_shares, const float* to_log_z,
                const float* logits, const float* scores, const int64_t* chosen, const float* log_z, float* to_logits,
                long E, long k, long softmax, long norm, float scale) {
    for (long n = begin; n < end; n++) {
        const float *s = scores + n * E, *g = to_weights + n * k;
        const int64_t* picked = chosen + n * k;
        float* out = to_logits + n * E;
        float all = 0, along = 0;
        for (long e = 0; e < E; e++) all += s[e];
        for (long e = 0; e < E; e++) along += to_shares[e] * s[e];
        for (long e = 0; e < E; e++) out[e] = (to_shares[e] - along / all) / all;
        float sum = 0, dot = 0;
        for (long j = 0; j < k; j++) {
            sum += s[picked[j]];
            dot += g[j] * s[picked[j]];
        }
        for (long j = 0; j < k; j++) out[picked[j]] += norm ? scale * (g[j] - dot / sum) / sum : scale * g[j];
        if (softmax) {
            float mean = 0;
            for (long e = 0; e < E; e++) mean += out[e] * s[e];
            for (long e = 0; e < E; e++) out[e] = s[e] * (out[e] - mean);
        } else {
            for (long e = 0; e < E; e++) out[e] *= s[e] * (1.0f - s[e]);
        }
        if (to_log_z[n] != 0)
            for (long e = 0; e < E; e++) out[e] += to_log_z[n] * exponential(logits[n * E + e] - log_z[n]);
    }
}

// Places of chosen [M] sorted by expert, then by place: order [M]; and places per expert, counts [E]. One call.
void by_expert(long begin, long end, const int64_t* chosen, int64_t* order, int64_t* counts, long M, long E) {
    if (begin == end) return;
    std::fill(counts, counts + E, 0);
    for (long i = 0; i < M; i++) counts[chosen[i]]++;
    std::vector<int64_t> next(E);
    for (long e = 1; e < E; e++) next[e] = next[e - 1] + counts[e - 1];
    for (long i = 0; i < M; i++) order[next[chosen[i]]++] = i;
}

// For every row: its token, its weight, and where a place's row lies.
void expand(long begin, long end, const int64_t* order, const float* weights, int64_t* tokens, int64_t* places,
            float* scale, long k) {
    for (long i = begin; i < end; i++) {
        tokens[i] = order[i] / k;
        places[order[i]] = i;
        scale[i] = weights[order[i]];
    }
}

// out [N, d]: the sum of each token's k rows.
void sum_places(long begin, long end, const float* rows, const int64_t* places, float* out, long d, long k) {
    for (long n = begin; n < end; n++) {
        float* to = out + n * d;
        std::copy_n(rows + places[n * k] * d, d, to);
        for (long j = 1; j < k; j++) {
            const float* from = rows + places[n * k + j] * d;
            for (long i = 0; i < d; i++) to[i] += from[i];
        }
    }
}

// out [rows, f] = silu(gate) * up * scale for x [rows, 2 f] = gate, up.
void scaled_swiglu(long begin, long end, const float* x, const float* scale, float* out, long f) {
    for (long n = begin; n < end; n++) {
        const float *gate = x + 2 * n * f, *up = gate + f, by = scale[n];
#pragma omp simd
        for (long i = 0; i < f; i++) out[n * f + i] = gate[i] * sigmoid(gate[i]) * up[i] * by;
    }
}

// Gradients to x and to scale, given that to the result; the result itself once more.
void scaled_swiglu_back(long begin, long end, const float* grad, const float* x, const float* scale, float* to_x,
                        float* to_scale, float* result, long f) {
    for (long n = begin; n < end; n++) {
        const float *gate = x + 2 * n * f, *up = gate + f, *g = grad + n * f, by = scale[n];
        float *to_gate = to_x + 2 * n * f, *to_up = to_gate + f, *out = result + n * f, sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long i = 0; i < f; i++) {
            const float s = sigmoid(gate[i]), silu = gate[i] * s, value = silu * up[i], given = g[i] * by;
            sum += g[i] * value;
            out[i] = value * by;
            to_gate[i] = given * up[i] * s * (1.0f + gate[i] * (1.0f - s));
            to_up[i] = given * silu;
        }
        to_scale[n] = sum;
    }
}
}

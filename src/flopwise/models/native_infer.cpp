// A decoder's forward pass over loose tokens, whole: `infer/native.py` calls it.
//
// A token is an id, the slot of the cache that its text lives in, and its position there. All tokens of a call write
// their keys and values first and attend afterwards, so prompts, single steps and drafts to be checked are one thing.
// Matrices are stored in panels of PANEL outputs, as `infer/weights.py` packs them: float32, bfloat16, or whole
// numbers of 8 or 4 bits in groups of GROUP inputs. Arithmetic is in float32, except that up to WHOLE_ROWS tokens
// are multiplied with whole-numbered weights in whole numbers, their activations rounded to 8 bits a group.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "native.h"

namespace {

typedef float Lanes __attribute__((vector_size(32)));
typedef float Unaligned __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(32)));
typedef int32_t UnalignedInts __attribute__((vector_size(32), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(16), aligned(2), may_alias));

constexpr long PANEL = 16, GROUP = 32, BLOCK = 256, CHUNK = 256, WHOLE_ROWS = 4;
constexpr long FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3;

struct Matrix {
    int64_t kind, out, in;
    const uint8_t* data;
    const uint16_t* scales;
};

struct Layer {
    const float *attn_norm, *q_norm, *k_norm, *mlp_norm;
    Matrix qkv, mix, gate_up, down;
};

struct Model {
    int64_t n_layers, width, H, K, D, F, window;
    double eps;
    const float *cos, *sin, *embed, *norm;
    Matrix head;
    const Layer* layers;
};

// Slots of `stride` floats; in each, for every layer and key-value head, keys [D, capacity] then values [capacity, D].
struct Store {
    float* slots;
    int64_t stride, capacity;
};

inline Lanes load(const float* p) { return *(const Unaligned*)p; }

inline Lanes load(const uint16_t* p) {
    return (Lanes)(__builtin_convertvector(*(const Halves*)p, Ints) << 16);
}

// IEEE half precision to float32.
inline Lanes load_half(const uint16_t* p) {
#if defined(__F16C__)
    return (Lanes)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    Lanes out;
    for (int i = 0; i < 8; i++) {
        const uint32_t sign = (p[i] & 0x8000u) << 16, rest = p[i] & 0x7fffu;
        const float size = std::bit_cast<float>(rest << 13) * 0x1p112f;
        out[i] = std::bit_cast<float>(std::bit_cast<uint32_t>(size) | sign);
    }
    return out;
#endif
}

// c[M, 8 N] = (add ? c : 0) + a[M, k] b[k, 8 N]; short sums are split in two, so that one does not wait for the other.
template <int M, int N, class T>
inline void tile(const float* a, long a_row, const T* b, long b_row, long k, float* c, long c_row, bool add) {
    constexpr int U = M * N <= 4 ? 2 : 1;
    Lanes sum[U][M][N] = {};
    long p = 0;
    for (; p + U <= k; p += U)
        for (int u = 0; u < U; u++) {
            Lanes right[N];
            for (int j = 0; j < N; j++) right[j] = load(b + (p + u) * b_row + 8 * j);
            for (int i = 0; i < M; i++)
                for (int j = 0; j < N; j++) sum[u][i][j] += a[i * a_row + p + u] * right[j];
        }
    for (; p < k; p++)
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) sum[0][i][j] += a[i * a_row + p] * load(b + p * b_row + 8 * j);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            Unaligned& to = *(Unaligned*)(c + i * c_row + 8 * j);
            const Lanes all = U == 2 ? sum[0][i][j] + sum[U - 1][i][j] : sum[0][i][j];
            to = add ? Lanes(to) + all : all;
        }
}

template <int N, class T>
inline void tiles(long m, const float* a, long a_row, const T* b, long b_row, long k, float* c, long c_row, bool add) {
    for (; m >= 6; m -= 6, a += 6 * a_row, c += 6 * c_row) tile<6, N>(a, a_row, b, b_row, k, c, c_row, add);
    if (m == 5) tile<5, N>(a, a_row, b, b_row, k, c, c_row, add);
    if (m == 4) tile<4, N>(a, a_row, b, b_row, k, c, c_row, add);
    if (m == 3) tile<3, N>(a, a_row, b, b_row, k, c, c_row, add);
    if (m == 2) tile<2, N>(a, a_row, b, b_row, k, c, c_row, add);
    if (m == 1) tile<1, N>(a, a_row, b, b_row, k, c, c_row, add);
}

// One panel of outputs for m rows; of the last panel only `wide` outputs exist.
template <class T>
inline void panel_product(long m, const float* a, long a_row, const T* b, long k, float* c, long c_row, long wide,
                          bool add) {
    if (wide == PANEL) {
        tiles<2>(m, a, a_row, b, PANEL, k, c, c_row, add);
        return;
    }
    float spare[6 * PANEL];
    for (long i = 0; i < m; i += 6) {
        const long rows = std::min(6L, m - i);
        tiles<2>(rows, a + i * a_row, a_row, b, PANEL, k, spare, PANEL, false);
        for (long r = 0; r < rows; r++)
            for (long j = 0; j < wide; j++) {
                float& to = c[(i + r) * c_row + j];
                to = add ? to + spare[r * PANEL + j] : spare[r * PANEL + j];
            }
    }
}

// Inputs [from, from + count) of a panel as float32 [count, PANEL]; both are multiples of GROUP where it matters.
inline void expand(const Matrix& w, long panel, long from, long count, float* out) {
    if (w.kind == BFLOAT16) {
        const uint16_t* b = (const uint16_t*)w.data + (panel * w.in + from) * PANEL;
        for (long i = 0; i < count * PANEL; i += 8) *(Unaligned*)(out + i) = load(b + i);
        return;
    }
    const long groups = (w.in + GROUP - 1) / GROUP, first = from / GROUP;
    const long bytes = GROUP * PANEL / (w.kind == INT4 ? 2 : 1), halves = PANEL * (w.kind == INT4 ? 2 : 1);
    for (long g = first; g * GROUP < from + count; g++) {
        const uint8_t* b = w.data + (panel * groups + g) * bytes;
        const uint16_t* s = w.scales + (panel * groups + g) * halves;
        for (long h = 0; h < 2; h++) {
            const Lanes scale = load_half(s + 8 * h);
            const Lanes least = w.kind == INT4 ? load_half(s + PANEL + 8 * h) : Lanes{};
            float* to = out + (g - first) * GROUP * PANEL + 8 * h;
            // A lane is an output and holds 4 inputs, in INT4 8: the low halves of its bytes, then the high ones.
            for (long j = 0; j < GROUP / 4; j++) {
                Ints lane;
                if (w.kind == INT8) {
                    lane = *(const UnalignedInts*)(b + (j * 2 + h) * 32);
                } else {
                    lane = *(const UnalignedInts*)(b + (j / 2 * 2 + h) * 32);
                    lane = (j % 2 ? lane >> 4 : lane) & 0x0f0f0f0f;
                }
                for (long i = 0; i < 4; i++) {
                    const Ints whole = (lane << (24 - 8 * i)) >> 24;
                    *(Unaligned*)(to + (j * 4 + i) * PANEL) = __builtin_convertvector(whole, Lanes) * scale + least;
                }
            }
        }
    }
}

// Rows of activations in whole numbers of 8 bits: a group's largest is 127 steps of `scale`; `sum` is scale times the
// group's total.
struct Rounded {
    std::vector<int8_t> values;
    std::vector<float> scale, sum;

    void set(const float* x, long rows, long in) {
        const long groups = (in + GROUP - 1) / GROUP;
        values.assign(rows * groups * GROUP, 0);
        scale.resize(rows * groups);
        sum.resize(rows * groups);
        for (long r = 0; r < rows; r++)
            for (long g = 0; g < groups; g++) {
                const float* from = x + r * in + g * GROUP;
                const long n = std::min(GROUP, in - g * GROUP);
                float most = 0;
#pragma omp simd reduction(max : most)
                for (long i = 0; i < n; i++) most = std::max(most, std::fabs(from[i]));
                const float step = most / 127, per = most > 0 ? 127 / most : 0;
                int8_t* to = &values[(r * groups + g) * GROUP];
                int32_t total = 0;
#pragma omp simd reduction(+ : total)
                for (long i = 0; i < n; i++) {
                    // As in `exponential`: the nearest whole number lies in the low bits.
                    const int32_t near = std::bit_cast<int32_t>(from[i] * per + 12582912.0f) - 0x4b400000;
                    to[i] = (int8_t)near;
                    total += near;
                }
                scale[r * groups + g] = step;
                sum[r * groups + g] = step * total;
            }
    }
};

#if defined(__AVX2__)
constexpr bool WHOLE = true;

inline __m256i four(const int8_t* p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
}

// One panel's outputs for M rounded rows.
template <int M>
inline void whole_panel(const Matrix& w, long panel, const Rounded& x, Lanes (*sum)[2]) {
    const long groups = (w.in + GROUP - 1) / GROUP;
    const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(15);
    for (int m = 0; m < M; m++) sum[m][0] = sum[m][1] = Lanes{};
    for (long g = 0; g < groups; g++) {
        const bool eight = w.kind == INT8;
        const uint8_t* b = w.data + (panel * groups + g) * GROUP * PANEL / (eight ? 1 : 2);
        const uint16_t* s = w.scales + (panel * groups + g) * PANEL * (eight ? 1 : 2);
        // The next panels' weights are on their way while these are multiplied.
        for (long line = 0; line < GROUP * PANEL / (eight ? 1 : 2); line += 64) _mm_prefetch(b + 4096 + line, _MM_HINT_T0);
        __m256i part[M][2];
        for (int m = 0; m < M; m++) part[m][0] = part[m][1] = _mm256_setzero_si256();
        if (eight) {
            for (long j = 0; j < GROUP / 4; j++) {
                const __m256i left = _mm256_loadu_si256((const __m256i*)(b + j * 64));
                const __m256i right = _mm256_loadu_si256((const __m256i*)(b + j * 64 + 32));
                for (int m = 0; m < M; m++) {
                    const __m256i a = four(&x.values[(m * groups + g) * GROUP + 4 * j]), size = _mm256_abs_epi8(a);
                    // Signs go to the weights, since one factor must not have any: |a| (w sign a).
                    const __m256i l = _mm256_maddubs_epi16(size, _mm256_sign_epi8(left, a));
                    const __m256i r = _mm256_maddubs_epi16(size, _mm256_sign_epi8(right, a));
                    part[m][0] = _mm256_add_epi32(part[m][0], _mm256_madd_epi16(l, ones));
                    part[m][1] = _mm256_add_epi32(part[m][1], _mm256_madd_epi16(r, ones));
                }
            }
        } else {
            for (long j = 0; j < GROUP / 8; j++)
                for (int h = 0; h < 2; h++) {
                    const __m256i both = _mm256_loadu_si256((const __m256i*)(b + (j * 2 + h) * 32));
                    const __m256i even = _mm256_and_si256(both, low);
                    const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
                    for (int m = 0; m < M; m++) {
                        const int8_t* a = &x.values[(m * groups + g) * GROUP + 8 * j];
                        // 8 sums of at most 2 x 15 x 127 fit into 16 bits.
                        const __m256i pair = _mm256_add_epi16(_mm256_maddubs_epi16(even, four(a)),
                                                              _mm256_maddubs_epi16(odd, four(a + 4)));
                        part[m][h] = _mm256_add_epi16(part[m][h], pair);
                    }
                }
            for (int m = 0; m < M; m++)
                for (int h = 0; h < 2; h++) part[m][h] = _mm256_madd_epi16(part[m][h], ones);
        }
        for (int h = 0; h < 2; h++) {
            const Lanes scale = load_half(s + 8 * h);
            for (int m = 0; m < M; m++) {
                const Lanes exact = (Lanes)_mm256_cvtepi32_ps(part[m][h]);
                sum[m][h] += exact * (scale * x.scale[m * groups + g]);
                if (!eight) sum[m][h] += load_half(s + PANEL + 8 * h) * x.sum[m * groups + g];
            }
        }
    }
}
#else
constexpr bool WHOLE = false;

template <int M>
inline void whole_panel(const Matrix&, long, const Rounded&, Lanes (*)[2]) {}
#endif

template <int M>
void whole_product(const Matrix& w, const Rounded& x, float* y, bool add) {
    for (long panel = 0; panel * PANEL < w.out; panel++) {
        Lanes sum[M][2];
        whole_panel<M>(w, panel, x, sum);
        const long wide = std::min(PANEL, w.out - panel * PANEL);
        for (int m = 0; m < M; m++) {
            float* to = y + m * w.out + panel * PANEL;
            for (long j = 0; j < wide; j++) to[j] = (add ? to[j] : 0.0f) + sum[m][j / 8][j % 8];
        }
    }
}

// y [rows, out] = (add ? y : 0) + x [rows, in] w^T.
void product(const Matrix& w, const float* x, long rows, float* y, bool add) {
    static thread_local Rounded rounded;
    if (WHOLE && rows <= WHOLE_ROWS && (w.kind == INT8 || w.kind == INT4)) {
        rounded.set(x, rows, w.in);
        if (rows == 1) whole_product<1>(w, rounded, y, add);
        if (rows == 2) whole_product<2>(w, rounded, y, add);
        if (rows == 3) whole_product<3>(w, rounded, y, add);
        if (rows == 4) whole_product<4>(w, rounded, y, add);
        return;
    }
    const bool direct = w.kind == FLOAT32 || (w.kind == BFLOAT16 && rows <= 6);
    // Few rows stay in the inner cache whole; of many, a block of inputs does, and a panel's block of weights.
    const long block = direct && rows <= 12 ? w.in : BLOCK;
    alignas(32) static thread_local float spare[BLOCK * PANEL];
    for (long from = 0; from < w.in; from += block) {
        const long k = std::min(block, w.in - from);
        for (long panel = 0; panel * PANEL < w.out; panel++) {
            const long wide = std::min(PANEL, w.out - panel * PANEL), at = (panel * w.in + from) * PANEL;
            float* to = y + panel * PANEL;
            const bool more = add || from > 0;
            if (direct && w.kind == BFLOAT16) {
                panel_product(rows, x + from, w.in, (const uint16_t*)w.data + at, k, to, w.out, wide, more);
            } else if (direct) {
                panel_product(rows, x + from, w.in, (const float*)w.data + at, k, to, w.out, wide, more);
            } else {
                expand(w, panel, from, k, spare);
                panel_product(rows, x + from, w.in, spare, k, to, w.out, wide, more);
            }
        }
    }
}

inline void norm(const float* x, const float* weight, long n, float eps, float* out) {
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (long i = 0; i < n; i++) total += x[i] * x[i];
    const float scale = 1.0f / std::sqrt(total / n + eps);
#pragma omp simd
    for (long i = 0; i < n; i++) out[i] = x[i] * scale * weight[i];
}

// Rotary turn of a head in place; units i and i + D / 2 are a pair (RoFormer, arXiv 2104.09864, eq. 34).
inline void turn(float* head, const float* cos, const float* sin, long D, float scale) {
    float *first = head, *second = head + D / 2;
#pragma omp simd
    for (long i = 0; i < D / 2; i++) {
        const float a = first[i], b = second[i];
        first[i] = scale * (a * cos[i] - b * sin[i]);
        second[i] = scale * (b * cos[i] + a * sin[i]);
    }
}

// out [H, D] of one token's query heads [H, D] over the keys up to its position.
void attend(const Model& m, const Store& store, const float* keys, const float* query, long position, float* out) {
    static thread_local std::vector<float> scores;
    const long G = m.H / m.K, D = m.D, capacity = store.capacity;
    const long start = m.window ? std::max(0L, position + 1 - (long)m.window) : 0, seen = position + 1 - start;
    const long row = (seen + 15) / 16 * 16;
    if ((long)scores.size() < G * row) scores.resize(G * row);
    for (long h = 0; h < m.K; h++) {
        const float* k = keys + h * 2 * D * capacity;
        const float* v = k + D * capacity + start * D;
        const float* q = query + h * G * D;
        for (long t = 0; t < seen; t += 16) tiles<2>(G, q, D, k + start + t, capacity, D, scores.data() + t, row, false);
        for (long g = 0; g < G; g++) {
            float *p = scores.data() + g * row, top = p[0], total = 0;
#pragma omp simd reduction(max : top)
            for (long t = 0; t < seen; t++) top = std::max(top, p[t]);
#pragma omp simd reduction(+ : total)
            for (long t = 0; t < seen; t++) total += p[t] = exponential(p[t] - top);
            const float share = 1.0f / total;
#pragma omp simd
            for (long t = 0; t < seen; t++) p[t] *= share;
        }
        float* to = out + h * G * D;
        long d = 0;
        for (; d + 16 <= D; d += 16) tiles<2>(G, scores.data(), row, v + d, D, seen, to + d, D, false);
        for (; d < D; d += 8) tiles<1>(G, scores.data(), row, v + d, D, seen, to + d, D, false);
    }
}

struct Scratch {
    std::vector<float> x, normed, wide, mixed;

    void reserve(const Model& m) {
        x.resize(CHUNK * m.width);
        normed.resize(CHUNK * m.width);
        wide.resize(CHUNK * std::max(2 * m.F, (m.H + 2 * m.K) * m.D));
        mixed.resize(CHUNK * std::max(m.F, m.H * m.D));
    }
};

void layer(const Model& m, const Layer& w, long number, const Store& store, long n, const int64_t* slots,
           const int64_t* positions, Scratch& s) {
    const long heads = m.H + 2 * m.K, D = m.D, capacity = store.capacity;
    const float eps = (float)m.eps, scale = 1.0f / std::sqrt((float)D);
    for (long i = 0; i < n; i++) norm(&s.x[i * m.width], w.attn_norm, m.width, eps, &s.normed[i * m.width]);
    product(w.qkv, s.normed.data(), n, s.wide.data(), false);
    for (long i = 0; i < n; i++) {
        float* row = &s.wide[i * heads * D];
        const long at = positions[i];
        float* keys = store.slots + slots[i] * store.stride + number * 2 * m.K * D * capacity;
        for (long h = 0; h < m.H + m.K; h++) {
            const bool query = h < m.H;
            if (w.q_norm) norm(row + h * D, query ? w.q_norm : w.k_norm, D, eps, row + h * D);
            turn(row + h * D, m.cos + at * D, m.sin + at * D, D, query ? scale : 1.0f);
        }
        for (long h = 0; h < m.K; h++) {
            float* k = keys + h * 2 * D * capacity;
            for (long d = 0; d < D; d++) k[d * capacity + at] = row[(m.H + h) * D + d];
            std::memcpy(k + D * capacity + at * D, row + (m.H + m.K + h) * D, D * sizeof(float));
        }
    }
    for (long i = 0; i < n; i++) {
        const float* keys = store.slots + slots[i] * store.stride + number * 2 * m.K * D * capacity;
        attend(m, store, keys, &s.wide[i * heads * D], positions[i], &s.mixed[i * m.H * D]);
    }
    product(w.mix, s.mixed.data(), n, s.x.data(), true);
    for (long i = 0; i < n; i++) norm(&s.x[i * m.width], w.mlp_norm, m.width, eps, &s.normed[i * m.width]);
    product(w.gate_up, s.normed.data(), n, s.wide.data(), false);
    for (long i = 0; i < n; i++) {
        const float *gate = &s.wide[i * 2 * m.F], *up = gate + m.F;
        float* to = &s.mixed[i * m.F];
#pragma omp simd
        for (long j = 0; j < m.F; j++) to[j] = gate[j] * sigmoid(gate[j]) * up[j];
    }
    product(w.down, s.mixed.data(), n, s.x.data(), true);
}

}  // namespace

extern "C" {

// Logits [wanted, vocabulary] after those of tokens [begin, end) whose `wanted` is a row of them, not -1. Tokens of a
// slot are in the order of their positions; two calls at once must not share a slot.
void forward_tokens(long begin, long end, const int64_t* ids, const int64_t* slots, const int64_t* positions,
                    const int64_t* wanted, float* logits, const Model* model, const Store* store) {
    const Model& m = *model;
    static thread_local Scratch s;
    s.reserve(m);
    for (long from = begin; from < end; from += CHUNK) {
        const long n = std::min(CHUNK, end - from);
        for (long i = 0; i < n; i++) std::copy_n(m.embed + ids[from + i] * m.width, m.width, &s.x[i * m.width]);
        for (long l = 0; l < m.n_layers; l++) layer(m, m.layers[l], l, *store, n, slots + from, positions + from, s);
        // Runs of wanted rows that follow each other go through the head together.
        for (long i = 0; i < n;) {
            if (wanted[from + i] < 0) {
                i++;
                continue;
            }
            const long first = wanted[from + i];
            long count = 0;
            for (; i < n; i++) {
                if (wanted[from + i] < 0) continue;
                if (wanted[from + i] != first + count) break;
                norm(&s.x[i * m.width], m.norm, m.width, (float)m.eps, &s.normed[count++ * m.width]);
            }
            product(m.head, s.normed.data(), count, logits + first * m.head.out, false);
        }
    }
}

// Rows [begin, end) of x [rows, in] times one matrix: y [rows, out].
void packed_product(long begin, long end, const float* x, float* y, const Matrix* matrix) {
    product(*matrix, x + begin * matrix->in, end - begin, y + begin * matrix->out, false);
}

}

// Vectors of LANES floats in the compilers' own notation, and the few functions that the kernels need of them.
// LANES comes from the build: 16 with AVX-512, 8 with AVX2, 4 elsewhere.
#ifndef MODE_SSM_VECTOR_H
#define MODE_SSM_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if LANES > 4 || defined(__SSE2__)
#include <immintrin.h>
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));

#define LOG2E 1.44269504088896341f
#define LN2 0.693147180559945309f
#define MIN(a, b) ((a) < (b) ? (a) : (b))

// A matrix of frames in a tensor (B, T, width) whose last dimension is contiguous; strides count floats.
typedef struct {
    float *data;
    int64_t batch, frame;
} rows;

static inline vf load(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
static inline void store(float *p, vf v) { memcpy(p, &v, sizeof v); }
static inline vf splat(float x) { return x - (vf){0}; }

// The first `count` lanes; the others are 0.
static inline vf load_part(const float *p, int count) {
    vf v = {0};
    if (count == LANES) return load(p);
    memcpy(&v, p, sizeof(float) * count);
    return v;
}
static inline void store_part(float *p, vf v, int count) {
    if (count == LANES) store(p, v);
    else memcpy(p, &v, sizeof(float) * count);
}

// `yes` where the comparison holds (a vi, -1 for true), else `no`.
static inline vf select_lanes(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
// x > bound ? yes : no, lane by lane; in one instruction where there is one.
static inline vf where_above(vf x, float bound, vf yes, vf no) {
#if LANES == 16
    const __mmask16 above = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(bound), _CMP_GT_OQ);
    return (vf)_mm512_mask_blend_ps(above, (__m512)no, (__m512)yes);
#else
    const vi above = x > bound;
    return (vf)((above & (vi)yes) | (~above & (vi)no));
#endif
}
static inline vf vmax(vf a, vf b) {
#if LANES == 16
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif LANES == 8
    return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
    return (vf)_mm_max_ps((__m128)a, (__m128)b);
#else
    return where_above(a - b, 0, a, b);
#endif
}
static inline vf vabs(vf x) { return (vf)((vi)x & 0x7fffffff); }
static inline float lane_sum(vf v) {
#if LANES == 16
    return _mm512_reduce_add_ps((__m512)v);
#else
    float s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
#endif
}

// 2^x = power + power * rest for x <= 0, power a power of two and |rest| < 0.42; rest to 1e-7 of itself.
static inline vf exp2_parts(vf x, vf *rest) {
    x = vmax(x, splat(-126.0f));
    vf shifted = x + 12582912.0f;  // 1.5 * 2^23: the nearest integer stands in the low bits
    vf f = x - (shifted - 12582912.0f);
    vf q = f * 1.539646980e-4f + 1.338664803e-3f;  // minimax of (2^f - 1) / f on [-1/2, 1/2], 1.3e-8
    q = q * f + 9.618252139e-3f;
    q = q * f + 5.550369906e-2f;
    q = q * f + 2.402264981e-1f;
    q = q * f + 6.931471806e-1f;
    *rest = q * f;
    return (vf)(((vi)shifted << 23) + 0x3f800000);
}

// A decay 2^x, x <= 0, in one number that keeps its digits at both ends: 2^x - 1, never positive, where x > -1/2, and 2^x,
// always positive, below. Formed as 2^x alone, 1 - 1e-6 would have lost two digits of the 1e-6, and a recurrence
// multiplies that loss by its memory; formed as 2^x - 1 alone, 1e-6 would have lost as many, and gradients with it.
static inline vf encode_decay(vf x, vf power, vf rest) { return where_above(x, -0.5f, rest, power * rest + power); }
static inline vf decay_code(vf x) {
    vf rest, power = exp2_parts(x, &rest);
    return encode_decay(x, power, rest);
}
// Decay times h.
static inline vf decayed(vf code, vf h) {
#if LANES == 16
    const __mmask16 near_one = _mm512_cmp_ps_mask((__m512)code, _mm512_setzero_ps(), _CMP_LE_OQ);
    return code * h + (vf)_mm512_maskz_mov_ps(near_one, (__m512)h);
#else
    return code * h + (vf)((vi)h & (code <= 0.0f));
#endif
}

// exp(x) for x <= 0.
static inline vf exp_negative(vf x) {
    vf rest, power = exp2_parts(x * LOG2E, &rest);
    return power * rest + power;
}

// Decayed states fall into the denormal numbers, where arithmetic is many times slower; they count as 0. The mode
// belongs to the thread, which torch uses too: give back what was there.
static inline unsigned flush_denormals(void) {
#if LANES > 4 || defined(__SSE2__)
    unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
#else
    return 0;
#endif
}
static inline void restore_denormals(unsigned before) {
#if LANES > 4 || defined(__SSE2__)
    _mm_setcsr(before);
#else
    (void)before;
#endif
}

// 1 - exp(-x) for x >= 0.
static inline vf one_minus_exp(vf x) {
    vf rest, power = exp2_parts(x * -LOG2E, &rest);
    return (1.0f - power) - power * rest;
}

// 1 / (1 + exp(-x))
static inline vf sigmoid(vf x) {
    vf e = exp_negative(-vabs(x));
    vf small = e / (1.0f + e);
    return where_above(x, 0.0f, 1.0f - small, small);
}

// log(1 + exp(x)), to full relative precision where it is tiny too.
static inline vf softplus(vf x) {
    vf w = exp_negative(-vabs(x));
    vf s = w / (2.0f + w), z = s * s;  // log(1 + w) = 2 atanh(s), s <= 1/3
    vf p = z * 1.401222963e-1f + 1.399957049e-1f;
    p = p * z + 2.001084953e-1f;
    p = p * z + 3.333320657e-1f;
    return vmax(x, splat(0.0f)) + 2.0f * s * (1.0f + z * p);
}

// The frame of row `b` that a scan reads first: the last valid one where it runs backwards.
static inline float *first_frame(rows r, int64_t b, int64_t length, int reverse) {
    return r.data + b * r.batch + (reverse ? (length - 1) * r.frame : 0);
}

#endif

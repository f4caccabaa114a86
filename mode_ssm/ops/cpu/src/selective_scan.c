// The Mamba-1 scan: forward, and backward from the states at chunk starts.
//
// Channels lie across the lanes. A chunk of frames is packed first (softplus applied, strided rows made contiguous), then
// BLOCK states at a time run through it in registers: what a state needs of memory stays in the first-level cache.
// States are stored (N, D): N padded to BLOCK and D to LANES by the caller, with zeros, which stay zero.
#include "vector.h"

#define BLOCK 4
#define MAX_CHUNK 32

typedef struct {
    rows u, dt, B, C, y;        // (B, T, D or N)
    rows du, ddt, dB, dC, dy;   // gradients likewise; dB and dC have one slab for each split of the channels
    const float *A;             // (N, D) log2(e) * A
    const float *D;             // (D,) or NULL
    float *initial, *final;     // (B, N, D); initial may be NULL
    float *dinitial, *dfinal;   // (B, N, D)
    float *starts;              // (B, chunks, N, D) or NULL
    float *dA, *dD;             // (B * splits, N, D) as if log2(e) were 1, (B * splits, D)
    const int64_t *lengths;     // (B,)
    int64_t batch, time, width, channels, states;  // width: channels before padding
    int64_t chunk, splits, slab;                   // slab: floats from one split's dB to the next one's
    int32_t softplus, reverse, threads;
} scan_args;

static inline vf step_size(const scan_args *s, const float *p, int count) {
    vf dt = load_part(p, count);
    return s->softplus ? softplus(dt) : dt;
}

static void forward_channels(const scan_args *s, int64_t b, int64_t d0) {
    const int64_t length = s->lengths[b], N = s->states, D = s->channels, sign = s->reverse ? -1 : 1;
    const int count = (int)MIN(LANES, s->width - d0);
    const int64_t chunks = (s->time + s->chunk - 1) / s->chunk;
    const float *u = first_frame(s->u, b, length, s->reverse) + d0, *dt = first_frame(s->dt, b, length, s->reverse) + d0;
    const float *B = first_frame(s->B, b, length, s->reverse), *C = first_frame(s->C, b, length, s->reverse);
    float *y = first_frame(s->y, b, length, s->reverse) + d0;
    vf h[N], delta[MAX_CHUNK], input[MAX_CHUNK], output[MAX_CHUNK];
    const vf skip = s->D ? load(s->D + d0) : splat(0);

    for (int64_t n = 0; n < N; n++) h[n] = s->initial ? load(s->initial + (b * N + n) * D + d0) : splat(0);
    for (int64_t t0 = 0; t0 < length; t0 += s->chunk) {
        const int frames = (int)MIN(s->chunk, length - t0);
        if (s->starts)
            for (int64_t n = 0; n < N; n++) store(s->starts + ((b * chunks + t0 / s->chunk) * N + n) * D + d0, h[n]);
        for (int i = 0; i < frames; i++) {
            const int64_t t = sign * (t0 + i), ahead = sign * (t0 + i + s->chunk);
            __builtin_prefetch(u + ahead * s->u.frame, 0, 2);
            __builtin_prefetch(dt + ahead * s->dt.frame, 0, 2);
            __builtin_prefetch(y + ahead * s->y.frame, 1, 2);
            vf x = load_part(u + t * s->u.frame, count);
            delta[i] = step_size(s, dt + t * s->dt.frame, count);
            input[i] = delta[i] * x;
            output[i] = skip * x;
        }
        for (int64_t n = 0; n < N; n += BLOCK) {
            vf a[BLOCK], state[BLOCK];
            for (int k = 0; k < BLOCK; k++) a[k] = load(s->A + (n + k) * D + d0), state[k] = h[n + k];
            for (int i = 0; i < frames; i++) {
                const float *b_t = B + sign * (t0 + i) * s->B.frame + n, *c_t = C + sign * (t0 + i) * s->C.frame + n;
                vf sum = output[i];
                for (int k = 0; k < BLOCK; k++) {
                    vf rest, power = exp2_parts(delta[i] * a[k], &rest);
                    state[k] = (power * rest) * state[k] + power * state[k];
                    state[k] += input[i] * b_t[k];
                    sum += state[k] * c_t[k];
                }
                output[i] = sum;
            }
            for (int k = 0; k < BLOCK; k++) h[n + k] = state[k];
        }
        for (int i = 0; i < frames; i++) store_part(y + sign * (t0 + i) * s->y.frame, output[i], count);
    }
    for (int64_t n = 0; n < N; n++) store(s->final + (b * N + n) * D + d0, h[n]);
    for (int64_t t = length; t < s->time; t++) store_part(s->y.data + b * s->y.batch + t * s->y.frame + d0, splat(0), count);
}

void selective_scan_forward(const scan_args *s) {
    #pragma omp parallel for collapse(2) schedule(static) num_threads(s->threads)
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t d0 = 0; d0 < s->channels; d0 += LANES) {
            const unsigned mode = flush_denormals();
            forward_channels(s, b, d0);
            restore_denormals(mode);
        }
}

// What the backward pass keeps of a chunk for LANES channels.
typedef struct {
    vf delta[MAX_CHUNK], u[MAX_CHUNK], dy[MAX_CHUNK], dinput[MAX_CHUNK], ddelta[MAX_CHUNK];
} packed_chunk;

// BLOCK states at one frame. In one piece because arrays of their own would lie 4 KiB apart, where a load waits for
// stores that it has nothing to do with.
typedef struct {
    vf before[BLOCK], decay[BLOCK];  // the state before the frame, its `decay_code`
    vf sum_B[BLOCK], sum_C[BLOCK];   // gradients of B and C, over all channels so far
} frame_block;

// BLOCK states of LANES channels through one chunk: forward again, then backward.
// `carried` is d loss / d (state that leaves the chunk) on entry and that of the state before it on return.
static inline void backward_block(packed_chunk *p, int frames, const float *a_, const float *start, int64_t D, vf *carried,
                                  vf *dA, const float *B, int64_t B_frame, const float *C, int64_t C_frame,
                                  frame_block *frame) {
    vf a[BLOCK], h[BLOCK], g[BLOCK], da[BLOCK];
    for (int k = 0; k < BLOCK; k++) {
        a[k] = load(a_ + k * D), h[k] = load(start + k * D);
        g[k] = carried[k], da[k] = dA[k];
    }
    for (int i = 0; i < frames; i++) {
        const vf delta = p->delta[i], input = delta * p->u[i], dy = p->dy[i];
        for (int k = 0; k < BLOCK; k++) {
            frame[i].before[k] = h[k];
            vf exponent = delta * a[k], rest, power = exp2_parts(exponent, &rest);
            frame[i].decay[k] = encode_decay(exponent, power, rest);
            h[k] = (power * rest) * h[k] + power * h[k];
            h[k] += input * B[i * B_frame + k];
            frame[i].sum_C[k] += h[k] * dy;
        }
    }
    for (int i = frames - 1; i >= 0; i--) {
        const vf delta = p->delta[i], input = delta * p->u[i], dy = p->dy[i];
        vf dinput = p->dinput[i], ddelta = p->ddelta[i];
        for (int k = 0; k < BLOCK; k++) {
            g[k] += dy * C[i * C_frame + k];
            frame[i].sum_B[k] += g[k] * input;
            dinput += g[k] * B[i * B_frame + k];
            g[k] = decayed(frame[i].decay[k], g[k]);
            const vf dlog = g[k] * frame[i].before[k];  // d loss / d (dt * A)
            ddelta += dlog * a[k];
            da[k] += dlog * delta;
        }
        p->dinput[i] = dinput, p->ddelta[i] = ddelta;
    }
    for (int k = 0; k < BLOCK; k++) carried[k] = g[k], dA[k] = da[k];
}

// One row of the batch and one part [begin, end) of its channels; the sums over channels go to slab `split`.
static void backward_part(const scan_args *s, int64_t b, int64_t split, int64_t begin, int64_t end) {
    const int64_t length = s->lengths[b], N = s->states, D = s->channels, sign = s->reverse ? -1 : 1;
    const int64_t chunks = (s->time + s->chunk - 1) / s->chunk, parts = (end - begin) / LANES;
    vf *carried = aligned_alloc(64, sizeof(vf) * parts * N), *dA = aligned_alloc(64, sizeof(vf) * parts * N);
    packed_chunk *packed = aligned_alloc(64, sizeof(packed_chunk) * parts);
    vf *dD = aligned_alloc(64, sizeof(vf) * parts + 64);
    frame_block frame[MAX_CHUNK];
    const float *u = first_frame(s->u, b, length, s->reverse), *dt = first_frame(s->dt, b, length, s->reverse);
    const float *dy = first_frame(s->dy, b, length, s->reverse);
    const float *B = first_frame(s->B, b, length, s->reverse), *C = first_frame(s->C, b, length, s->reverse);
    float *du = first_frame(s->du, b, length, s->reverse), *ddt = first_frame(s->ddt, b, length, s->reverse);
    rows slab_B = s->dB, slab_C = s->dC;
    slab_B.data += split * s->slab, slab_C.data += split * s->slab;
    float *dB = first_frame(slab_B, b, length, s->reverse), *dC = first_frame(slab_C, b, length, s->reverse);

    for (int64_t j = 0; j < parts; j++) {
        dD[j] = splat(0);
        for (int64_t n = 0; n < N; n++) {
            carried[j * N + n] = load(s->dfinal + (b * N + n) * D + begin + j * LANES);
            dA[j * N + n] = splat(0);
        }
    }
    for (int64_t c = (length + s->chunk - 1) / s->chunk - 1; c >= 0; c--) {
        const int64_t t0 = c * s->chunk;
        const int frames = (int)MIN(s->chunk, length - t0);
        for (int64_t j = 0; j < parts; j++) {
            const int64_t d0 = begin + j * LANES;
            const int count = (int)MIN(LANES, s->width - d0);
            packed_chunk *p = packed + j;
            for (int i = 0; i < frames; i++) {
                const int64_t t = sign * (t0 + i), ahead = d0 + 4 * LANES;
                __builtin_prefetch(u + t * s->u.frame + ahead, 0, 2);
                __builtin_prefetch(dt + t * s->dt.frame + ahead, 0, 2);
                __builtin_prefetch(dy + t * s->dy.frame + ahead, 0, 2);
                p->delta[i] = step_size(s, dt + t * s->dt.frame + d0, count);
                p->u[i] = load_part(u + t * s->u.frame + d0, count);
                p->dy[i] = load_part(dy + t * s->dy.frame + d0, count);
                p->dinput[i] = splat(0), p->ddelta[i] = splat(0);
            }
        }
        for (int64_t n = 0; n < N; n += BLOCK) {
            memset(frame, 0, sizeof(frame_block) * frames);
            for (int64_t j = 0; j < parts; j++) {
                const int64_t d0 = begin + j * LANES;
                backward_block(packed + j, frames, s->A + n * D + d0, s->starts + ((b * chunks + c) * N + n) * D + d0, D,
                               carried + j * N + n, dA + j * N + n, B + sign * t0 * s->B.frame + n, sign * s->B.frame,
                               C + sign * t0 * s->C.frame + n, sign * s->C.frame, frame);
            }
            for (int i = 0; i < frames; i++)
                for (int k = 0; k < BLOCK; k++) {
                    dB[sign * (t0 + i) * s->dB.frame + n + k] = lane_sum(frame[i].sum_B[k]);
                    dC[sign * (t0 + i) * s->dC.frame + n + k] = lane_sum(frame[i].sum_C[k]);
                }
        }
        for (int64_t j = 0; j < parts; j++) {
            const int64_t d0 = begin + j * LANES;
            const int count = (int)MIN(LANES, s->width - d0);
            const vf skip = s->D ? load(s->D + d0) : splat(0);
            const packed_chunk *p = packed + j;
            for (int i = 0; i < frames; i++) {
                const int64_t t = sign * (t0 + i);
                vf ddelta = p->dinput[i] * p->u[i] + p->ddelta[i] * LN2;
                if (s->softplus) ddelta *= one_minus_exp(p->delta[i]);  // sigmoid(x) = 1 - exp(-softplus(x))
                store_part(ddt + t * s->ddt.frame + d0, ddelta, count);
                store_part(du + t * s->du.frame + d0, p->dinput[i] * p->delta[i] + skip * p->dy[i], count);
                dD[j] += p->dy[i] * p->u[i];
            }
        }
    }
    for (int64_t j = 0; j < parts; j++) {
        const int64_t d0 = begin + j * LANES;
        const int count = (int)MIN(LANES, s->width - d0);
        for (int64_t n = 0; n < N; n++) {
            store(s->dinitial + (b * N + n) * D + d0, carried[j * N + n]);
            store(s->dA + (b * N + n) * D + d0, dA[j * N + n]);
        }
        store(s->dD + b * D + d0, dD[j]);
        for (int64_t t = length; t < s->time; t++) {
            store_part(s->du.data + b * s->du.batch + t * s->du.frame + d0, splat(0), count);
            store_part(s->ddt.data + b * s->ddt.batch + t * s->ddt.frame + d0, splat(0), count);
        }
    }
    for (int64_t t = length; t < s->time; t++) {
        memset(slab_B.data + b * s->dB.batch + t * s->dB.frame, 0, sizeof(float) * N);
        memset(slab_C.data + b * s->dC.batch + t * s->dC.frame, 0, sizeof(float) * N);
    }
    free(carried), free(dA), free(packed), free(dD);
}

void selective_scan_backward(const scan_args *s) {
    const int64_t parts = s->channels / LANES;
    #pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(s->threads)
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t split = 0; split < s->splits; split++) {
            const unsigned mode = flush_denormals();
            backward_part(s, b, split, parts * split / s->splits * LANES, parts * (split + 1) / s->splits * LANES);
            restore_denormals(mode);
        }
}

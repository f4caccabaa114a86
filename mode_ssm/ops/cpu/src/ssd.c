// The Mamba-2 scan as the recurrence it is: forward, and backward from the states at chunk starts.
//
// Built like selective_scan.c, which see: channels (head by head) across the lanes, BLOCK states at a time in registers.
// A head's decay is one number a frame, so a state costs three multiply-adds; the chunked matrix form of the paper costs
// as many and writes its Q x Q matrices to memory besides.
#include "vector.h"

#define BLOCK (LANES == 16 ? 4 : 8)  // measured; both divide what the caller pads to
#define MAX_CHUNK 32

typedef struct {
    rows x, dt, B, C, y;       // (B, T, H * P or H or N)
    rows dx, ddt, dB, dC, dy;  // gradients likewise; dB and dC have one slab for each split of the heads
    const float *A;            // (H,)
    const float *D;            // (H,) or NULL
    float *initial, *final;    // (B, N, D), N padded to 8 and D = H * P to LANES; initial may be NULL
    float *dinitial, *dfinal;  // (B, N, D)
    float *starts;             // (B, chunks, N, D) or NULL
    float *dA, *dD;            // (B, H)
    const int64_t *lengths;    // (B,)
    int64_t batch, time, heads, width, channels, states;  // width: P; channels: D
    int64_t chunk, splits, slab;                          // slab: floats from one split's dB to the next one's
    int32_t reverse, threads;
} ssd_args;

// Which head each lane's channel belongs to.
typedef struct {
    int64_t head[LANES];
    int count, same;  // lanes in use; whether they share one head
} lane_heads;

static inline lane_heads heads_of(const ssd_args *s, int64_t d0) {
    lane_heads l = {.count = (int)MIN(LANES, s->heads * s->width - d0)};
    for (int i = 0; i < LANES; i++) l.head[i] = (d0 + MIN(i, l.count - 1)) / s->width;
    l.same = l.head[0] == l.head[LANES - 1];
    return l;
}

static inline vf of_heads(const float *values, const lane_heads *l) {
    if (l->same) return splat(values[l->head[0]]);
    vf v;
    for (int i = 0; i < LANES; i++) v[i] = values[l->head[i]];
    return v;
}

static inline void add_to_heads(float *values, vf v, const lane_heads *l) {
    if (l->same) values[l->head[0]] += lane_sum(v);
    else
        for (int i = 0; i < l->count; i++) values[l->head[i]] += v[i];
}

static void forward_channels(const ssd_args *s, int64_t b, int64_t d0) {
    const int64_t length = s->lengths[b], N = s->states, D = s->channels, sign = s->reverse ? -1 : 1;
    const int64_t chunks = (s->time + s->chunk - 1) / s->chunk;
    const lane_heads lanes = heads_of(s, d0);
    const float *x = first_frame(s->x, b, length, s->reverse) + d0, *dt = first_frame(s->dt, b, length, s->reverse);
    const float *B = first_frame(s->B, b, length, s->reverse), *C = first_frame(s->C, b, length, s->reverse);
    float *y = first_frame(s->y, b, length, s->reverse) + d0;
    const vf a = of_heads(s->A, &lanes) * LOG2E, skip = s->D ? of_heads(s->D, &lanes) : splat(0);
    vf h[N], decay[MAX_CHUNK], input[MAX_CHUNK], output[MAX_CHUNK];

    for (int64_t n = 0; n < N; n++) h[n] = s->initial ? load(s->initial + (b * N + n) * D + d0) : splat(0);
    for (int64_t t0 = 0; t0 < length; t0 += s->chunk) {
        const int frames = (int)MIN(s->chunk, length - t0);
        if (s->starts)
            for (int64_t n = 0; n < N; n++) store(s->starts + ((b * chunks + t0 / s->chunk) * N + n) * D + d0, h[n]);
        for (int i = 0; i < frames; i++) {
            const int64_t t = sign * (t0 + i), ahead = sign * (t0 + i + s->chunk);
            __builtin_prefetch(x + ahead * s->x.frame, 0, 2);
            __builtin_prefetch(y + ahead * s->y.frame, 1, 2);
            const vf delta = of_heads(dt + t * s->dt.frame, &lanes), value = load_part(x + t * s->x.frame, lanes.count);
            decay[i] = decay_code(delta * a);
            input[i] = delta * value;
            output[i] = skip * value;
        }
        for (int64_t n = 0; n < N; n += BLOCK) {
            vf state[BLOCK];
            for (int k = 0; k < BLOCK; k++) state[k] = h[n + k];
            for (int i = 0; i < frames; i++) {
                const float *b_t = B + sign * (t0 + i) * s->B.frame + n, *c_t = C + sign * (t0 + i) * s->C.frame + n;
                vf even = output[i], odd = splat(0);
                for (int k = 0; k < BLOCK; k += 2) {
                    state[k] = decayed(decay[i], state[k]) + input[i] * b_t[k];
                    state[k + 1] = decayed(decay[i], state[k + 1]) + input[i] * b_t[k + 1];
                    even += state[k] * c_t[k];
                    odd += state[k + 1] * c_t[k + 1];
                }
                output[i] = even + odd;
            }
            for (int k = 0; k < BLOCK; k++) h[n + k] = state[k];
        }
        for (int i = 0; i < frames; i++) store_part(y + sign * (t0 + i) * s->y.frame, output[i], lanes.count);
    }
    for (int64_t n = 0; n < N; n++) store(s->final + (b * N + n) * D + d0, h[n]);
    for (int64_t t = length; t < s->time; t++)
        store_part(s->y.data + b * s->y.batch + t * s->y.frame + d0, splat(0), lanes.count);
}

void ssd_forward(const ssd_args *s) {
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
    vf decay[MAX_CHUNK], input[MAX_CHUNK], dy[MAX_CHUNK], dinput[MAX_CHUNK], dlog[MAX_CHUNK];
} packed_chunk;

// BLOCK states at one frame: the state before it; gradients of B and C, over all channels so far.
typedef struct {
    vf before[BLOCK], sum_B[BLOCK], sum_C[BLOCK];
} frame_block;

// BLOCK states of LANES channels through one chunk: forward again, then backward.
// `carried` is d loss / d (state that leaves the chunk) on entry and that of the state before it on return.
static inline void backward_block(packed_chunk *p, int frames, const float *start, int64_t D, vf *carried, const float *B,
                                  int64_t B_frame, const float *C, int64_t C_frame, frame_block *frame) {
    vf h[BLOCK], g[BLOCK];
    for (int k = 0; k < BLOCK; k++) h[k] = load(start + k * D), g[k] = carried[k];
    for (int i = 0; i < frames; i++) {
        const vf decay = p->decay[i], input = p->input[i], dy = p->dy[i];
        for (int k = 0; k < BLOCK; k++) {
            frame[i].before[k] = h[k];
            h[k] = decayed(decay, h[k]) + input * B[i * B_frame + k];
            frame[i].sum_C[k] += h[k] * dy;
        }
    }
    for (int i = frames - 1; i >= 0; i--) {
        const vf decay = p->decay[i], input = p->input[i], dy = p->dy[i];
        vf dinput = p->dinput[i], dlog = p->dlog[i];
        for (int k = 0; k < BLOCK; k++) {
            g[k] += dy * C[i * C_frame + k];
            frame[i].sum_B[k] += g[k] * input;
            dinput += g[k] * B[i * B_frame + k];
            g[k] = decayed(decay, g[k]);
            dlog += g[k] * frame[i].before[k];  // d loss / d (dt * A)
        }
        p->dinput[i] = dinput, p->dlog[i] = dlog;
    }
    for (int k = 0; k < BLOCK; k++) carried[k] = g[k];
}

// One row of the batch and one part [begin, end) of its channels; the sums over channels go to slab `split`.
static void backward_part(const ssd_args *s, int64_t b, int64_t split, int64_t begin, int64_t end) {
    const int64_t length = s->lengths[b], N = s->states, D = s->channels, sign = s->reverse ? -1 : 1;
    const int64_t chunks = (s->time + s->chunk - 1) / s->chunk, parts = (end - begin + LANES - 1) / LANES;
    vf *carried = aligned_alloc(64, sizeof(vf) * parts * N);
    packed_chunk *packed = aligned_alloc(64, sizeof(packed_chunk) * parts);
    lane_heads *lanes = malloc(sizeof(lane_heads) * parts);
    frame_block frame[MAX_CHUNK];
    const float *x = first_frame(s->x, b, length, s->reverse), *dt = first_frame(s->dt, b, length, s->reverse);
    const float *dy = first_frame(s->dy, b, length, s->reverse);
    const float *B = first_frame(s->B, b, length, s->reverse), *C = first_frame(s->C, b, length, s->reverse);
    float *dx = first_frame(s->dx, b, length, s->reverse), *ddt = first_frame(s->ddt, b, length, s->reverse);
    float *dA = s->dA + b * s->heads, *dD = s->dD + b * s->heads;
    rows slab_B = s->dB, slab_C = s->dC;
    slab_B.data += split * s->slab, slab_C.data += split * s->slab;
    float *dB = first_frame(slab_B, b, length, s->reverse), *dC = first_frame(slab_C, b, length, s->reverse);

    for (int64_t j = 0; j < parts; j++) {
        lanes[j] = heads_of(s, begin + j * LANES);
        for (int64_t n = 0; n < N; n++) carried[j * N + n] = load(s->dfinal + (b * N + n) * D + begin + j * LANES);
    }
    for (int64_t c = (length + s->chunk - 1) / s->chunk - 1; c >= 0; c--) {
        const int64_t t0 = c * s->chunk;
        const int frames = (int)MIN(s->chunk, length - t0);
        for (int64_t j = 0; j < parts; j++) {
            const int64_t d0 = begin + j * LANES;
            const vf a = of_heads(s->A, lanes + j) * LOG2E;
            packed_chunk *p = packed + j;
            for (int i = 0; i < frames; i++) {
                const int64_t t = sign * (t0 + i), ahead = d0 + 4 * LANES;
                __builtin_prefetch(x + t * s->x.frame + ahead, 0, 2);
                __builtin_prefetch(dy + t * s->dy.frame + ahead, 0, 2);
                const vf delta = of_heads(dt + t * s->dt.frame, lanes + j);
                p->decay[i] = decay_code(delta * a);
                p->input[i] = delta * load_part(x + t * s->x.frame + d0, lanes[j].count);
                p->dy[i] = load_part(dy + t * s->dy.frame + d0, lanes[j].count);
                p->dinput[i] = splat(0), p->dlog[i] = splat(0);
            }
        }
        for (int64_t n = 0; n < N; n += BLOCK) {
            memset(frame, 0, sizeof(frame_block) * frames);
            for (int64_t j = 0; j < parts; j++)
                backward_block(packed + j, frames, s->starts + ((b * chunks + c) * N + n) * D + begin + j * LANES, D,
                               carried + j * N + n, B + sign * t0 * s->B.frame + n, sign * s->B.frame,
                               C + sign * t0 * s->C.frame + n, sign * s->C.frame, frame);
            for (int i = 0; i < frames; i++)
                for (int k = 0; k < BLOCK; k++) {
                    dB[sign * (t0 + i) * s->dB.frame + n + k] = lane_sum(frame[i].sum_B[k]);
                    dC[sign * (t0 + i) * s->dC.frame + n + k] = lane_sum(frame[i].sum_C[k]);
                }
        }
        for (int64_t j = 0; j < parts; j++) {
            const int64_t d0 = begin + j * LANES;
            const vf a = of_heads(s->A, lanes + j), skip = s->D ? of_heads(s->D, lanes + j) : splat(0);
            const packed_chunk *p = packed + j;
            vf sum_A = splat(0), sum_D = splat(0);
            for (int i = 0; i < frames; i++) {
                const int64_t t = sign * (t0 + i);
                const vf delta = of_heads(dt + t * s->dt.frame, lanes + j);
                const vf value = load_part(x + t * s->x.frame + d0, lanes[j].count);
                add_to_heads(ddt + t * s->ddt.frame, p->dinput[i] * value + p->dlog[i] * a, lanes + j);
                store_part(dx + t * s->dx.frame + d0, p->dinput[i] * delta + skip * p->dy[i], lanes[j].count);
                sum_A += p->dlog[i] * delta;
                sum_D += p->dy[i] * value;
            }
            add_to_heads(dA, sum_A, lanes + j);
            add_to_heads(dD, sum_D, lanes + j);
        }
    }
    for (int64_t j = 0; j < parts; j++) {
        const int64_t d0 = begin + j * LANES;
        for (int64_t n = 0; n < N; n++) store(s->dinitial + (b * N + n) * D + d0, carried[j * N + n]);
        for (int64_t t = length; t < s->time; t++)
            store_part(s->dx.data + b * s->dx.batch + t * s->dx.frame + d0, splat(0), lanes[j].count);
    }
    for (int64_t t = length; t < s->time; t++) {
        memset(slab_B.data + b * s->dB.batch + t * s->dB.frame, 0, sizeof(float) * N);
        memset(slab_C.data + b * s->dC.batch + t * s->dC.frame, 0, sizeof(float) * N);
    }
    free(carried), free(packed), free(lanes);
}

// ddt, dA and dD must be zero on entry. A split ends where a head ends, so that no two threads add to one head.
void ssd_backward(const ssd_args *s) {
    #pragma omp parallel for collapse(2) schedule(dynamic, 1) num_threads(s->threads)
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t split = 0; split < s->splits; split++) {
            const unsigned mode = flush_denormals();
            const int64_t begin = s->heads * split / s->splits * s->width, end = s->heads * (split + 1) / s->splits * s->width;
            backward_part(s, b, split, begin, end);
            restore_denormals(mode);
        }
}

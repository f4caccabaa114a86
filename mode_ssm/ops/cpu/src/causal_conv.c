// Depthwise causal convolution with a state, SiLU fused: forward, and backward from the inputs alone.
//
// Bound by memory: channels run innermost, so that rows stream, and TILE frames go at a time, so that taps and sums are
// read once a tile. What is convolved is one sequence of rows: W - 1 inputs from the state, then the frames in reading
// order. Tiles see pointers to its rows, and know neither the state nor the direction.
#include "vector.h"

#define TILE 8
#define INLINE static inline __attribute__((always_inline))

typedef struct {
    rows x, y, dx, dy;                // (B, T, D)
    const float *weight, *bias;       // (D, W), (D,) or NULL
    const float *initial, *dfinal;    // (B, D, W - 1) or NULL
    float *final, *dinitial;          // (B, D, W - 1)
    float *dweight, *dbias;           // (B, D, W), (B, D)
    const int64_t *lengths;           // (B,)
    int64_t batch, time, channels, taps, splits;
    int32_t silu, reverse, threads;
} conv_args;

// Channels [begin, begin + count) of one row of the batch. Its buffers are rows of `stride` floats, padded with zeros.
typedef struct {
    const conv_args *s;
    int64_t b, length, begin, count, stride;
    float *memory, *weight, *bias, *history;            // (W), (1), (W - 1) rows
    float *dweight, *dbias, *dhistory, *carry, *grads;  // (W), (1), (W - 1), (W - 1), (W - 1 + TILE) of LANES
} part;

// (D, taps) to rows of taps and back.
static void gather(float *to, const float *from, int64_t taps, const part *p) {
    if (!from) return;
    for (int64_t d = 0; d < p->count; d++)
        for (int64_t k = 0; k < taps; k++) to[k * p->stride + d] = from[(p->begin + d) * taps + k];
}
static void scatter(float *to, const float *from, int64_t taps, const part *p) {
    for (int64_t d = 0; d < p->count; d++)
        for (int64_t k = 0; k < taps; k++) to[(p->begin + d) * taps + k] = from[k * p->stride + d];
}

static part open_part(const conv_args *s, int64_t b, int64_t split, int backward) {
    const int64_t vectors = (s->channels + LANES - 1) / LANES, taps = s->taps, past = taps - 1;
    const int64_t begin = vectors * split / s->splits * LANES, end = vectors * (split + 1) / s->splits * LANES;
    const int64_t stride = end - begin;
    part p = {.s = s, .b = b, .length = s->lengths[b], .begin = begin, .stride = stride};
    p.count = MIN(stride, s->channels - begin);
    const size_t size = sizeof(float) * ((backward ? 4 * taps + past : 2 * taps) * stride + (past + TILE) * LANES);
    p.memory = memset(aligned_alloc(64, size + -size % 64), 0, size);
    p.weight = p.memory, p.bias = p.weight + taps * stride, p.history = p.bias + stride;
    gather(p.weight, s->weight, taps, &p);
    gather(p.bias, s->bias, 1, &p);
    gather(p.history, s->initial ? s->initial + b * s->channels * past : NULL, past, &p);
    if (backward) {
        p.dweight = p.history + past * stride, p.dbias = p.dweight + taps * stride;
        p.dhistory = p.dbias + stride, p.carry = p.dhistory + past * stride, p.grads = p.carry + past * stride;
    }
    return p;
}

// Row `i` of the sequence: from the buffer of the state, or a frame of `r`.
static inline float *sequence_row(const part *p, float *state, rows r, int64_t i) {
    const int64_t past = p->s->taps - 1, t = i - past;
    if (t < 0) return state + i * p->stride;
    return r.data + p->b * r.batch + (p->s->reverse ? p->length - 1 - t : t) * r.frame + p->begin;
}

static void clear_padding(const part *p, rows r) {
    for (int64_t t = p->length; t < p->s->time; t++)
        memset(r.data + p->b * r.batch + t * r.frame + p->begin, 0, sizeof(float) * p->count);
}

INLINE vf convolved(const part *p, float *const *in, int64_t c, int count, int64_t taps) {
    vf sum = load(p->bias + c);
    for (int64_t k = 0; k < taps; k++) sum += load(p->weight + k * p->stride + c) * load_part(in[k] + c, count);
    return sum;
}

// `in` are the rows from W - 1 before the first frame of the tile on.
INLINE void forward_vector(const part *p, float *const *in, float *const *out, int frames, int64_t c, int count,
                           int64_t taps) {
    for (int f = 0; f < frames; f++) {
        __builtin_prefetch(in[taps - 1 + f + TILE] + c, 0, 2);
        const vf sum = convolved(p, in + f, c, count, taps);
        store_part(out[f] + c, p->s->silu ? sum * sigmoid(sum) : sum, count);
    }
}

INLINE void forward_tile(const part *p, float *const *in, float *const *out, int frames, int64_t taps) {
    int64_t c = 0;
    for (; c + LANES <= p->count; c += LANES) forward_vector(p, in, out, frames, c, LANES, taps);
    if (c < p->count) forward_vector(p, in, out, frames, c, (int)(p->count - c), taps);
}

// Gradients of the convolution's results at the tile's frames, behind the W - 1 that the last tile left; from them the
// sums for the taps, and the gradients of the sequence's rows that no later frame reads.
INLINE void backward_vector(const part *p, float *const *in, float *const *dy, float *const *din, int frames, int64_t c,
                            int count, int64_t taps) {
    const int64_t past = taps - 1;
    float *g = p->grads, *carry = p->carry + c * past;
    vf dbias = load(p->dbias + c);
    for (int64_t k = 0; k < past; k++) store(g + k * LANES, load(carry + k * LANES));
    for (int f = 0; f < frames; f++) {
        __builtin_prefetch(in[past + f + TILE] + c, 0, 2);
        __builtin_prefetch(dy[f + TILE] + c, 0, 2);
        vf grad = load_part(dy[f] + c, count);
        if (p->s->silu) {
            const vf sum = convolved(p, in + f, c, count, taps), s = sigmoid(sum);
            grad *= s + s * (sum - sum * s);
        }
        store(g + (past + f) * LANES, grad);
        dbias += grad;
    }
    store(p->dbias + c, dbias);
    for (int64_t k = 0; k < taps; k++) {
        vf dweight = load(p->dweight + k * p->stride + c);
        for (int f = 0; f < frames; f++) dweight += load(g + (past + f) * LANES) * load_part(in[f + k] + c, count);
        store(p->dweight + k * p->stride + c, dweight);
    }
    for (int f = 0; f < frames; f++) {
        vf sum = splat(0);
        for (int64_t k = 0; k < taps; k++)
            sum += load(p->weight + (past - k) * p->stride + c) * load(g + (f + k) * LANES);
        store_part(din[f] + c, sum, count);
    }
    for (int64_t k = 0; k < past; k++) store(carry + k * LANES, load(g + (frames + k) * LANES));
}

INLINE void backward_tile(const part *p, float *const *in, float *const *dy, float *const *din, int frames,
                          int64_t taps) {
    int64_t c = 0;
    for (; c + LANES <= p->count; c += LANES) backward_vector(p, in, dy, din, frames, c, LANES, taps);
    if (c < p->count) backward_vector(p, in, dy, din, frames, c, (int)(p->count - c), taps);
}

// The widths that models have, each as a constant that unrolls the loops over taps.
#define WITH_CONSTANT_TAPS(call, taps)      \
    switch (taps) {                         \
        case 2: call(2); break;             \
        case 3: call(3); break;             \
        case 4: call(4); break;             \
        case 5: call(5); break;             \
        default: call(taps);                \
    }

static void forward_part(const part *p) {
    const conv_args *s = p->s;
    const int64_t taps = s->taps, past = taps - 1;
    float *in[past + 2 * TILE], *out[TILE];
    for (int64_t t0 = 0; t0 < p->length; t0 += TILE) {
        const int frames = (int)MIN(TILE, p->length - t0);
        for (int64_t i = 0; i < past + 2 * TILE; i++)
            in[i] = sequence_row(p, p->history, s->x, MIN(t0 + i, p->length + past - 1));
        for (int f = 0; f < frames; f++) out[f] = sequence_row(p, NULL, s->y, past + t0 + f);
#define CALL(n) forward_tile(p, in, out, frames, n)
        WITH_CONSTANT_TAPS(CALL, taps)
#undef CALL
    }
    clear_padding(p, s->y);
    float *final = s->final + p->b * s->channels * past;
    for (int64_t k = 0; k < past; k++) {
        const float *row = sequence_row(p, p->history, s->x, p->length + k);
        for (int64_t d = 0; d < p->count; d++) final[(p->begin + d) * past + k] = row[d];
    }
}

static void backward_part(const part *p) {
    const conv_args *s = p->s;
    const int64_t taps = s->taps, past = taps - 1, state = p->b * s->channels * past;
    float *in[past + 2 * TILE], *dy[2 * TILE], *din[TILE];
    for (int64_t t0 = 0; t0 < p->length; t0 += TILE) {
        const int frames = (int)MIN(TILE, p->length - t0);
        for (int64_t i = 0; i < past + 2 * TILE; i++)
            in[i] = sequence_row(p, p->history, s->x, MIN(t0 + i, p->length + past - 1));
        for (int64_t f = 0; f < 2 * TILE; f++) dy[f] = sequence_row(p, NULL, s->dy, past + MIN(t0 + f, p->length - 1));
        for (int f = 0; f < frames; f++) din[f] = sequence_row(p, p->dhistory, s->dx, t0 + f);
#define CALL(n) backward_tile(p, in, dy, din, frames, n)
        WITH_CONSTANT_TAPS(CALL, taps)
#undef CALL
    }
    // The last W - 1 inputs, which the final state holds too. No frame comes after them: what `carry` lacks is 0.
    for (int64_t i = 0; i < past; i++) {
        float *row = sequence_row(p, p->dhistory, s->dx, p->length + i);
        for (int64_t d = 0; d < p->count; d++) {
            const float *grads = p->carry + d / LANES * LANES * past + d % LANES;
            float sum = s->dfinal ? s->dfinal[state + (p->begin + d) * past + i] : 0;
            for (int64_t k = 0; i + k < past; k++)
                sum += p->weight[(past - k) * p->stride + d] * grads[(i + k) * LANES];
            row[d] = sum;
        }
    }
    clear_padding(p, s->dx);
    scatter(s->dinitial + state, p->dhistory, past, p);
    scatter(s->dweight + p->b * s->channels * taps, p->dweight, taps, p);
    scatter(s->dbias + p->b * s->channels, p->dbias, 1, p);
}

static void run(const conv_args *s, int backward) {
    #pragma omp parallel for collapse(2) schedule(static) num_threads(s->threads)
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t split = 0; split < s->splits; split++) {
            const unsigned mode = flush_denormals();
            const part p = open_part(s, b, split, backward);
            if (backward) backward_part(&p);
            else forward_part(&p);
            free(p.memory);
            restore_denormals(mode);
        }
}

void causal_conv_forward(const conv_args *s) { run(s, 0); }
void causal_conv_backward(const conv_args *s) { run(s, 1); }

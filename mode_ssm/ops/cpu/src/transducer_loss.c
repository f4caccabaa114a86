// The transducer loss. Forward: each row's lattice from its logits, the sums over paths, how often each arc is taken.
// Backward: the gradient of the logits from those uses, with the softmax formed once more.
//
// Classes lie across the lanes while the logits are read. The lattice is stored by anti-diagonals, node (t, u) at
// diagonal t + u and place u: all arcs lead to the next diagonal, so that its nodes lie across the lanes. It is in
// double, LANES / 2 a vector: in float, sums over hundreds of frames are off by half a percent.
#include "vector.h"

#define HALF (LANES / 2)
#define LOG_ZERO -1e30    // finite, so that differences of two of them are numbers
#define NO_PATH -1e29     // below it a sum of logs contains LOG_ZERO
#define NEVER 1e-26       // uses below count as 0: their products with probabilities would be denormal

typedef double vd __attribute__((vector_size(4 * LANES)));
typedef int64_t vl __attribute__((vector_size(4 * LANES)));
typedef uint64_t vu __attribute__((vector_size(4 * LANES)));
typedef float vh __attribute__((vector_size(2 * LANES)));

typedef struct {
    const float *logits;        // (B, T, U1, V)
    const int64_t *targets;     // (B, U1 - 1)
    const int64_t *frames, *labels;  // (B,) valid
    float *loss;                // (B,)
    float *kept;                // (4, B, T, U1) or NULL: largest logit, softmax's scale times both uses, each use
    const float *grad;          // (B,)
    float *dlogits;             // (B, T, U1, V)
    int64_t batch, time, nodes, classes, blank;
    int32_t threads;
} transducer_args;

static inline vd load_doubles(const double *p) { vd v; memcpy(&v, p, sizeof v); return v; }
static inline void store_doubles(double *p, vd v) { memcpy(p, &v, sizeof v); }
static inline vd widen(const float *p) { vh v; memcpy(&v, p, sizeof v); return __builtin_convertvector(v, vd); }
static inline vd splat_double(double x) { return x - (vd){0}; }
// The larger; NaN where b is.
static inline vd vmax_double(vd a, vd b) {
#if LANES == 16
    return (vd)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif LANES == 8
    return (vd)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__)
    return (vd)_mm_max_pd((__m128d)a, (__m128d)b);
#else
    vl mask = a > b;
    return (vd)((mask & (vl)a) | (~mask & (vl)b));
#endif
}
static inline float lane_max(vf v) {
#if LANES == 16
    return _mm512_reduce_max_ps((__m512)v);
#else
    float m = v[0];
    for (int i = 1; i < LANES; i++) m = v[i] > m ? v[i] : m;
    return m;
#endif
}

// exp(x) for x <= 0 to 1e-7. Not vector.h's, because NaN stays: a loss must not hide it.
static inline vf softmax_exp(vf x) {
    x = vmax(splat(-126.0f), x * LOG2E);
    vf shifted = x + 12582912.0f;
    vf f = x - (shifted - 12582912.0f);
    vf q = f * 1.539646980e-4f + 1.338664803e-3f;
    q = q * f + 9.618252139e-3f;
    q = q * f + 5.550369906e-2f;
    q = q * f + 2.402264981e-1f;
    q = q * f + 6.931471806e-1f;
    return (vf)(((vi)shifted << 23) + 0x3f800000) * (q * f + 1.0f);
}

// exp(x) for x <= 0 to 1e-10: an error made at each of hundreds of nodes adds up. NaN stays.
static inline vd exp_double(vd x) {
    x = vmax_double(splat_double(-1000.0), x * 1.4426950408889634);
    vd shifted = x + 6755399441055744.0;  // 1.5 * 2^52
    vd f = x - (shifted - 6755399441055744.0);
    vd q = f * 1.5252721483884176e-05 + 1.546132987878527e-4;  // minimax of (2^f - 1) / f on [-1/2, 1/2], 2e-10
    q = q * f + 1.3333669445342792e-3;
    q = q * f + 9.618057037069938e-3;
    q = q * f + 5.5504107276026164e-2;
    q = q * f + 2.4022650920051342e-1;
    q = q * f + 6.931471805815681e-1;
    return (vd)(((vu)shifted << 52) + 0x3ff0000000000000) * (q * f + 1.0);
}

// log(1 + w) for 0 <= w <= 1 to 1e-11.
static inline vd log1p_double(vd w) {
    vd s = w / (w + 2.0), z = s * s;  // 2 atanh(s), s <= 1/3
    vd q = z * 1.0398294372287452e-1 + 8.731109821066214e-2;
    q = q * z + 1.1132475784501612e-1;
    q = q * z + 1.4285148118793867e-1;
    q = q * z + 2.00000054503209e-1;
    q = q * z + 3.3333333324868314e-1;
    return 2.0 * s * (q * z + 1.0);
}

// log(x) for x >= 1/sqrt(2) to 2e-11; NaN stays.
static inline vd log_double(vd x) {
    vu exponent = ((vu)x - 0x3fe6a09e667f3bcd) >> 52;
    vd m = (vd)((vu)x - (exponent << 52));  // 1/sqrt(2) .. sqrt(2)
    vd s = (m - 1.0) / (m + 1.0), z = s * s;
    vd q = z * 1.1665496818552051e-1 + 1.4275398801815287e-1;
    q = q * z + 2.0000061047728782e-1;
    q = q * z + 3.333333327704051e-1;
    vd n = (vd)(exponent | 0x4330000000000000) - 4503599627370496.0;  // 2^52
    return n * 0.6931471805599453 + 2.0 * s * (q * z + 1.0) + (x - x);
}

// log(exp(a) + exp(b))
static inline vd log_add(vd a, vd b) {
    vd gap = (vd)((vl)(a - b) | INT64_MIN);  // -|a - b|
    return vmax_double(a, b) + log1p_double(exp_double(gap));
}

// A row's last vector of classes ends with the last class; `mask` has the lanes that no vector before it has read.
typedef struct {
    int64_t start;
    int count;
    vi mask;
} tail_of_classes;

static tail_of_classes tail_of(int64_t classes) {
    tail_of_classes tail = {classes > LANES ? classes - LANES : 0, (int)MIN(classes, LANES), {0}};
    const int seen = (int)((LANES - classes % LANES) % LANES);
    for (int i = 0; i < LANES; i++) tail.mask[i] = (classes > LANES ? i >= seen : i < classes) ? -1 : 0;
    return tail;
}
static inline vf load_tail(const float *p, const tail_of_classes *tail) {
    if (tail->count == LANES) return load(p + tail->start);
    vf v = splat(-INFINITY);
    memcpy(&v, p, sizeof(float) * tail->count);
    return v;
}

// One thread's lattice, a row of `stride` doubles a diagonal. Place u stands HALF behind the row's beginning, so that
// u - 1 can be read.
typedef struct {
    double *blank, *label;  // log-weights of the arcs that leave each node; later how often they are taken
    double *alpha;          // log of the summed weight of the paths to each node
    double *beta;           // one row: that of the paths from each node of a diagonal to the end
    float *frame;           // largest logit, sum of exponentials, logits of blank and label of a frame's nodes
    int64_t stride, diagonals, places;
} lattice;

static lattice new_lattice(const transducer_args *s) {
    lattice l = {.diagonals = s->time + s->nodes, .places = (s->nodes + HALF - 1) / HALF * HALF};
    l.stride = HALF + l.places;
    l.blank = malloc(sizeof(double) * (3 * l.diagonals + 2) * l.stride);
    l.label = l.blank + l.diagonals * l.stride;
    l.alpha = l.label + l.diagonals * l.stride;
    l.beta = l.alpha + l.diagonals * l.stride;
    l.frame = malloc(sizeof(float) * 4 * l.places);
    return l;
}

// Log-probabilities of blank and next label at every node of row `b`.
static void fill_arcs(const transducer_args *s, lattice *l, int64_t b, const tail_of_classes *tail) {
    const int64_t labels = s->labels[b], V = s->classes, plane = s->batch * s->time * s->nodes;
    const int64_t *targets = s->targets + b * (s->nodes - 1);
    float *largest = l->frame, *sums = largest + l->places, *blanks = sums + l->places, *nexts = blanks + l->places;
    for (int64_t t = 0; t < s->frames[b]; t++) {
        const float *x = s->logits + (b * s->time + t) * s->nodes * V;
        for (int64_t u = 0; u <= labels; u++, x += V) {
            const vf last = load_tail(x, tail);
            vf top = last;
            for (int64_t v = 0; v < tail->start; v += LANES) top = vmax(top, load(x + v));
            const float peak = lane_max(top);
            vf sum = (vf)((vi)softmax_exp(last - peak) & tail->mask);
            for (int64_t v = 0; v < tail->start; v += LANES) sum += softmax_exp(load(x + v) - peak);
            largest[u] = peak, sums[u] = lane_sum(sum);
            blanks[u] = x[s->blank], nexts[u] = u < labels ? x[targets[u]] : -INFINITY;
        }
        for (int64_t u0 = 0; u0 <= labels; u0 += HALF) {
            const int count = (int)MIN(HALF, labels + 1 - u0);
            const vd peak = widen(largest + u0), log_sum = log_double(widen(sums + u0));
            const vd blank = vmax_double(splat_double(LOG_ZERO), widen(blanks + u0) - peak - log_sum);
            const vd next = vmax_double(splat_double(LOG_ZERO), widen(nexts + u0) - peak - log_sum);
            double *places = l->blank + (t + u0) * l->stride + HALF + u0;
            for (int i = 0; i < count; i++, places += l->stride + 1) {
                places[0] = blank[i];
                places[l->label - l->blank] = next[i];
            }
        }
        if (s->kept) {
            float *kept = s->kept + (b * s->time + t) * s->nodes;
            memcpy(kept, largest, sizeof(float) * (labels + 1));
            memcpy(kept + plane, sums, sizeof(float) * (labels + 1));
        }
    }
}

// First and last vector of places that diagonal `n` of a lattice of that many frames and labels has nodes in.
static inline int64_t first_place(int64_t n, int64_t frames) { return n < frames ? 0 : (n - frames + 1) / HALF * HALF; }
static inline int64_t last_place(int64_t n, int64_t labels) { return MIN(n, labels) / HALF * HALF; }

// Paths from (0, 0); returns the log-likelihood.
static double sum_forwards(lattice *l, int64_t frames, int64_t labels) {
    l->alpha[HALF] = 0.0;
    for (int64_t n = 1; n < frames + labels; n++) {
        const int64_t row = n * l->stride + HALF, before = row - l->stride;
        for (int64_t u = first_place(n, frames); u <= last_place(n, labels); u += HALF) {
            const vd stay = load_doubles(l->alpha + before + u) + load_doubles(l->blank + before + u);
            const vd emit = load_doubles(l->alpha + before + u - 1) + load_doubles(l->label + before + u - 1);
            store_doubles(l->alpha + row + u, log_add(stay, emit));
        }
    }
    const int64_t end = (frames + labels - 1) * l->stride + HALF + labels;
    return l->alpha[end] + l->blank[end];
}

static inline vd probability(vd log_probability) {
    const vd p = exp_double(log_probability);
    return (vd)((vl)p & ~(p < NEVER));
}

// Paths to the end; every arc's log-weight becomes the probability that an alignment takes it.
static void sum_backwards(lattice *l, int64_t frames, int64_t labels, double log_likelihood) {
    double *beta = l->beta + HALF;
    beta[labels] = 0.0;
    for (int64_t n = frames + labels - 1; n >= 0; n--) {
        const int64_t row = n * l->stride + HALF;
        for (int64_t u = first_place(n, frames); u <= last_place(n, labels); u += HALF) {
            const vd stay = load_doubles(l->blank + row + u) + load_doubles(beta + u);
            const vd emit = load_doubles(l->label + row + u) + load_doubles(beta + u + 1);
            const vd reached = load_doubles(l->alpha + row + u) - log_likelihood;
            store_doubles(beta + u, log_add(stay, emit));
            store_doubles(l->blank + row + u, probability(reached + stay));
            store_doubles(l->label + row + u, probability(reached + emit));
        }
    }
}

static void keep_uses(const transducer_args *s, const lattice *l, int64_t b) {
    const int64_t plane = s->batch * s->time * s->nodes;
    for (int64_t t = 0; t < s->frames[b]; t++) {
        float *kept = s->kept + (b * s->time + t) * s->nodes;
        const double *blank = l->blank + t * l->stride + HALF, *label = l->label + t * l->stride + HALF;
        for (int64_t u = 0; u <= s->labels[b]; u++) {
            const double stay = blank[u * (l->stride + 1)], emit = label[u * (l->stride + 1)];
            kept[plane + u] = (float)(stay + emit) / kept[plane + u];
            kept[2 * plane + u] = (float)stay, kept[3 * plane + u] = (float)emit;
        }
    }
}

void transducer_loss_forward(const transducer_args *s) {
    const tail_of_classes tail = tail_of(s->classes);
    #pragma omp parallel num_threads(s->threads)
    {
        const unsigned mode = flush_denormals();
        lattice l = new_lattice(s);
        #pragma omp for schedule(dynamic, 1)
        for (int64_t b = 0; b < s->batch; b++) {
            for (int64_t i = 0; i < (3 * l.diagonals + 2) * l.stride; i++) l.blank[i] = LOG_ZERO;
            fill_arcs(s, &l, b, &tail);
            const double log_likelihood = sum_forwards(&l, s->frames[b], s->labels[b]);
            const int impossible = log_likelihood < NO_PATH;
            s->loss[b] = impossible ? INFINITY : (float)-log_likelihood;
            if (!s->kept) continue;
            if (impossible) {
                const int64_t row = s->time * s->nodes;
                for (int plane = 0; plane < 4; plane++)
                    memset(s->kept + (plane * s->batch + b) * row, 0, sizeof(float) * row);
            } else {
                sum_backwards(&l, s->frames[b], s->labels[b], log_likelihood);
                keep_uses(s, &l, b);
            }
        }
        free(l.blank), free(l.frame);
        restore_denormals(mode);
    }
}

// Softmax times the uses of both arcs, less each arc's own: frame `t` of row `b`, all nodes.
static void frame_gradient(const transducer_args *s, int64_t b, int64_t t, const tail_of_classes *tail) {
    const int64_t V = s->classes, plane = s->batch * s->time * s->nodes;
    const int64_t nodes = t < s->frames[b] ? s->labels[b] + 1 : 0;
    const int64_t *targets = s->targets + b * (s->nodes - 1);
    const int64_t first = (b * s->time + t) * s->nodes;
    const float *kept = s->kept + first, grad = s->grad[b], *x = s->logits + first * V;
    float *out = s->dlogits + first * V;
    for (int64_t u = 0; u < nodes; u++, x += V, out += V) {
        const float scale = kept[plane + u] * grad, peak = kept[u];
        if (scale == 0.0f) {
            memset(out, 0, sizeof(float) * V);
            continue;
        }
        const vf last = softmax_exp(load_tail(x, tail) - peak) * scale;
        for (int64_t v = 0; v < tail->start; v += LANES) store(out + v, softmax_exp(load(x + v) - peak) * scale);
        store_part(out + tail->start, last, tail->count);
        out[s->blank] -= kept[2 * plane + u] * grad;
        if (u < s->labels[b]) out[targets[u]] -= kept[3 * plane + u] * grad;
    }
    memset(out, 0, sizeof(float) * (s->nodes - nodes) * V);
}

void transducer_loss_backward(const transducer_args *s) {
    const tail_of_classes tail = tail_of(s->classes);
    #pragma omp parallel for collapse(2) schedule(static) num_threads(s->threads)
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t t = 0; t < s->time; t++) {
            const unsigned mode = flush_denormals();
            frame_gradient(s, b, t, &tail);
            restore_denormals(mode);
        }
}

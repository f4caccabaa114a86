// The gates behind the scans: x * silu(z), and the RMS norm of it, forward and backward.
//
// Bound by memory: rows stream through once, and what a row's second pass reads is still in the first-level cache.
#include "vector.h"

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    rows x, z, y, dy, dx, dz;  // (B, T, D)
    const float *weight;       // (D,)
    float *rstd;               // (B, T)
    float *dweight;            // (tasks, D)
    int64_t batch, time, channels, tasks;
    float eps;
    int32_t threads;
} gate_args;

// The rows of one frame.
typedef struct {
    const float *x, *z, *dy;
    float *y, *dx, *dz;
} frame;

static inline float *row(rows r, int64_t b, int64_t t) { return r.data ? r.data + b * r.batch + t * r.frame : NULL; }

static inline frame frame_at(const gate_args *s, int64_t i) {
    const int64_t b = i / s->time, t = i % s->time;
    return (frame){.x = row(s->x, b, t), .z = row(s->z, b, t), .dy = row(s->dy, b, t),
                   .y = row(s->y, b, t), .dx = row(s->dx, b, t), .dz = row(s->dz, b, t)};
}

// `call` for `count` channels from `c` on, until all are done; the count is a constant but for the last few.
#define FOR_VECTORS(channels, call)                                            \
    do {                                                                       \
        int64_t c = 0;                                                         \
        for (; c + LANES <= (channels); c += LANES) {                          \
            const int count = LANES;                                           \
            call;                                                              \
        }                                                                      \
        if (c < (channels)) {                                                  \
            const int count = (int)((channels) - c);                           \
            call;                                                              \
        }                                                                      \
    } while (0)

// d silu(z) / dz, where s = sigmoid(z).
static inline vf silu_slope(vf z, vf s) { return s + s * (z - z * s); }

INLINE void gate(frame f, int64_t c, int count) {
    const vf z = load_part(f.z + c, count);
    store_part(f.y + c, load_part(f.x + c, count) * (z * sigmoid(z)), count);
}

INLINE void gate_backward(frame f, int64_t c, int count) {
    const vf x = load_part(f.x + c, count), z = load_part(f.z + c, count), dy = load_part(f.dy + c, count);
    const vf s = sigmoid(z);
    store_part(f.dx + c, dy * (z * s), count);
    store_part(f.dz + c, dy * x * silu_slope(z, s), count);
}

INLINE void gate_and_square(frame f, vf *squares, int64_t c, int count) {
    const vf z = load_part(f.z + c, count), gated = load_part(f.x + c, count) * (z * sigmoid(z));
    *squares += gated * gated;
    store_part(f.y + c, gated, count);
}

INLINE void scale(frame f, const float *weight, float rstd, int64_t c, int count) {
    store_part(f.y + c, load_part(f.y + c, count) * rstd * load_part(weight + c, count), count);
}

// Adds to `along` what of the gradient points along the normalised row, which the norm takes out.
INLINE void project(frame f, const float *weight, float rstd, float *dweight, float *sigmoids, vf *along, int64_t c,
                    int count) {
    const vf z = load_part(f.z + c, count), dy = load_part(f.dy + c, count), s = sigmoid(z);
    const vf normed = load_part(f.x + c, count) * (z * s) * rstd;
    store_part(sigmoids + c, s, count);
    store_part(dweight + c, load_part(dweight + c, count) + dy * normed, count);
    *along += dy * load_part(weight + c, count) * normed;
}

INLINE void norm_backward(frame f, const float *weight, float rstd, float along, const float *sigmoids, int64_t c,
                          int count) {
    const vf x = load_part(f.x + c, count), z = load_part(f.z + c, count), s = load_part(sigmoids + c, count);
    const vf silu = z * s, dnormed = load_part(f.dy + c, count) * load_part(weight + c, count);
    const vf dgated = rstd * (dnormed - x * silu * rstd * along);
    store_part(f.dx + c, dgated * silu, count);
    store_part(f.dz + c, dgated * x * silu_slope(z, s), count);
}

static void gate_frames(const gate_args *s, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        const frame f = frame_at(s, i);
        FOR_VECTORS(s->channels, gate(f, c, count));
    }
}

static void gate_frames_backward(const gate_args *s, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        const frame f = frame_at(s, i);
        FOR_VECTORS(s->channels, gate_backward(f, c, count));
    }
}

static void norm_frames(const gate_args *s, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        const frame f = frame_at(s, i);
        vf squares = {0};
        FOR_VECTORS(s->channels, gate_and_square(f, &squares, c, count));
        const float rstd = 1.0f / sqrtf(lane_sum(squares) / (float)s->channels + s->eps);
        FOR_VECTORS(s->channels, scale(f, s->weight, rstd, c, count));
        s->rstd[i] = rstd;
    }
}

static void norm_frames_backward(const gate_args *s, int64_t begin, int64_t end, float *dweight) {
    float *sigmoids = malloc(sizeof(float) * s->channels);
    memset(dweight, 0, sizeof(float) * s->channels);
    for (int64_t i = begin; i < end; i++) {
        const frame f = frame_at(s, i);
        const float rstd = s->rstd[i];
        vf along = {0};
        FOR_VECTORS(s->channels, project(f, s->weight, rstd, dweight, sigmoids, &along, c, count));
        const float mean = lane_sum(along) / (float)s->channels;
        FOR_VECTORS(s->channels, norm_backward(f, s->weight, rstd, mean, sigmoids, c, count));
    }
    free(sigmoids);
}

// `call` for the frames [begin, end) of each task `number` of `s`.
#define FOR_TASKS(call)                                                                                 \
    do {                                                                                                \
        const int64_t frames = s->batch * s->time;                                                      \
        _Pragma("omp parallel for schedule(static) num_threads(s->threads)")                            \
        for (int64_t number = 0; number < s->tasks; number++) {                                         \
            const int64_t begin = frames * number / s->tasks, end = frames * (number + 1) / s->tasks;   \
            const unsigned mode = flush_denormals();                                                    \
            call;                                                                                       \
            restore_denormals(mode);                                                                    \
        }                                                                                               \
    } while (0)

void silu_gate_forward(const gate_args *s) { FOR_TASKS(gate_frames(s, begin, end)); }
void silu_gate_backward(const gate_args *s) { FOR_TASKS(gate_frames_backward(s, begin, end)); }
void gated_rms_norm_forward(const gate_args *s) { FOR_TASKS(norm_frames(s, begin, end)); }
void gated_rms_norm_backward(const gate_args *s) {
    FOR_TASKS(norm_frames_backward(s, begin, end, s->dweight + number * s->channels));
}

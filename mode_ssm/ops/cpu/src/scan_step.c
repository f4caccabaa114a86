// One frame of the scans, for streams: one thread, states (.., N) as torch keeps them, N across the lanes. What torch does
// in five passes over the state is one here: it is read and written once.
#include "vector.h"

typedef struct {
    const float *state, *u, *dt, *A, *B, *C, *D;  // Mamba-1: (B, D, N) (B, D) (B, D) (D, N) (B, N) (B, N) (D,) or NULL;
    float *y, *next;                              // Mamba-2: (B, H, P, N) (B, H, P) (B, H) (H,) and so on
    int64_t batch, channels, states, width;       // width: P, channels that share a step size, a decay and a skip weight
} step_args;

// One channel's states: `exponent` holds log2 of the decay for each state, or for all where `same`.
static inline float step_channel(const step_args *s, const float *state, float *next, const float *exponents, float delta,
                                 vf shared, int same, float input, const float *B, const float *C) {
    vf sum = splat(0);
    for (int64_t n = 0; n < s->states; n += LANES) {
        const int count = (int)MIN(LANES, s->states - n);
        vf decay = same ? shared : decay_code(load_part(exponents + n, count) * (delta * LOG2E));
        vf h = decayed(decay, load_part(state + n, count)) + input * load_part(B + n, count);
        store_part(next + n, h, count);
        sum += h * load_part(C + n, count);
    }
    return lane_sum(sum);
}

static void step_all(const step_args *s, int same) {
    const unsigned mode = flush_denormals();
    const int64_t heads = s->channels / s->width;
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t d = 0; d < s->channels; d++) {
            const int64_t head = d / s->width, at = b * s->channels + d;
            const float delta = s->dt[b * heads + head], u = s->u[at];
            const vf shared = same ? decay_code(splat(delta * s->A[head] * LOG2E)) : splat(0);
            s->y[at] = step_channel(s, s->state + at * s->states, s->next + at * s->states, s->A + d * s->states, delta,
                                    shared, same, delta * u, s->B + b * s->states, s->C + b * s->states);
            if (s->D) s->y[at] += s->D[head] * u;
        }
    restore_denormals(mode);
}

void selective_scan_step(const step_args *s) { step_all(s, 0); }  // width 1
void ssd_step(const step_args *s) { step_all(s, 1); }

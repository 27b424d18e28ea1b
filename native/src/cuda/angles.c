/* angles: cosines and sines of the rotary embedding for all positions of a context. */
#include <math.h>
#include <stdlib.h>

#include "engine.h"

int32_t wina_cuda_upload_angles(const wina_cuda_model *m, int32_t n_ctx, bool windowed,
                                float *out) {
    const wina_config *f = &m->model->config;
    const wina_weights *w = &m->model->weights;
    const bool is_long = f->n_ctx_short && n_ctx > f->n_ctx_short;
    const float *factors = is_long ? w->rope_factors_long : w->rope_factors;
    const double theta = (double)(windowed ? f->rope_theta_window : f->rope_theta);
    /* A second base comes with positions as they are. */
    const bool plain = windowed && f->rope_theta_window != f->rope_theta;
    const double scale = plain ? 1.0 : (double)f->rope_scale;
    const int32_t half = f->rope_dim / 2;
    size_t n = (size_t)n_ctx * (size_t)f->rope_dim;
    float *table = malloc(n * sizeof *table);
    if (!table)
        return m->host->fail(WINA_E_MEMORY, "out of memory: rotation table");
    for (int32_t i = 0; i < half; i++) {
        double rate = pow(theta, -2.0 * i / f->rope_dim);
        for (int32_t pos = 0; pos < n_ctx; pos++) {
            double angle = (double)pos * scale * rate;
            if (factors)
                angle /= (double)factors[i];
            table[((size_t)pos * (size_t)half + (size_t)i) * 2] = (float)cos(angle) * f->rope_gain;
            table[((size_t)pos * (size_t)half + (size_t)i) * 2 + 1] =
                (float)sin(angle) * f->rope_gain;
        }
    }
    cudaError_t e = cudaMemcpy(out, table, n * sizeof *table, cudaMemcpyHostToDevice);
    free(table);
    CUDA_TRY(m->host, e, "rotation table");
    return WINA_OK;
}

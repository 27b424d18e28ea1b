/* angles: cosines and sines of the rotary embedding for all positions of a context. */
#include <math.h>
#include <stdlib.h>

#include "engine.h"

int32_t wina_cuda_upload_angles(const wina_cuda_model *m, int32_t n_ctx, float *out) {
    const wina_config *f = &m->model->config;
    const float *factors = m->model->weights.rope_factors;
    const int32_t half = f->rope_dim / 2;
    size_t n = (size_t)n_ctx * (size_t)f->rope_dim;
    float *table = malloc(n * sizeof *table);
    if (!table)
        return m->host->fail(WINA_E_MEMORY, "out of memory: rotation table");
    for (int32_t i = 0; i < half; i++) {
        double rate = pow((double)f->rope_theta, -2.0 * i / f->rope_dim);
        for (int32_t pos = 0; pos < n_ctx; pos++) {
            double angle = (double)pos * (double)f->rope_scale * rate;
            if (factors)
                angle /= (double)factors[i];
            table[((size_t)pos * (size_t)half + (size_t)i) * 2] = (float)cos(angle);
            table[((size_t)pos * (size_t)half + (size_t)i) * 2 + 1] = (float)sin(angle);
        }
    }
    cudaError_t e = cudaMemcpy(out, table, n * sizeof *table, cudaMemcpyHostToDevice);
    free(table);
    CUDA_TRY(m->host, e, "rotation table");
    return WINA_OK;
}

/* One multiplication of a panel by one token or by several, for tools/count_kernels.py, which
 * counts the instructions of the kernels in it.
 *
 *   count_kernels TYPE N_STRIPS N_BLOCKS N_TOKENS STEP    every STEP-th input is kept
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/kernels.h"
#include "mem.h"
#include "wina.h"

static void *zeroed(size_t n, size_t size) {
    void *p = calloc(n, size);
    if (!p)
        exit(1);
    return p;
}

static wina_quads create_quads(size_t n) {
    return (wina_quads){zeroed(n, 4),     zeroed(2 * n, 1), zeroed(2 * n, 1), zeroed(2 * n, 1),
                        zeroed(2 * n, 2), zeroed(n, 4),     zeroed(n, 4)};
}

static void multiply_one(const wina_kernels *k, const wina_panel *p, int32_t step, float *x,
                         float *y) {
    int32_t *kept = zeroed((size_t)p->n_cols, 4);
    wina_act a = {.kept = kept,
                  .x = x,
                  .by32 = create_quads((size_t)p->n_cols + 64),
                  .by16 = create_quads((size_t)p->n_cols + 64)};
    for (int32_t i = 0; i < p->n_cols; i += step)
        kept[a.n_kept++] = i;
    k->quantize(x, kept, a.n_kept, p->n_cols, 32, &a.by32);
    k->quantize(x, kept, a.n_kept, p->n_cols, 16, &a.by16);
    k->gemv(p, &a, 0, p->n_blocks, 0, p->n_rows / WINA_STRIP, y);
}

static void multiply_batch(const wina_kernels *k, const wina_panel *p, int32_t n_tokens, float *x,
                           float *y) {
    size_t n = (size_t)n_tokens * (size_t)p->n_cols;
    wina_batch b = {.n_tokens = n_tokens, .stride = p->n_cols, .x = x};
    for (int i = 0; i < 2; i++) {
        b.hi[i] = zeroed(n, 1), b.lo[i] = zeroed(n, 1), b.x16[i] = zeroed(n, 2);
        b.scale[i] = zeroed(n, 4), b.sum[i] = zeroed(n, 4);
        for (int32_t t = 0; t < n_tokens; t++)
            k->quantize_row(&b, t, i);
    }
    for (int32_t strip = 0; strip < p->n_rows / WINA_STRIP; strip++)
        k->gemm(p, &b, 0, p->n_blocks, strip, strip + 1,
                y + (int64_t)strip * n_tokens * WINA_STRIP);
}

int main(int argc, char **argv) {
    if (argc != 6)
        return 2;
    const wina_dtype *type = NULL;
    for (uint32_t id = 0; id < 64 && !type; id++)
        if (strcmp(wina_dtype_name(id), argv[1]) == 0)
            type = wina_dtype_find(id);
    int32_t n_strips = atoi(argv[2]), n_blocks = atoi(argv[3]), n_tokens = atoi(argv[4]);
    wina_kernels k;
    wina_panel p;
    if (!type || wina_kernels_detect(&k) != WINA_OK ||
        wina_panel_plan(type->id, n_strips * WINA_STRIP, n_blocks * WINA_BLOCK, &p) != WINA_OK ||
        wina_mem_create_big(p.n_bytes, "panel", &p.data) != WINA_OK)
        return 1;
    float *x = zeroed((size_t)(n_tokens * p.n_cols), 4);
    float *y = zeroed((size_t)(n_tokens * p.n_rows), 4);
    for (int32_t i = 0; i < n_tokens * p.n_cols; i++)
        x[i] = (float)(i % 7) - 3.0f;
    if (n_tokens == 1)
        multiply_one(&k, &p, atoi(argv[5]), x, y);
    else
        multiply_batch(&k, &p, n_tokens, x, y);
    printf("%s %g\n", k.name, (double)y[0]);
    return 0;
}

#include "kvcache.h"

#include <stdlib.h>

#include "../mem.h"
#include "../status.h"
#include "kernels.h"

int32_t wina_kvcache_plan(const wina_model *model, const wina_backend_params *p,
                          wina_kvcache *out) {
    const wina_config *f = &model->config;
    wina_kvcache c = {.types = {p->cache_types[0], p->cache_types[1]}};
    WINA_TRY(wina_mem_create((uint64_t)f->n_layer, sizeof *c.layers, "KV cache", &c.layers));
    int64_t n_rows = 0; /* n_layer, n_head_kv and n_ctx are bounded: no overflow */
    for (int32_t i = 0; i < f->n_layer; i++) {
        c.layers[i].first_row = n_rows;
        c.layers[i].n_rows = wina_kvcache_rows(f, i, p->n_ctx, p->n_batch);
        n_rows += (int64_t)c.layers[i].n_rows * f->n_head_kv;
    }
    for (int v = 0; v < 2; v++) {
        uint64_t bytes;
        c.row_bytes[v] = wina_cache_row_bytes(c.types[v], f->head_dim);
        if (!wina_mem_mul((uint64_t)n_rows, c.row_bytes[v], &bytes) ||
            !wina_mem_add(c.n_bytes, bytes, &c.n_bytes)) {
            free(c.layers);
            return wina_fail(WINA_E_ARGUMENT, "n_ctx %d is too large", p->n_ctx);
        }
    }
    *out = c;
    return WINA_OK;
}

int32_t wina_kvcache_create(wina_kvcache *c) {
    const uint64_t n_rows = c->n_bytes / (c->row_bytes[0] + c->row_bytes[1]);
    for (int v = 0; v < 2; v++)
        WINA_TRY(wina_mem_create(n_rows, c->row_bytes[v], "KV cache", &c->data[v]));
    return WINA_OK;
}

void wina_kvcache_free(wina_kvcache *c) {
    free(c->layers);
    free(c->data[0]);
    free(c->data[1]);
    *c = (wina_kvcache){0};
}

void wina_kvcache_begin(wina_kvcache *c, int32_t n_layer, int32_t pos, int32_t n) {
    if (pos == 0)
        c->held_from = 0;
    for (int32_t i = 0; i < n_layer; i++) /* layers with a window are alike; others have all rows */
        if (pos + n - c->layers[i].n_rows > c->held_from)
            c->held_from = pos + n - c->layers[i].n_rows;
}

#include "cache.h"

#include <stdlib.h>
#include <string.h>

#include "../cpu/kernels.h"
#include "../cpu/kvcache.h"

enum { STAGING_BYTES = 1 << 20 }; /* of rows on their way between device and host */

static int32_t pad_of(const wina_cuda_cache *c) {
    return (c->m->model->config.head_dim + 7) / 8 * 8;
}

static int32_t n_blocks(const wina_cuda_cache *c) {
    return (c->m->model->config.head_dim + WINA_CACHE_BLOCK - 1) / WINA_CACHE_BLOCK;
}

static int32_t row_bytes(const wina_cuda_cache *c, bool value) {
    const int32_t pad = pad_of(c);
    return c->types[value] == WINA_CACHE_Q8_0
               ? (int32_t)((uint64_t)pad + (uint64_t)n_blocks(c) * sizeof(uint16_t) + 7) / 8 * 8
               : pad * (int32_t)sizeof(uint16_t);
}

int32_t wina_cuda_cache_init(wina_cuda_cache *c, const wina_cuda_model *m,
                             const wina_backend_params *p) {
    *c = (wina_cuda_cache){.m = m,
                           .n_ctx = p->n_ctx,
                           .n_batch = p->n_batch,
                           .types = {p->cache_types[0], p->cache_types[1]}};
    for (int v = 0; v < 2; v++)
        if (c->types[v] != WINA_CACHE_F16 && c->types[v] != WINA_CACHE_Q8_0)
            return m->host->fail(WINA_E_UNSUPPORTED,
                                 "CUDA: the cache of %s can only be f16 or q8_0 there: use the CPU "
                                 "(backend cpu, or 0 layers on the GPU)",
                                 v ? "values" : "keys");
    return WINA_OK;
}

int32_t wina_cuda_cache_rows(const wina_cuda_cache *c, int32_t layer) {
    return wina_kvcache_rows(&c->m->model->config, layer, c->n_ctx, c->n_batch);
}

uint64_t wina_cuda_cache_bytes(const wina_cuda_cache *c, bool value, int32_t layer) {
    uint64_t n_rows = 0;
    for (int32_t i = c->m->first; i < layer; i++)
        n_rows += (uint64_t)wina_cuda_cache_rows(c, i) * (uint64_t)c->m->model->config.n_head_kv;
    return n_rows * (uint64_t)row_bytes(c, value);
}

void wina_cuda_cache_begin(wina_cuda_cache *c, int32_t pos, int32_t n) {
    if (pos == 0)
        c->held_from = 0;
    for (int32_t i = c->m->first; i < c->m->end; i++) { /* layers without one have all rows */
        const int32_t n_rows = wina_cuda_cache_rows(c, i);
        if (pos + n - n_rows > c->held_from)
            c->held_from = pos + n - n_rows;
    }
}

void wina_cuda_cache_describe(const wina_cuda_cache *c, int32_t layer, wina_cuda_attend *out) {
    out->head_pad = pad_of(c);
    out->n_rows = wina_cuda_cache_rows(c, layer);
    for (int v = 0; v < 2; v++) {
        out->cache[v] = c->data[v] + wina_cuda_cache_bytes(c, v, layer);
        out->row_bytes[v] = row_bytes(c, v);
        out->is_q8[v] = c->types[v] == WINA_CACHE_Q8_0;
    }
}

/* ---- to and from the rows of a saved state ------------------------------------------------- */

/* One row: `own` as the device has it, `other` as the CPU has it. */
static void copy_row(const wina_cuda_cache *c, bool value, uint8_t *own, uint8_t *other,
                     bool to_cache) {
    const int32_t n_dim = c->m->model->config.head_dim, pad = pad_of(c);
    if (c->types[value] == WINA_CACHE_F16) {
        memcpy(to_cache ? own : other, to_cache ? other : own, (size_t)n_dim * sizeof(uint16_t));
        return;
    }
    for (int32_t b = 0; b < n_blocks(c); b++) {
        const int32_t at = b * WINA_CACHE_BLOCK;
        const size_t n = (size_t)(n_dim - at < WINA_CACHE_BLOCK ? n_dim - at : WINA_CACHE_BLOCK);
        uint8_t *block = other + (size_t)b * WINA_CACHE_BLOCK_BYTES;
        uint8_t *scale = own + pad + (size_t)b * sizeof(uint16_t);
        if (!to_cache)
            memset(block + sizeof(uint16_t), 0, WINA_CACHE_BLOCK);
        memcpy(to_cache ? scale : block, to_cache ? block : scale, sizeof(uint16_t));
        memcpy(to_cache ? own + at : block + sizeof(uint16_t),
               to_cache ? block + sizeof(uint16_t) : own + at, n);
    }
}

/* n rows that lie together on the device, at `at`; staging holds them. */
static cudaError_t copy_rows(const wina_cuda_cache *c, cudaStream_t stream, bool value, uint8_t *at,
                             int32_t n, uint8_t *staging, uint8_t *rows, bool to_cache) {
    const size_t own = (size_t)row_bytes(c, value), n_bytes = (size_t)n * own;
    const size_t other = wina_cache_row_bytes(c->types[value], c->m->model->config.head_dim);
    cudaError_t e = cudaSuccess;
    if (!to_cache)
        e = cudaMemcpyAsync(staging, at, n_bytes, cudaMemcpyDeviceToHost, stream);
    else
        memset(staging, 0, n_bytes); /* what pads rows is zero */
    if (e == cudaSuccess)
        e = cudaStreamSynchronize(stream);
    for (int32_t i = 0; i < n && e == cudaSuccess; i++)
        copy_row(c, value, staging + (size_t)i * own, rows + (size_t)i * other, to_cache);
    if (to_cache && e == cudaSuccess)
        e = cudaMemcpyAsync(at, staging, n_bytes, cudaMemcpyHostToDevice, stream);
    if (to_cache && e == cudaSuccess)
        e = cudaStreamSynchronize(stream);
    return e;
}

int32_t wina_cuda_cache_copy(const wina_cuda_cache *c, cudaStream_t stream, int32_t layer,
                             int32_t head, bool value, int32_t pos, int32_t n, uint8_t *rows,
                             bool to_cache) {
    const int32_t n_rows = wina_cuda_cache_rows(c, layer), own = row_bytes(c, value);
    const size_t other = wina_cache_row_bytes(c->types[value], c->m->model->config.head_dim);
    uint8_t *head0 = c->data[value] + wina_cuda_cache_bytes(c, value, layer) +
                     (uint64_t)head * (uint64_t)n_rows * (uint64_t)own;
    uint8_t *staging = malloc(STAGING_BYTES);
    if (!staging)
        return c->m->host->fail(WINA_E_MEMORY, "out of memory: saved state");
    cudaError_t e = cudaSuccess;
    for (int32_t done = 0, some; done < n && e == cudaSuccess; done += some) {
        const int32_t row = (pos + done) % n_rows;
        some = n - done < n_rows - row ? n - done : n_rows - row;
        some = some < STAGING_BYTES / own ? some : STAGING_BYTES / own;
        e = copy_rows(c, stream, value, head0 + (size_t)row * (size_t)own, some, staging,
                      rows + (size_t)done * other, to_cache);
    }
    free(staging);
    CUDA_TRY(c->m->host, e, "saved state");
    return WINA_OK;
}

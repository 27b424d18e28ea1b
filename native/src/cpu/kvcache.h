/* kvcache: keys and values of the tokens seen so far, of all layers of one session.
 *
 * A head of a layer has its rows in the order of positions. Layers with a sliding window have only
 * as many rows as a window needs, used in turn: position p is in row p % n_rows. Besides the window
 * there is room for one batch, all of which is stored before its first token attends, and for one
 * more, by which a session can be shortened without evaluating anything again. */
#ifndef WINA_KVCACHE_H
#define WINA_KVCACHE_H

#include "../backend.h"

typedef struct wina_kvcache_layer {
    int64_t first_row; /* of its first head, in both k and v */
    int32_t n_rows;    /* of each head: n_ctx, or fewer */
} wina_kvcache_layer;

typedef struct wina_kvcache {
    wina_kvcache_layer *layers; /* (n_layer) */
    int32_t types[2];           /* wina_cache_type of keys and of values */
    uint64_t row_bytes[2];
    uint8_t *data[2];
    uint64_t n_bytes;  /* of both */
    int32_t held_from; /* layers with a window have no position before this one */
} wina_kvcache;

/* Positions that a layer has room for, here and on a GPU. */
static inline int32_t wina_kvcache_rows(const wina_config *c, int32_t layer, int32_t n_ctx,
                                        int32_t n_batch) {
    const int64_t n = (int64_t)c->window - 1 + 2 * (int64_t)n_batch;
    return wina_config_has_window(c, layer) && n < n_ctx ? (int32_t)n : n_ctx;
}

/* Sizes only. WINA_E_ARGUMENT if they cannot be held. */
int32_t wina_kvcache_plan(const wina_model *model, const wina_backend_params *params,
                          wina_kvcache *out);
/* Memory for what was planned; pages are taken as the context fills. */
int32_t wina_kvcache_create(wina_kvcache *cache);
void wina_kvcache_free(wina_kvcache *cache); /* after plan, too */

/* Notes that positions [pos, pos + n) are about to be stored. */
void wina_kvcache_begin(wina_kvcache *cache, int32_t n_layer, int32_t pos, int32_t n);

/* Where keys (value: values) of a position are; *n_rows positions from there on lie together. */
static inline uint8_t *wina_kvcache_at(const wina_kvcache *c, int32_t n_ctx, int32_t layer,
                                       int32_t head, bool value, int32_t pos, int32_t *n_rows) {
    const wina_kvcache_layer *l = &c->layers[layer];
    const int32_t row = l->n_rows == n_ctx ? pos : pos % l->n_rows;
    *n_rows = l->n_rows - row;
    return c->data[value] +
           (uint64_t)(l->first_row + (int64_t)head * l->n_rows + row) * c->row_bytes[value];
}

#endif

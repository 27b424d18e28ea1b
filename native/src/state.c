/* state: what a session remembers, as bytes that another session of the same model goes on from.
 *
 * magic, version and sizes, then for every layer and head the rows of k and of v, one per token;
 * of layers with a window, those of the last tokens that the session still had.
 * A checksum covers all of it; the model is recognised by its sizes and its first weights. */
#include <string.h>

#include "cpu/kernels.h"
#include "session.h"
#include "statehash.h"
#include "status.h"

enum { STATE_VERSION = 2, FINGERPRINT_BYTES = 4096 };
static const char MAGIC[8] = "WINAKV\n";

typedef struct header {
    char magic[8];
    uint32_t version;
    int32_t n_past;
    int32_t types[2];  /* wina_cache_type of keys and of values */
    int32_t held_from; /* first position of layers with a window */
    int32_t reserved;
    uint64_t model;    /* fingerprint */
    uint64_t n_bytes;  /* of the whole state */
    uint64_t checksum; /* of everything after the header, and of the fields before it */
} header;

static uint64_t fingerprint(const wina_model *m) {
    const wina_config *c = &m->config;
    const int32_t sizes[] = {c->n_vocab,  c->n_embd, c->n_layer,  c->n_head,     c->n_head_kv,
                             c->head_dim, c->n_ff,   c->rope_dim, c->tied_output};
    uint64_t h = wina_statehash_bytes(WINA_STATEHASH_START, sizes, sizeof sizes);
    for (uint64_t i = 0; i < m->gguf->n_tensors; i++) {
        const wina_gguf_tensor *t = &m->gguf->tensors[i];
        if (!t->data) /* packed: the file's checksums, a tensor themselves, stand for it */
            continue;
        uint64_t n = t->n_bytes < FINGERPRINT_BYTES ? t->n_bytes : FINGERPRINT_BYTES;
        h = wina_statehash_words(h, t->data, n);
    }
    return h;
}

/* The first position that is saved of a layer. */
static int32_t first_of(const wina_session *s, const header *h, int32_t layer) {
    return wina_config_has_window(&s->model->config, layer) ? h->held_from : 0;
}

/* Bytes of the rows of all heads of k and v. */
static uint64_t rows_bytes(const wina_session *s, const header *h) {
    const wina_config *c = &s->model->config;
    uint64_t n_bytes = 0;
    for (int v = 0; v < 2; v++) {
        const uint64_t row = wina_cache_row_bytes(s->cache_types[v], c->head_dim);
        for (int32_t layer = 0; layer < c->n_layer; layer++)
            n_bytes += (uint64_t)(h->n_past - first_of(s, h, layer)) * row * (uint64_t)c->n_head_kv;
    }
    return n_bytes;
}

/* Copies between the cache and the rows after a header; of layers with a window only positions from
 * keep_from on. */
static int32_t copy_rows(wina_session *s, const header *h, char *rows, bool to_cache,
                         int32_t keep_from) {
    const wina_config *c = &s->model->config;
    s->backend->status = WINA_OK;
    for (int32_t layer = 0; layer < c->n_layer; layer++)
        for (int32_t head = 0; head < c->n_head_kv; head++)
            for (int v = 0; v < 2; v++) {
                const uint64_t row = wina_cache_row_bytes(s->cache_types[v], c->head_dim);
                const int32_t first = first_of(s, h, layer);
                const bool has_all = !wina_config_has_window(c, layer) || first > keep_from;
                const int32_t from = has_all ? first : keep_from, n = h->n_past - from;
                rows += (uint64_t)(from - first) * row; /* there is no room for these */
                s->backend->ops->copy_cache(s->backend, layer, head, v != 0, from, n, rows,
                                            to_cache);
                rows += (uint64_t)n * row;
            }
    return s->backend->status;
}

/* Takes over the rows; of layers with a window as many of the last as there is room for. */
static int32_t load_rows(wina_session *s, const header *h, char *rows) {
    const wina_backend_ops *ops = s->backend->ops;
    int32_t held_from = h->held_from;
    for (int32_t layer = 0; layer < s->model->config.n_layer; layer++) {
        const int32_t n_rows = ops->cache_rows(s->backend, layer);
        if (h->n_past - n_rows > held_from)
            held_from = h->n_past - n_rows;
    }
    ops->set_held_from(s->backend, held_from);
    return copy_rows(s, h, rows, true, held_from);
}

static uint64_t checksum(const header *h, const void *rows) {
    uint64_t sum = wina_statehash_bytes(WINA_STATEHASH_START, h, offsetof(header, checksum));
    return wina_statehash_words(sum, rows, h->n_bytes - sizeof *h);
}

int32_t wina_session_save_state(wina_session *s, void *data, size_t capacity, size_t *n_bytes) {
    *n_bytes = 0;
    header h = {.version = STATE_VERSION,
                .n_past = s->n_past,
                .types = {s->cache_types[0], s->cache_types[1]},
                .held_from = s->n_past ? s->backend->ops->held_from(s->backend) : 0,
                .model = fingerprint(s->model)};
    memcpy(h.magic, MAGIC, sizeof h.magic);
    h.n_bytes = sizeof h + rows_bytes(s, &h);
    *n_bytes = h.n_bytes;
    if (capacity < h.n_bytes)
        return wina_fail(WINA_E_SPACE, "the state has %zu bytes", *n_bytes);
    char *rows = (char *)data + sizeof h;
    WINA_TRY(copy_rows(s, &h, rows, false, 0));
    h.checksum = checksum(&h, rows);
    memcpy(data, &h, sizeof h);
    return WINA_OK;
}

int32_t wina_session_load_state(wina_session *s, const void *data, size_t n_bytes) {
    header h;
    if (n_bytes < sizeof h || memcmp(data, MAGIC, sizeof h.magic) != 0)
        return wina_fail(WINA_E_FORMAT, "this is no saved state");
    memcpy(&h, data, sizeof h);
    if (h.version != STATE_VERSION)
        return wina_fail(WINA_E_FORMAT, "the state has version %u, this library reads %d",
                         h.version, STATE_VERSION);
    if (h.model != fingerprint(s->model))
        return wina_fail(WINA_E_FORMAT, "the state belongs to another model");
    if (h.types[0] != s->cache_types[0] || h.types[1] != s->cache_types[1])
        return wina_fail(WINA_E_FORMAT,
                         "the state's cache has types that are not the session's: "
                         "%s and %s",
                         wina_cache_type_name(s->cache_types[0]),
                         wina_cache_type_name(s->cache_types[1]));
    const int32_t window = s->model->config.window;
    if (h.n_past < 0 || h.held_from < 0 || h.held_from > h.n_past ||
        (h.held_from > 0 && h.held_from > h.n_past - window + 1) || h.n_bytes != n_bytes ||
        h.n_bytes != sizeof h + rows_bytes(s, &h))
        return wina_fail(WINA_E_FORMAT, "the state has %zu bytes, which is not what %d tokens need",
                         n_bytes, h.n_past);
    if (h.n_past > s->n_ctx)
        return wina_fail(WINA_E_CONTEXT, "the state holds %d tokens, the context %d", h.n_past,
                         s->n_ctx);
    char *rows = (char *)(uintptr_t)data + sizeof h; /* only read */
    if (h.checksum != checksum(&h, rows))
        return wina_fail(WINA_E_FORMAT, "the state is damaged: its checksum is another");
    s->has_logits = false;
    s->n_past = 0; /* if it fails, nothing of what was there is left */
    WINA_TRY(load_rows(s, &h, rows));
    s->n_past = h.n_past;
    return WINA_OK;
}

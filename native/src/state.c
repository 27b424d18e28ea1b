/* state: what a session remembers, as bytes that another session of the same model goes on from.
 *
 * magic, version and sizes, then for every layer and head the rows of k and of v, one per token.
 * A checksum covers all of it; the model is recognised by its sizes and its first weights. */
#include <string.h>

#include "session.h"
#include "status.h"

enum { STATE_VERSION = 1, FINGERPRINT_BYTES = 4096 };
static const char MAGIC[8] = "WINAKV\n";

typedef struct header {
    char magic[8];
    uint32_t version;
    int32_t n_past;
    uint64_t model;    /* fingerprint */
    uint64_t n_bytes;  /* of the whole state */
    uint64_t checksum; /* of everything after the header, and of the fields before it */
} header;

static uint64_t hash(uint64_t h, const void *data, uint64_t n) {
    const unsigned char *p = data;
    for (uint64_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3u; /* NOLINT(clang-analyzer-core*): bytes of integers */
    return h;
}

/* FNV-1a by 8 bytes: caches are megabytes. */
static uint64_t hash_words(uint64_t h, const void *data, uint64_t n) {
    const unsigned char *p = data;
    uint64_t word;
    for (; n >= sizeof word; n -= sizeof word, p += sizeof word) {
        memcpy(&word, p, sizeof word);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return hash(h, p, n);
}

static uint64_t fingerprint(const wina_model *m) {
    const wina_config *c = &m->config;
    const int32_t sizes[] = {c->n_vocab,  c->n_embd, c->n_layer,  c->n_head,     c->n_head_kv,
                             c->head_dim, c->n_ff,   c->rope_dim, c->tied_output};
    uint64_t h = hash(0xcbf29ce484222325u, sizes, sizeof sizes);
    for (uint64_t i = 0; i < m->gguf->n_tensors; i++) {
        const wina_gguf_tensor *t = &m->gguf->tensors[i];
        if (!t->data) /* packed: the file's checksums, a tensor themselves, stand for it */
            continue;
        uint64_t n = t->n_bytes < FINGERPRINT_BYTES ? t->n_bytes : FINGERPRINT_BYTES;
        h = hash_words(h, t->data, n);
    }
    return h;
}

/* Bytes of the rows of all heads of k, or of v, for n tokens; 0 if the backend keeps them away. */
static uint64_t rows_bytes(const wina_session *s, int32_t n) {
    const wina_config *c = &s->model->config;
    uint64_t row = 0;
    if (!s->backend->ops->cache || !s->backend->ops->cache(s->backend, 0, 0, false, &row))
        return 0;
    return (uint64_t)n * row * (uint64_t)c->n_layer * (uint64_t)c->n_head_kv;
}

/* Copies between the cache and the rows after a header. */
static void copy_rows(wina_session *s, char *rows, int32_t n, bool to_cache) {
    const wina_config *c = &s->model->config;
    for (int32_t layer = 0; layer < c->n_layer; layer++)
        for (int32_t head = 0; head < c->n_head_kv; head++)
            for (int v = 0; v < 2; v++) {
                uint64_t row;
                char *own = s->backend->ops->cache(s->backend, layer, head, v != 0, &row);
                memcpy(to_cache ? own : rows, to_cache ? rows : own, (uint64_t)n * row);
                rows += (uint64_t)n * row;
            }
}

static uint64_t checksum(const header *h, const void *rows) {
    uint64_t sum = hash(0xcbf29ce484222325u, h, offsetof(header, checksum));
    return hash_words(sum, rows, h->n_bytes - sizeof *h);
}

static int32_t unsupported(const wina_session *s) {
    return wina_fail(WINA_E_UNSUPPORTED, "backend %s cannot save or load its state",
                     s->backend->ops->name);
}

int32_t wina_session_save_state(wina_session *s, void *data, size_t capacity, size_t *n_bytes) {
    *n_bytes = 0;
    if (!s->backend->ops->cache)
        return unsupported(s);
    header h = {.version = STATE_VERSION, .n_past = s->n_past, .model = fingerprint(s->model)};
    memcpy(h.magic, MAGIC, sizeof h.magic);
    h.n_bytes = sizeof h + 2 * rows_bytes(s, s->n_past);
    *n_bytes = h.n_bytes;
    if (capacity < h.n_bytes)
        return wina_fail(WINA_E_SPACE, "the state has %zu bytes", *n_bytes);
    char *rows = (char *)data + sizeof h;
    copy_rows(s, rows, s->n_past, false);
    h.checksum = checksum(&h, rows);
    memcpy(data, &h, sizeof h);
    return WINA_OK;
}

int32_t wina_session_load_state(wina_session *s, const void *data, size_t n_bytes) {
    if (!s->backend->ops->cache)
        return unsupported(s);
    header h;
    if (n_bytes < sizeof h || memcmp(data, MAGIC, sizeof h.magic) != 0)
        return wina_fail(WINA_E_FORMAT, "this is no saved state");
    memcpy(&h, data, sizeof h);
    if (h.version != STATE_VERSION)
        return wina_fail(WINA_E_FORMAT, "the state has version %u, this library reads %d",
                         h.version, STATE_VERSION);
    if (h.model != fingerprint(s->model))
        return wina_fail(WINA_E_FORMAT, "the state belongs to another model");
    if (h.n_past < 0 || h.n_bytes != n_bytes || h.n_bytes != sizeof h + 2 * rows_bytes(s, h.n_past))
        return wina_fail(WINA_E_FORMAT, "the state has %zu bytes, %d tokens need %llu", n_bytes,
                         h.n_past, (unsigned long long)(sizeof h + 2 * rows_bytes(s, h.n_past)));
    if (h.n_past > s->n_ctx)
        return wina_fail(WINA_E_CONTEXT, "the state holds %d tokens, the context %d", h.n_past,
                         s->n_ctx);
    char *rows = (char *)(uintptr_t)data + sizeof h; /* only read */
    if (h.checksum != checksum(&h, rows))
        return wina_fail(WINA_E_FORMAT, "the state is damaged: its checksum is another");
    copy_rows(s, rows, h.n_past, true);
    s->n_past = h.n_past;
    s->has_logits = false;
    return WINA_OK;
}

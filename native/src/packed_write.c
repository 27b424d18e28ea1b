/* packed_write: a loaded model to a packed file. Everything goes to a file beside the target that
 * takes the target's name when it is whole; its checksums are those of what was written, read back
 * through a mapping. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mem.h"
#include "packed.h"
#include "replace.h"
#include "status.h"

enum { N_OWN_KEYS = 7, N_OWN_TENSORS = 3 };
#define PIECE (8ull << 20) /* bytes between two looks at whether to stop */

/* Bytes that grow; after a failure nothing more is added. */
typedef struct bytes {
    uint8_t *data;
    uint64_t n, capacity;
    int32_t status;
} bytes;

static void put(bytes *b, const void *data, uint64_t n) {
    if (b->status == WINA_OK)
        b->status = wina_mem_grow(&b->data, &b->capacity, b->n + n, 1, "header");
    if (b->status != WINA_OK)
        return;
    if (n)
        memcpy(b->data + b->n, data, (size_t)n);
    b->n += n;
}

static void put_u32(bytes *b, uint32_t v) {
    put(b, &v, sizeof v);
}

static void put_u64(bytes *b, uint64_t v) {
    put(b, &v, sizeof v);
}

static void put_str(bytes *b, const char *text, uint64_t n) {
    put_u64(b, n);
    put(b, text, n);
}

static void put_key(bytes *b, const char *key, uint32_t type) {
    put_str(b, key, strlen(key));
    put_u32(b, type);
}

static void put_array(bytes *b, const char *key, uint32_t item_type, uint64_t count) {
    put_key(b, key, WINA_GGUF_ARRAY);
    put_u32(b, item_type);
    put_u64(b, count);
}

static void put_tensor(bytes *b, const char *name, uint64_t n_name, uint32_t n_dims,
                       const uint64_t *ne, uint32_t dtype, uint64_t offset) {
    put_str(b, name, n_name);
    put_u32(b, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        put_u64(b, ne[i]);
    put_u32(b, dtype);
    put_u64(b, offset);
}

static void put_words(bytes *b, const char *name, uint64_t n_bytes, uint64_t offset) {
    uint64_t n_words = n_bytes / sizeof(float);
    put_tensor(b, name, strlen(name), 1, &n_words, WINA_DTYPE_F32, offset);
}

/* ---- plan --------------------------------------------------------------------------------- */

typedef struct plan {
    const wina_gguf *gguf;
    const wina_weights *weights;
    bool *packed;      /* (n_tensors) of the source: lies in a panel */
    uint64_t *offsets; /* (n_tensors) of the others, from the start of the data */
    uint64_t n_packed;
    bool stacked; /* some of those are stacks of matrices */
    bytes norms;  /* all of them */
    uint64_t norms_offset, sums_offset, n_sections;
    uint64_t alignment, data_offset;
    bytes header;
} plan;

static uint64_t round_up(uint64_t n, uint64_t unit) {
    return (n + unit - 1) / unit * unit;
}

static int32_t add_norms(float **norms, int32_t n, void *user) {
    bytes *b = user;
    put(b, *norms, (uint64_t)n * sizeof **norms);
    return b->status;
}

static int32_t place(plan *p) {
    const wina_gguf *g = p->gguf;
    WINA_TRY(wina_mem_create(g->n_tensors, sizeof *p->packed, "plan", &p->packed));
    WINA_TRY(wina_mem_create(g->n_tensors, sizeof *p->offsets, "plan", &p->offsets));
    /* The weights are only read; the walk is shared with the loader, which fills them. */
    wina_weights walk = *p->weights;
    WINA_TRY(wina_weights_each_norms(&walk, add_norms, &p->norms));
    p->alignment = g->alignment > 64 ? g->alignment : 64;
    p->norms_offset = round_up(p->weights->arena_bytes, p->alignment);
    uint64_t at = round_up(p->norms_offset + p->norms.n, p->alignment);
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const wina_gguf_tensor *t = &g->tensors[i];
        char name[WINA_GGUF_MAX_NAME + 1];
        wina_panel_rows rows;
        memcpy(name, t->name.data, (size_t)t->name.n);
        name[t->name.n] = 0;
        p->packed[i] = wina_weights_find_rows(p->weights, name, 0, &rows);
        p->n_packed += p->packed[i];
        p->stacked |= p->packed[i] && t->ne[2] > 1;
        p->offsets[i] = at;
        if (!p->packed[i])
            at = round_up(at + t->n_bytes, p->alignment);
    }
    p->sums_offset = at;
    p->n_sections = wina_packed_n_sections(p->weights->n_layer);
    return WINA_OK;
}

static void put_packed_names(plan *p) {
    const wina_gguf *g = p->gguf;
    bytes *h = &p->header;
    put_array(h, "wina.pack.names", WINA_GGUF_STRING, p->n_packed);
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (p->packed[i])
            put_str(h, g->tensors[i].name.data, g->tensors[i].name.n);
    static const char *const KEYS[] = {"wina.pack.types", "wina.pack.cols", "wina.pack.rows",
                                       "wina.pack.stacks"};
    for (int k = 0; k < (p->stacked ? 4 : 3); k++) {
        put_array(h, KEYS[k], WINA_GGUF_U32, p->n_packed);
        for (uint64_t i = 0; i < g->n_tensors; i++)
            if (p->packed[i])
                put_u32(h, k == 0 ? g->tensors[i].dtype->id : (uint32_t)g->tensors[i].ne[k - 1]);
    }
}

/* The header; `padding` bytes in its last key. */
static int32_t build_header(plan *p, uint64_t padding) {
    const wina_gguf *g = p->gguf;
    bytes *h = &p->header;
    h->n = 0;
    put(h, "GGUF", 4);
    put_u32(h, 3);
    put_u64(h, g->n_tensors - p->n_packed + N_OWN_TENSORS);
    put_u64(h, g->n_kv + N_OWN_KEYS + p->stacked);
    put(h, g->map.data + g->kv_offset, g->kv_end - g->kv_offset);
    put_key(h, "wina.pack.version", WINA_GGUF_U32);
    put_u32(h, WINA_PACKED_VERSION);
    put_key(h, "wina.pack.layout", WINA_GGUF_U32);
    put_u32(h, WINA_PANEL_LAYOUT);
    put_packed_names(p);
    put_array(h, "wina.pack.padding", WINA_GGUF_U8, padding);
    for (uint64_t i = 0; i < padding; i++)
        put(h, "", 1);
    put_words(h, "wina.pack.panels", p->weights->arena_bytes, 0);
    put_words(h, "wina.pack.norms", p->norms.n, p->norms_offset);
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        const wina_gguf_tensor *t = &g->tensors[i];
        if (!p->packed[i])
            put_tensor(h, t->name.data, t->name.n, t->n_dims, t->ne, t->dtype->id, p->offsets[i]);
    }
    put_words(h, "wina.pack.sums", 8 * p->n_sections, p->sums_offset);
    return h->status;
}

static int32_t make_plan(plan *p) {
    WINA_TRY(place(p));
    WINA_TRY(build_header(p, 0));
    uint64_t border = p->alignment > WINA_PACKED_BORDER ? p->alignment : WINA_PACKED_BORDER;
    uint64_t padding = round_up(p->header.n, border) - p->header.n;
    WINA_TRY(build_header(p, padding));
    p->data_offset = p->header.n;
    return WINA_OK;
}

/* ---- file --------------------------------------------------------------------------------- */

typedef struct target {
    const char *path; /* of the file that is being written */
    int fd;
    uint64_t done, total;
    int32_t (*stop)(float progress, void *user);
    void *user;
} target;

static int32_t fail_errno(const char *path, const char *doing) {
    return wina_fail(WINA_E_IO, "%s: cannot %s: %s", path, doing, strerror(errno));
}

static int32_t write_at(target *t, const uint8_t *data, uint64_t n, uint64_t offset) {
    for (uint64_t at = 0; at < n;) {
        uint64_t piece = n - at < PIECE ? n - at : PIECE;
        if (t->stop && t->stop((float)t->done / (float)t->total, t->user))
            return wina_fail(WINA_E_CANCELLED, "writing was cancelled");
        ssize_t got = pwrite(t->fd, data + at, (size_t)piece, (off_t)(offset + at));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return fail_errno(t->path, "write it");
        at += (uint64_t)got;
        t->done += (uint64_t)got;
    }
    return WINA_OK;
}

static int32_t write_sums(const plan *p, target *t) {
    wina_mapfile map;
    bytes sums = {0};
    WINA_TRY(wina_mapfile_open(t->path, &map));
    for (uint64_t i = 0; i < p->n_sections; i++) {
        uint64_t begin, end;
        wina_packed_section(p->weights, p->data_offset, p->sums_offset, i, &begin, &end);
        put_u64(&sums, wina_packed_hash(map.data + begin, end - begin));
        wina_mapfile_release(&map, begin, end - begin);
    }
    wina_mapfile_close(&map);
    int32_t status = sums.status;
    if (status == WINA_OK)
        status = write_at(t, sums.data, sums.n, p->data_offset + p->sums_offset);
    free(sums.data);
    return status;
}

static int32_t write_all(const plan *p, target *t) {
    const wina_gguf *g = p->gguf;
    uint64_t data = p->data_offset, n_bytes = data + p->sums_offset + 8 * p->n_sections;
    t->total = n_bytes;
    /* The whole length at once: a full disk is told now, and gaps are zeros. */
    int full = posix_fallocate(t->fd, 0, (off_t)n_bytes);
    errno = full;
    if (full == ENOSPC || full == EFBIG)
        return fail_errno(t->path, "make room for it");
    if (full && ftruncate(t->fd, (off_t)n_bytes) != 0)
        return fail_errno(t->path, "set its length");
    WINA_TRY(write_at(t, p->header.data, p->header.n, 0));
    WINA_TRY(write_at(t, p->weights->arena, p->weights->arena_bytes, data));
    WINA_TRY(write_at(t, p->norms.data, p->norms.n, data + p->norms_offset));
    for (uint64_t i = 0; i < g->n_tensors; i++)
        if (!p->packed[i])
            WINA_TRY(write_at(t, g->tensors[i].data, g->tensors[i].n_bytes, data + p->offsets[i]));
    WINA_TRY(wina_gguf_check_unchanged(g));
    return write_sums(p, t);
}

static int32_t write_file(const plan *p, const char *path, target *t) {
    wina_replace file;
    WINA_TRY(wina_replace_begin(path, &file));
    t->path = file.part;
    t->fd = file.fd;
    int32_t status = write_all(p, t);
    if (status == WINA_OK)
        return wina_replace_commit(&file);
    wina_replace_abort(&file);
    return status;
}

int32_t wina_packed_write(const wina_gguf *gguf, const wina_weights *weights, const char *path,
                          int32_t (*stop)(float progress, void *user), void *user) {
    if (wina_packed_find(gguf))
        return wina_fail(WINA_E_ARGUMENT, "the model comes from a packed file already");
    plan p = {.gguf = gguf, .weights = weights};
    target t = {.fd = -1, .stop = stop, .user = user};
    int32_t status = make_plan(&p);
    if (status == WINA_OK)
        status = write_file(&p, path, &t);
    free(p.packed);
    free(p.offsets);
    free(p.norms.data);
    free(p.header.data);
    return status;
}

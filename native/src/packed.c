#include "packed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "status.h"

typedef unsigned long long ull;

/* ---- checksums ---------------------------------------------------------------------------- */

static inline uint64_t mix(uint64_t h, uint64_t word) {
    h = (h ^ word) * 0x9E3779B97F4A7C15u; /* odd, so that every step can be undone: */
    return h ^ h >> 32;                   /* one changed word always changes the result */
}

uint64_t wina_packed_hash(const uint8_t *data, uint64_t n) {
    uint64_t lanes[4] = {1, 2, 3, 4}, whole = n & ~31ull;
    for (uint64_t i = 0; i < whole; i += 32)
        for (int k = 0; k < 4; k++) {
            uint64_t word;
            memcpy(&word, data + i + 8 * k, 8);
            lanes[k] = mix(lanes[k], word);
        }
    uint64_t h = mix(n, lanes[0]);
    for (int k = 1; k < 4; k++)
        h = mix(h, lanes[k]);
    for (uint64_t i = whole; i < n; i++)
        h = mix(h, data[i]);
    return h;
}

void wina_packed_section(const wina_weights *w, uint64_t data_offset, uint64_t sums_offset,
                         uint64_t i, uint64_t *begin, uint64_t *end) {
    if (i == 0) {
        *begin = 0;
        *end = data_offset;
        return;
    }
    /* Where layer i begins is where its first panel lies; behind the last one the arena ends. */
    uint64_t n = (uint64_t)w->n_layer, border[2];
    for (uint64_t k = 0; k < 2; k++) {
        uint64_t at = i - 1 + k; /* 0: the output panel, 1 + l: layer l */
        border[k] = at == 0       ? 0
                    : at == n + 1 ? w->arena_bytes
                    : at > n + 1  ? sums_offset
                                  : w->layers[at - 1].offset;
    }
    *begin = data_offset + border[0];
    *end = data_offset + border[1];
}

/* ---- reading ------------------------------------------------------------------------------ */

bool wina_packed_find(const wina_gguf *gguf) {
    return wina_gguf_find(gguf, "wina.pack.version") != NULL;
}

static int32_t get_words(const wina_gguf *gguf, const char *name, uint64_t n_bytes,
                         const wina_gguf_tensor **out) {
    const wina_gguf_tensor *t = wina_gguf_find_tensor(gguf, name);
    if (!t || !t->data)
        return wina_fail(WINA_E_FORMAT, "packed file: tensor %s is missing", name);
    if (t->dtype->id != WINA_DTYPE_F32 || t->n_bytes != n_bytes)
        return wina_fail(WINA_E_FORMAT,
                         "packed file: tensor %s has %llu bytes of %s, expected %llu", name,
                         (ull)t->n_bytes, t->dtype->name, (ull)n_bytes);
    *out = t;
    return WINA_OK;
}

static uint64_t load_sum(const wina_gguf_tensor *sums, uint64_t i) {
    uint64_t sum;
    memcpy(&sum, sums->data + 8 * i, sizeof sum);
    return sum;
}

static int32_t check_header(const wina_gguf *gguf) {
    uint32_t version, layout;
    WINA_TRY(wina_gguf_get_u32(gguf, "wina.pack.version", &version));
    WINA_TRY(wina_gguf_get_u32(gguf, "wina.pack.layout", &layout));
    if (version != WINA_PACKED_VERSION)
        return wina_fail(WINA_E_UNSUPPORTED,
                         "the file was packed in format %u, this program reads %d: pack the "
                         "original again",
                         version, WINA_PACKED_VERSION);
    if (layout != WINA_PANEL_LAYOUT)
        return wina_fail(WINA_E_UNSUPPORTED,
                         "the file was packed with panel layout %u, this program has %d: pack the "
                         "original again",
                         layout, WINA_PANEL_LAYOUT);
    const wina_gguf_tensor *t = wina_gguf_find_tensor(gguf, "wina.pack.sums");
    WINA_TRY(get_words(gguf, "wina.pack.sums", t && t->n_bytes >= 8 ? t->n_bytes : 8, &t));
    if (wina_packed_hash(gguf->map.data, gguf->data_offset) != load_sum(t, 0))
        return wina_fail(WINA_E_FORMAT, "packed file: the header's checksum is wrong");
    return WINA_OK;
}

static int32_t attach(wina_gguf *gguf, wina_gguf_tensor *tensors, const wina_gguf_kv *names) {
    static const char *const KEYS[] = {"wina.pack.types", "wina.pack.cols", "wina.pack.rows"};
    const wina_gguf_kv *numbers[3];
    for (int k = 0; k < 3; k++)
        WINA_TRY(wina_gguf_get_array(gguf, KEYS[k], WINA_GGUF_U32, names->count, &numbers[k]));
    const wina_gguf_kv *stacks = NULL;
    if (wina_gguf_find(gguf, "wina.pack.stacks"))
        WINA_TRY(
            wina_gguf_get_array(gguf, "wina.pack.stacks", WINA_GGUF_U32, names->count, &stacks));
    const uint8_t *cursor = names->data;
    for (uint64_t i = 0; i < names->count; i++) {
        wina_gguf_tensor *t = &tensors[i];
        *t = (wina_gguf_tensor){.name = wina_gguf_next_str(&cursor), .n_dims = 2};
        if (t->name.n < 1 || t->name.n > WINA_GGUF_MAX_NAME)
            return wina_fail(WINA_E_FORMAT, "wina.pack.names: name %llu has %llu bytes", (ull)i,
                             (ull)t->name.n);
        for (uint64_t b = 0; b < t->name.n; b++) /* names of matrices, which will be printed */
            if (t->name.data[b] < 33 || t->name.data[b] > 126)
                return wina_fail(WINA_E_FORMAT, "wina.pack.names: name %llu is not plain ASCII",
                                 (ull)i);
        uint32_t type = (uint32_t)wina_gguf_item_int(numbers[0], i);
        t->dtype = wina_dtype_find(type);
        if (!t->dtype)
            return wina_fail(WINA_E_UNSUPPORTED, "wina.pack.types: unknown tensor type %u", type);
        t->ne[0] = (uint64_t)wina_gguf_item_int(numbers[1], i);
        t->ne[1] = (uint64_t)wina_gguf_item_int(numbers[2], i);
        t->ne[2] = stacks ? (uint64_t)wina_gguf_item_int(stacks, i) : 1;
        t->ne[3] = 1;
        t->n_dims = t->ne[2] == 1 ? 2 : 3;
    }
    return wina_gguf_add_tensors(gguf, tensors, names->count);
}

int32_t wina_packed_attach(wina_gguf *gguf) {
    if (!wina_packed_find(gguf))
        return WINA_OK;
    const wina_gguf_kv *names;
    WINA_TRY(check_header(gguf));
    WINA_TRY(wina_gguf_get_array(gguf, "wina.pack.names", WINA_GGUF_STRING, 0, &names));
    wina_gguf_tensor *tensors = NULL;
    WINA_TRY(wina_mem_create(names->count, sizeof *tensors, "packed tensors", &tensors));
    int32_t status = attach(gguf, tensors, names);
    free(tensors);
    return status;
}

/* Copies and drops 8 MiB at a time, so that file and copy are never both in memory. */
static void copy_mapped(const wina_gguf *gguf, const wina_gguf_tensor *t, uint8_t *out) {
    const uint64_t piece = 8ull << 20, start = (uint64_t)(t->data - gguf->map.data);
    for (uint64_t at = 0; at < t->n_bytes; at += piece) {
        uint64_t n = t->n_bytes - at < piece ? t->n_bytes - at : piece;
        memcpy(out + at, t->data + at, (size_t)n);
        wina_mapfile_release(&gguf->map, start + at, n);
    }
}

int32_t wina_packed_get_panels(const wina_gguf *gguf, uint64_t n_bytes, bool copy, uint8_t **out) {
    const wina_gguf_tensor *t = NULL;
    WINA_TRY(get_words(gguf, "wina.pack.panels", n_bytes, &t));
    const uintptr_t at = (uintptr_t)t->data, map = (uintptr_t)gguf->map.data;
    if (at < map || at - map >= gguf->map.n_bytes)
        return wina_fail(WINA_E_FORMAT, "packed file: the panels are in another part");
    if ((uintptr_t)t->data % 64 != 0)
        return wina_fail(WINA_E_FORMAT, "packed file: the panels are not aligned to 64 bytes");
    if (!copy) {
        *out = (uint8_t *)(uintptr_t)t->data; /* never written: w->mapped says so */
        return WINA_OK;
    }
    WINA_TRY(wina_mem_create_big(n_bytes, "weights", out));
    copy_mapped(gguf, t, *out);
    return WINA_OK;
}

typedef struct norms_cursor {
    const uint8_t *at;
    uint64_t n_floats;
} norms_cursor;

static int32_t count_norms(float **norms, int32_t n, void *user) {
    (void)norms;
    ((norms_cursor *)user)->n_floats += (uint64_t)n;
    return WINA_OK;
}

static int32_t copy_norms(float **norms, int32_t n, void *user) {
    norms_cursor *c = user;
    WINA_TRY(wina_mem_create((uint64_t)n, sizeof **norms, "norms", norms));
    memcpy(*norms, c->at, (size_t)n * sizeof **norms);
    c->at += (size_t)n * sizeof **norms;
    return WINA_OK;
}

int32_t wina_packed_read_norms(const wina_gguf *gguf, wina_weights *w) {
    norms_cursor c = {NULL, 0};
    const wina_gguf_tensor *t = NULL;
    wina_weights_each_norms(w, count_norms, &c);
    WINA_TRY(get_words(gguf, "wina.pack.norms", c.n_floats * sizeof(float), &t));
    c.at = t->data;
    return wina_weights_each_norms(w, copy_norms, &c);
}

int32_t wina_packed_verify(const wina_gguf *gguf, const wina_weights *w) {
    uint64_t n = wina_packed_n_sections(w->n_layer);
    const wina_gguf_tensor *sums = NULL, *panels = NULL;
    WINA_TRY(get_words(gguf, "wina.pack.sums", 8 * n, &sums));
    WINA_TRY(get_words(gguf, "wina.pack.panels", w->arena_bytes, &panels));
    if (panels->offset != 0 || sums->offset < panels->n_bytes)
        return wina_fail(WINA_E_FORMAT, "packed file: the panels are not where they belong");
    for (uint64_t i = 0; i < n; i++) {
        uint64_t begin, end;
        wina_packed_section(w, gguf->data_offset, sums->offset, i, &begin, &end);
        if (wina_packed_hash(gguf->map.data + begin, end - begin) == load_sum(sums, i))
            continue;
        char name[32] = "the header";
        if (i == 1 || i == n - 1)
            snprintf(name, sizeof name, "%s", i == 1 ? "the output panel" : "the unpacked tensors");
        else if (i > 1)
            snprintf(name, sizeof name, "layer %llu", (ull)i - 2);
        return wina_fail(WINA_E_FORMAT, "the checksum of %s (bytes %llu to %llu) is wrong", name,
                         (ull)begin, (ull)end);
    }
    return WINA_OK;
}

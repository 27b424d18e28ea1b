/* gguf: parsing and validation. All bytes are read through one cursor (reader) whose `take` is the
 * only place that advances, after comparing with the bytes that remain. Counts are compared with
 * what the remaining bytes could hold before anything is allocated for them, so a small file cannot
 * ask for much. Tensors are placed last, when the whole header is known to be sound. */
#include "gguf.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "mem.h"
#include "status.h"
#include "unicode.h"

typedef unsigned long long ull;

/* Smallest encodings: string of one byte, type, a value of one byte; string, n_dims, one
 * dimension, type, offset. */
enum { MIN_KV_BYTES = 8 + 1 + 4 + 1, MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8 };

typedef struct reader {
    const uint8_t *data;
    uint64_t n, pos;
    wina_gguf *gguf;
    /* For messages: the file, and the entry that is being read (kind NULL: none). */
    const char *file;
    const char *kind;
    uint64_t index;
    wina_str label; /* its key or name, once known to be printable */
} reader;

/* ---- messages ---------------------------------------------------------------------------- */

enum { SHOWN_FILE = 160, SHOWN_LABEL = 120 };

/* Steps back from n to the start of a character of valid UTF-8. */
static uint64_t character_border(const char *text, uint64_t n) {
    while (n > 0 && ((unsigned char)text[n] & 0xC0) == 0x80)
        n--;
    return n;
}

/* Long paths are shown by their end, long keys by their start, so that the reason still fits. */
static int32_t __attribute__((format(printf, 3, 4)))
fail(const reader *r, int32_t status, const char *format, ...) {
    char reason[320], entry[SHOWN_LABEL + 64] = "";
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    if (r->kind && r->label.n) {
        bool cut = r->label.n > SHOWN_LABEL;
        uint64_t n = cut ? character_border(r->label.data, SHOWN_LABEL) : r->label.n;
        snprintf(entry, sizeof entry, "%s \"%.*s%s\": ", r->kind, (int)n, r->label.data,
                 cut ? "..." : "");
    } else if (r->kind) {
        snprintf(entry, sizeof entry, "%s number %llu: ", r->kind, (ull)r->index);
    }
    const char *file = r->file, *dots = "";
    size_t n_file = strlen(file);
    if (n_file > SHOWN_FILE) {
        dots = "...";
        file += n_file - SHOWN_FILE;
        while (((unsigned char)*file & 0xC0) == 0x80)
            file++;
    }
    return wina_fail(status, "%s%s: %s%s", dots, file, entry, reason);
}

static void enter(reader *r, const char *kind, uint64_t index) {
    r->kind = kind;
    r->index = index;
    r->label = (wina_str){NULL, 0};
}

/* ---- cursor ------------------------------------------------------------------------------ */

static uint64_t remaining(const reader *r) {
    return r->n - r->pos;
}

static int32_t take(reader *r, uint64_t n, const char *what, const uint8_t **out) {
    *out = r->data;
    if (n > remaining(r))
        return fail(r, WINA_E_FORMAT, "cut short: %s at offset %llu has %llu bytes, %llu remain",
                    what, (ull)r->pos, (ull)n, (ull)remaining(r));
    *out = r->data + r->pos;
    r->pos += n;
    return WINA_OK;
}

static int32_t take_u32(reader *r, const char *what, uint32_t *out) {
    const uint8_t *bytes;
    WINA_TRY(take(r, sizeof *out, what, &bytes));
    memcpy(out, bytes, sizeof *out);
    return WINA_OK;
}

static int32_t take_u64(reader *r, const char *what, uint64_t *out) {
    const uint8_t *bytes;
    WINA_TRY(take(r, sizeof *out, what, &bytes));
    memcpy(out, bytes, sizeof *out);
    return WINA_OK;
}

static int32_t take_str(reader *r, uint64_t limit, int32_t limit_status, const char *what,
                        wina_str *out) {
    const uint8_t *bytes;
    uint64_t n;
    WINA_TRY(take_u64(r, what, &n));
    if (n <= remaining(r) && n > limit)
        return fail(r, limit_status, "%s has %llu bytes, the limit is %llu", what, (ull)n,
                    (ull)limit);
    WINA_TRY(take(r, n, what, &bytes));
    *out = (wina_str){(const char *)bytes, n};
    return WINA_OK;
}

/* A key or name: it will be printed and compared with C strings. */
static int32_t take_label(reader *r, uint64_t limit, const char *what) {
    wina_str s;
    WINA_TRY(take_str(r, limit, WINA_E_FORMAT, what, &s));
    if (s.n == 0)
        return fail(r, WINA_E_FORMAT, "the %s is empty", what);
    uint64_t n_valid = wina_unicode_valid((const uint8_t *)s.data, (size_t)s.n);
    if (n_valid < s.n)
        return fail(r, WINA_E_FORMAT, "the %s is not UTF-8 at its byte %llu", what, (ull)n_valid);
    for (uint64_t i = 0; i < s.n; i++)
        if ((unsigned char)s.data[i] < 32 || s.data[i] == 127)
            return fail(r, WINA_E_FORMAT, "the %s has control character %u at its byte %llu", what,
                        (unsigned)(unsigned char)s.data[i], (ull)i);
    r->label = s;
    return WINA_OK;
}

/* ---- hash tables ------------------------------------------------------------------------- */

/* Polynomial in a random key modulo 2^61 - 1: two different texts of n bytes meet with a
 * probability near n / 4 / 2^61, whatever the texts are. */
static uint64_t hash(uint64_t key, const char *text, uint64_t n) {
    const uint64_t prime = (1ull << 61) - 1;
    uint64_t h = n + 1;
    for (uint64_t i = 0; i < n; i += 4) {
        uint32_t piece = 0;
        memcpy(&piece, text + i, (size_t)(n - i < 4 ? n - i : 4));
        unsigned __int128 product = (unsigned __int128)(h + piece) * key;
        h = (uint64_t)(product & prime) + (uint64_t)(product >> 61);
        h = h >= prime ? h - prime : h;
    }
    return h ^ h >> 29;
}

static uint64_t draw_hash_key(const void *salt) {
    uint64_t key;
    if (getrandom(&key, sizeof key, GRND_NONBLOCK) != (ssize_t)sizeof key) {
        struct timespec now = {0, 0};
        clock_gettime(CLOCK_MONOTONIC, &now);
        key = ((uint64_t)(uintptr_t)salt ^ (uint64_t)now.tv_nsec << 20) * 0x9E3779B97F4A7C15u;
    }
    return (key >> 4) | 1ull << 59; /* below the prime, never small */
}

/* Slot of text: the one that holds it or the free one where it belongs. `label` of entry i lies at
 * labels + i * stride. Tables are at most half full. */
static uint64_t find_slot(const uint32_t *slots, uint64_t n_slots, const void *labels,
                          uint64_t stride, uint64_t key, const char *text, uint64_t n) {
    uint64_t slot = hash(key, text, n) & (n_slots - 1);
    for (; slots[slot] != 0; slot = (slot + 1) & (n_slots - 1)) {
        wina_str other;
        memcpy(&other, (const uint8_t *)labels + (slots[slot] - 1) * stride, sizeof other);
        if (other.n == n && memcmp(other.data, text, (size_t)n) == 0)
            break;
    }
    return slot;
}

_Static_assert(offsetof(wina_gguf_kv, key) == 0, "find_slot reads labels at the start");
_Static_assert(offsetof(wina_gguf_tensor, name) == 0, "find_slot reads labels at the start");

static uint64_t kv_slot(const wina_gguf *g, const char *text, uint64_t n) {
    return find_slot(g->kv_slots, g->n_kv_slots, g->kv, sizeof *g->kv, g->hash_key, text, n);
}

static uint64_t tensor_slot(const wina_gguf *g, const char *text, uint64_t n) {
    return find_slot(g->tensor_slots, g->n_tensor_slots, g->tensors, sizeof *g->tensors,
                     g->hash_key, text, n);
}

static int32_t create_slots(uint64_t count, uint64_t *n_slots, uint32_t **slots) {
    *n_slots = 8;
    while (*n_slots < 2 * count)
        *n_slots *= 2;
    return wina_mem_create(*n_slots, sizeof **slots, "table of names", slots);
}

/* ---- keys and values --------------------------------------------------------------------- */

static int32_t check_bools(reader *r, const uint8_t *data, uint64_t count) {
    for (uint64_t i = 0; i < count; i++)
        if (data[i] > 1)
            return fail(r, WINA_E_FORMAT, "a boolean is %u, must be 0 or 1", data[i]);
    return WINA_OK;
}

static int32_t take_items(reader *r, wina_gguf_kv *kv) {
    uint64_t item_bytes = wina_gguf_type_bytes(kv->item_type);
    uint64_t start = r->pos;
    kv->data = r->data + start;
    if (kv->item_type == WINA_GGUF_STRING) {
        for (uint64_t i = 0; i < kv->count; i++) {
            wina_str ignored;
            WINA_TRY(take_str(r, WINA_GGUF_MAX_STRING, WINA_E_UNSUPPORTED, "string", &ignored));
        }
    } else {
        /* count is at most WINA_GGUF_MAX_COUNT here, so this cannot wrap. */
        WINA_TRY(take(r, kv->count * item_bytes, "value", &kv->data));
        if (kv->item_type == WINA_GGUF_BOOL)
            WINA_TRY(check_bools(r, kv->data, kv->count));
    }
    kv->n_bytes = r->pos - start;
    return WINA_OK;
}

static int32_t take_array_head(reader *r, wina_gguf_kv *kv) {
    WINA_TRY(take_u32(r, "item type", &kv->item_type));
    if (kv->item_type == WINA_GGUF_ARRAY)
        return fail(r, WINA_E_UNSUPPORTED, "arrays of arrays are not supported");
    if (kv->item_type > WINA_GGUF_F64)
        return fail(r, WINA_E_FORMAT, "unknown item type %u", kv->item_type);
    WINA_TRY(take_u64(r, "array length", &kv->count));
    uint64_t item_bytes = wina_gguf_type_bytes(kv->item_type);
    uint64_t smallest = item_bytes ? item_bytes : 8;
    if (kv->count > remaining(r) / smallest)
        return fail(r, WINA_E_FORMAT, "cut short: an array of %llu items (%s), %llu bytes remain",
                    (ull)kv->count, wina_gguf_type_name(kv->item_type), (ull)remaining(r));
    if (kv->count > WINA_GGUF_MAX_COUNT)
        return fail(r, WINA_E_UNSUPPORTED, "an array of %llu items, the limit is %u",
                    (ull)kv->count, WINA_GGUF_MAX_COUNT);
    return WINA_OK;
}

static int32_t parse_kv(reader *r, uint64_t index) {
    wina_gguf *g = r->gguf;
    wina_gguf_kv *kv = &g->kv[index];
    enter(r, "key", index);
    WINA_TRY(take_label(r, WINA_GGUF_MAX_KEY, "key"));
    kv->key = r->label;
    uint64_t slot = kv_slot(g, kv->key.data, kv->key.n);
    if (g->kv_slots[slot] != 0)
        return fail(r, WINA_E_FORMAT, "appears twice (entries %u and %llu)", g->kv_slots[slot] - 1,
                    (ull)index);
    g->kv_slots[slot] = (uint32_t)index + 1;
    WINA_TRY(take_u32(r, "value type", &kv->type));
    if (kv->type > WINA_GGUF_F64)
        return fail(r, WINA_E_FORMAT, "unknown value type %u", kv->type);
    kv->item_type = kv->type;
    kv->count = 1;
    if (kv->type == WINA_GGUF_ARRAY)
        WINA_TRY(take_array_head(r, kv));
    return take_items(r, kv);
}

/* ---- tensors ----------------------------------------------------------------------------- */

static int32_t take_shape(reader *r, wina_gguf_tensor *t) {
    WINA_TRY(take_u32(r, "number of dimensions", &t->n_dims));
    if (t->n_dims < 1 || t->n_dims > 4)
        return fail(r, WINA_E_FORMAT, "%u dimensions, must be 1 to 4", t->n_dims);
    for (uint32_t i = 0; i < 4; i++) {
        t->ne[i] = 1;
        if (i < t->n_dims)
            WINA_TRY(take_u64(r, "dimension", &t->ne[i]));
        if (t->ne[i] == 0)
            return fail(r, WINA_E_FORMAT, "dimension %u is zero", i);
    }
    return WINA_OK;
}

static int32_t take_dtype(reader *r, wina_gguf_tensor *t) {
    uint32_t id;
    WINA_TRY(take_u32(r, "tensor type", &id));
    t->dtype = wina_dtype_find(id);
    if (t->dtype)
        return WINA_OK;
    const char *name = wina_dtype_name(id);
    if (name[0] == '?')
        return fail(r, WINA_E_UNSUPPORTED, "unknown tensor type %u", id);
    return fail(r, WINA_E_UNSUPPORTED, "tensor type %s (%u) is not supported", name, id);
}

static int32_t size_tensor(reader *r, wina_gguf_tensor *t) {
    if (t->ne[0] % t->dtype->block != 0)
        return fail(r, WINA_E_FORMAT, "rows of %llu weights are not whole %s blocks of %u",
                    (ull)t->ne[0], t->dtype->name, t->dtype->block);
    bool fits = wina_mem_mul(t->ne[0] / t->dtype->block, t->dtype->block_bytes, &t->row_bytes);
    t->n_bytes = t->row_bytes;
    for (int i = 1; i < 4 && fits; i++)
        fits = wina_mem_mul(t->n_bytes, t->ne[i], &t->n_bytes);
    if (!fits || t->n_bytes > r->n)
        return fail(r, WINA_E_FORMAT,
                    "shape %llu x %llu x %llu x %llu of %s needs more bytes than the file has "
                    "(%llu)",
                    (ull)t->ne[0], (ull)t->ne[1], (ull)t->ne[2], (ull)t->ne[3], t->dtype->name,
                    (ull)r->n);
    return WINA_OK;
}

static int32_t parse_tensor(reader *r, uint64_t index) {
    wina_gguf *g = r->gguf;
    wina_gguf_tensor *t = &g->tensors[index];
    enter(r, "tensor", index);
    WINA_TRY(take_label(r, WINA_GGUF_MAX_NAME, "name"));
    t->name = r->label;
    uint64_t slot = tensor_slot(g, t->name.data, t->name.n);
    if (g->tensor_slots[slot] != 0)
        return fail(r, WINA_E_FORMAT, "appears twice (entries %u and %llu)",
                    g->tensor_slots[slot] - 1, (ull)index);
    g->tensor_slots[slot] = (uint32_t)index + 1;
    WINA_TRY(take_shape(r, t));
    WINA_TRY(take_dtype(r, t));
    WINA_TRY(size_tensor(r, t));
    return take_u64(r, "offset", &t->offset);
}

static int compare_offsets(const void *a, const void *b) {
    const wina_gguf_tensor *x = *(const wina_gguf_tensor *const *)a;
    const wina_gguf_tensor *y = *(const wina_gguf_tensor *const *)b;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

/* Neighbours in order of offset; every tensor has at least one byte and lies inside the data. */
static int32_t check_overlaps(reader *r) {
    wina_gguf *g = r->gguf;
    wina_gguf_tensor **order = NULL;
    WINA_TRY(wina_mem_create(g->n_tensors, sizeof *order, "order of tensors", &order));
    bool sorted = true;
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        order[i] = &g->tensors[i];
        sorted = sorted && (i == 0 || order[i - 1]->offset <= order[i]->offset);
    }
    if (!sorted)
        qsort(order, (size_t)g->n_tensors, sizeof *order, compare_offsets);
    int32_t status = WINA_OK;
    for (uint64_t i = 1; i < g->n_tensors && status == WINA_OK; i++) {
        const wina_gguf_tensor *a = order[i - 1], *b = order[i];
        if (a->n_bytes <= b->offset - a->offset)
            continue;
        r->label = b->name;
        status = fail(r, WINA_E_FORMAT, "its data at offset %llu overlaps that of \"%.*s\"",
                      (ull)b->offset, (int)a->name.n, a->name.data);
    }
    free(order);
    return status;
}

/* The header is complete and r->pos is its end: from here on offsets become pointers. */
static int32_t place_tensors(reader *r) {
    wina_gguf *g = r->gguf;
    /* A file cannot end so near 2^64 that this wraps. */
    g->data_offset = (r->pos + g->alignment - 1) & ~(g->alignment - 1);
    if (g->data_offset > r->n)
        g->data_offset = r->n;
    uint64_t n_data = r->n - g->data_offset;
    for (uint64_t i = 0; i < g->n_tensors; i++) {
        wina_gguf_tensor *t = &g->tensors[i];
        enter(r, "tensor", i);
        r->label = t->name;
        if (t->offset % g->alignment != 0)
            return fail(r, WINA_E_FORMAT, "offset %llu is not a multiple of the alignment %llu",
                        (ull)t->offset, (ull)g->alignment);
        if (t->offset > n_data || t->n_bytes > n_data - t->offset)
            return fail(r, WINA_E_FORMAT,
                        "cut short: %llu bytes of %s at offset %llu, but the file has %llu bytes "
                        "of tensor data",
                        (ull)t->n_bytes, t->dtype->name, (ull)t->offset, (ull)n_data);
        t->data = r->data + g->data_offset + t->offset;
    }
    return check_overlaps(r);
}

/* ---- file -------------------------------------------------------------------------------- */

static int32_t check_magic(reader *r) {
    const uint8_t *magic;
    WINA_TRY(take(r, 4, "magic", &magic));
    if (memcmp(magic, "GGUF", 4) != 0)
        return fail(r, WINA_E_FORMAT,
                    "not a GGUF file: it starts with %02x %02x %02x %02x, not \"GGUF\"", magic[0],
                    magic[1], magic[2], magic[3]);
    uint32_t version;
    WINA_TRY(take_u32(r, "version", &version));
    if (version != 0 && (version & 0xFFFF) == 0)
        return fail(r, WINA_E_UNSUPPORTED, "big-endian GGUF files are not supported");
    if (version < 2 || version > 3)
        return fail(r, WINA_E_UNSUPPORTED, "GGUF version %u is not supported (only 2 and 3 are)",
                    version);
    r->gguf->version = version;
    return WINA_OK;
}

static int32_t take_count(reader *r, uint64_t smallest, uint64_t limit, const char *what,
                          uint64_t *out) {
    uint64_t n;
    WINA_TRY(take_u64(r, what, &n));
    if (n > remaining(r) / smallest)
        return fail(r, WINA_E_FORMAT, "cut short: the header announces %s %llu, %llu bytes remain",
                    what, (ull)n, (ull)remaining(r));
    if (n > limit)
        return fail(r, WINA_E_UNSUPPORTED, "%s %llu, the limit is %llu", what, (ull)n, (ull)limit);
    *out = n;
    return WINA_OK;
}

static int32_t read_alignment(reader *r) {
    uint32_t alignment = 32;
    const wina_gguf_kv *kv = wina_gguf_find(r->gguf, "general.alignment");
    enter(r, kv ? "key" : NULL, 0);
    if (kv)
        r->label = kv->key;
    if (kv && kv->type != WINA_GGUF_U32)
        return fail(r, WINA_E_FORMAT, "has type %s, must be u32", wina_gguf_type_name(kv->type));
    if (kv)
        alignment = (uint32_t)wina_gguf_item_int(kv, 0);
    if (alignment < WINA_GGUF_MIN_ALIGNMENT || alignment > WINA_GGUF_MAX_ALIGNMENT ||
        (alignment & (alignment - 1)) != 0)
        return fail(r, WINA_E_FORMAT, "is %u, must be a power of two in %u..%u", alignment,
                    WINA_GGUF_MIN_ALIGNMENT, WINA_GGUF_MAX_ALIGNMENT);
    r->gguf->alignment = alignment;
    return WINA_OK;
}

static int32_t parse(reader *r) {
    wina_gguf *g = r->gguf;
    uint64_t n_tensors = 0, n_kv = 0;
    WINA_TRY(check_magic(r));
    WINA_TRY(take_count(r, MIN_TENSOR_BYTES, WINA_GGUF_MAX_TENSORS, "tensor count", &n_tensors));
    WINA_TRY(take_count(r, MIN_KV_BYTES, WINA_GGUF_MAX_KV, "key count", &n_kv));
    WINA_TRY(wina_mem_create(n_kv, sizeof *g->kv, "metadata", &g->kv));
    WINA_TRY(wina_mem_create(n_tensors, sizeof *g->tensors, "tensor table", &g->tensors));
    g->n_kv = n_kv;
    g->n_tensors = n_tensors;
    g->hash_key = draw_hash_key(g);
    WINA_TRY(create_slots(n_kv, &g->n_kv_slots, &g->kv_slots));
    WINA_TRY(create_slots(n_tensors, &g->n_tensor_slots, &g->tensor_slots));
    g->kv_offset = r->pos;
    for (uint64_t i = 0; i < n_kv; i++)
        WINA_TRY(parse_kv(r, i));
    g->kv_end = r->pos;
    WINA_TRY(read_alignment(r));
    for (uint64_t i = 0; i < n_tensors; i++)
        WINA_TRY(parse_tensor(r, i));
    return place_tensors(r);
}

/* Takes over map if it owns it, whatever the result. */
static int32_t open_map(const char *name, wina_mapfile map, bool owns_map, wina_gguf **out) {
    wina_gguf *g = NULL;
    int32_t status = wina_mem_create(1, sizeof *g, "file header", &g);
    if (status != WINA_OK) {
        if (owns_map)
            wina_mapfile_close(&map);
        return status;
    }
    g->map = map;
    g->owns_map = owns_map;
    reader r = {.data = map.data, .n = map.n_bytes, .gguf = g, .file = name};
    status = parse(&r);
    if (status != WINA_OK) {
        wina_gguf_close(g);
        return status;
    }
    *out = g;
    return WINA_OK;
}

int32_t wina_gguf_open(const char *path, wina_gguf **out) {
    wina_mapfile map;
    *out = NULL;
    WINA_TRY(wina_mapfile_open(path, &map));
    return open_map(path, map, true, out);
}

int32_t wina_gguf_open_memory(const char *name, const uint8_t *data, uint64_t n_bytes,
                              wina_gguf **out) {
    *out = NULL;
    if (!data || ((uintptr_t)data & (WINA_GGUF_MIN_ALIGNMENT - 1)) != 0)
        return wina_fail(WINA_E_ARGUMENT, "%s: the file's bytes must be aligned to %u", name,
                         WINA_GGUF_MIN_ALIGNMENT);
    return open_map(name, (wina_mapfile){.data = data, .n_bytes = n_bytes}, false, out);
}

/* Enters the new entries, which stand behind the others already; n_bytes of the file bounds sizes
 * that it does not hold as they are by a factor that no panel reaches. */
static int32_t enter_added(wina_gguf *g, uint64_t first, uint64_t count) {
    reader r = {.n = g->map.n_bytes * 8, .gguf = g, .file = "packed tensors"};
    for (uint64_t i = first; i < count; i++) {
        wina_gguf_tensor *t = &g->tensors[i];
        enter(&r, "tensor", i - first);
        r.label = t->name;
        uint64_t slot = tensor_slot(g, t->name.data, t->name.n);
        if (g->tensor_slots[slot] != 0)
            return fail(&r, WINA_E_FORMAT, "appears twice");
        for (int d = 0; d < 4; d++)
            if (t->ne[d] == 0)
                return fail(&r, WINA_E_FORMAT, "dimension %d is zero", d);
        WINA_TRY(size_tensor(&r, t));
        t->data = NULL;
        t->offset = 0;
        g->tensor_slots[slot] = (uint32_t)i + 1;
        g->n_tensors = i + 1;
    }
    return WINA_OK;
}

/* Room for n more tensors in the table of names and behind those that are there. */
static int32_t reserve_tensors(wina_gguf *g, uint64_t n) {
    if (n > WINA_GGUF_MAX_TENSORS || g->n_tensors + n > WINA_GGUF_MAX_TENSORS)
        return wina_fail(WINA_E_UNSUPPORTED, "tensor count %llu, the limit is %u",
                         (ull)(g->n_tensors + n), WINA_GGUF_MAX_TENSORS);
    uint64_t old = g->n_tensors, count = old + n, n_slots = 0;
    wina_gguf_tensor *all = NULL;
    uint32_t *slots = NULL;
    WINA_TRY(wina_mem_create(count, sizeof *all, "tensor table", &all));
    int32_t status = create_slots(count, &n_slots, &slots);
    if (status != WINA_OK) {
        free(all);
        return status;
    }
    memcpy(all, g->tensors, old * sizeof *all);
    free(g->tensors);
    free(g->tensor_slots);
    g->tensors = all;
    g->tensor_slots = slots;
    g->n_tensor_slots = n_slots;
    for (uint64_t i = 0; i < old; i++)
        slots[tensor_slot(g, all[i].name.data, all[i].name.n)] = (uint32_t)i + 1;
    return WINA_OK;
}

int32_t wina_gguf_add_tensors(wina_gguf *g, const wina_gguf_tensor *tensors, uint64_t n) {
    uint64_t old = g->n_tensors;
    WINA_TRY(reserve_tensors(g, n));
    memcpy(g->tensors + old, tensors, n * sizeof *tensors);
    return enter_added(g, old, old + n);
}

int32_t wina_gguf_join_parts(wina_gguf *g) {
    uint64_t n = 0;
    for (uint32_t p = 0; p < g->n_parts; p++)
        n += g->parts[p]->n_tensors;
    WINA_TRY(reserve_tensors(g, n));
    for (uint32_t p = 0; p < g->n_parts; p++)
        for (uint64_t i = 0; i < g->parts[p]->n_tensors; i++) {
            const wina_gguf_tensor *t = &g->parts[p]->tensors[i];
            uint64_t slot = tensor_slot(g, t->name.data, t->name.n);
            if (g->tensor_slots[slot] != 0)
                return wina_fail(WINA_E_FORMAT, "tensor \"%.*s\" is in two parts of the file",
                                 (int)t->name.n, t->name.data);
            g->tensors[g->n_tensors++] = *t;
            g->tensor_slots[slot] = (uint32_t)g->n_tensors;
        }
    return WINA_OK;
}

void wina_gguf_close(wina_gguf *gguf) {
    if (!gguf)
        return;
    for (uint32_t i = 0; i < gguf->n_parts; i++)
        wina_gguf_close(gguf->parts[i]);
    free(gguf->parts);
    free(gguf->kv);
    free(gguf->tensors);
    free(gguf->kv_slots);
    free(gguf->tensor_slots);
    if (gguf->owns_map)
        wina_mapfile_close(&gguf->map);
    free(gguf);
}

int32_t wina_gguf_check_unchanged(const wina_gguf *gguf) {
    WINA_TRY(wina_mapfile_check(&gguf->map));
    for (uint32_t i = 0; i < gguf->n_parts; i++)
        WINA_TRY(wina_mapfile_check(&gguf->parts[i]->map));
    return WINA_OK;
}

uint64_t wina_gguf_file_bytes(const wina_gguf *gguf) {
    uint64_t n = gguf->map.n_bytes;
    for (uint32_t i = 0; i < gguf->n_parts; i++)
        n += gguf->parts[i]->map.n_bytes;
    return n;
}

void wina_gguf_release(const wina_gguf *gguf, const wina_gguf_tensor *t) {
    for (uint32_t i = 0; i <= gguf->n_parts; i++) {
        const wina_mapfile *map = i ? &gguf->parts[i - 1]->map : &gguf->map;
        if ((uintptr_t)t->data - (uintptr_t)map->data < map->n_bytes)
            wina_mapfile_release(map, (uint64_t)(t->data - map->data), t->n_bytes);
    }
}

const wina_gguf_kv *wina_gguf_find(const wina_gguf *gguf, const char *key) {
    uint32_t entry = gguf->kv_slots[kv_slot(gguf, key, strlen(key))];
    return entry ? &gguf->kv[entry - 1] : NULL;
}

const wina_gguf_tensor *wina_gguf_find_tensor(const wina_gguf *gguf, const char *name) {
    uint32_t entry = gguf->tensor_slots[tensor_slot(gguf, name, strlen(name))];
    return entry ? &gguf->tensors[entry - 1] : NULL;
}

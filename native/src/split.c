/* split: finding the other parts by name, and checking that they belong to the first. All of them
 * are open before any tensor is added, so that the table of tensors grows once. */
#include "split.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "status.h"

typedef unsigned long long ull;

enum { SUFFIX = 20, SUFFIX_CAP = 40 }; /* bytes of "-00001-of-00003.gguf" */

typedef struct split {
    uint32_t no, count, n_tensors;
} split;

static void print_suffix(char *out, uint32_t no, uint32_t count) {
    snprintf(out, SUFFIX_CAP, "-%05u-of-%05u.gguf", no + 1, count);
}

/* The end of a path, for messages. */
static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    size_t n = strlen(name);
    return n > 160 ? name + (n - 160) : name;
}

static int32_t read_split(const wina_gguf *g, split *out) {
    WINA_TRY(wina_gguf_has_u32(g, "split.no", 0, &out->no));
    WINA_TRY(wina_gguf_has_u32(g, "split.count", 0, &out->count));
    return wina_gguf_has_u32(g, "split.tensors.count", 0, &out->n_tensors);
}

/* Metadata that a part need not have, but if it has it, then the first one's. */
static int32_t check_same(const wina_gguf *first, const wina_gguf *part, const char *key,
                          const char *name) {
    const wina_gguf_kv *a = wina_gguf_find(first, key), *b = wina_gguf_find(part, key);
    if (!b || (a && a->type == b->type && a->n_bytes == b->n_bytes &&
               memcmp(a->data, b->data, (size_t)a->n_bytes) == 0))
        return WINA_OK;
    return wina_fail(WINA_E_FORMAT, "%s: of another model than the first part: its %s differs",
                     name, key);
}

static int32_t check_part(const wina_gguf *first, const wina_gguf *part, const split *whole,
                          uint32_t no, const char *path) {
    const char *name = base_name(path);
    split own;
    WINA_TRY(read_split(part, &own));
    if (own.count == 0)
        return wina_fail(WINA_E_FORMAT, "%s: no part of a split file: it has no split.count", name);
    if (own.count != whole->count || own.no != no)
        return wina_fail(WINA_E_FORMAT,
                         "%s: says that it is part %llu of %u, but part %u of %u belongs here",
                         name, (ull)own.no + 1, own.count, no + 1, whole->count);
    if (own.n_tensors != whole->n_tensors)
        return wina_fail(WINA_E_FORMAT,
                         "%s: of another model than the first part: split.tensors.count is %u, "
                         "there %u",
                         name, own.n_tensors, whole->n_tensors);
    WINA_TRY(check_same(first, part, "general.architecture", name));
    return check_same(first, part, "general.name", name);
}

static int32_t open_parts(wina_gguf *g, const split *whole, char *path) {
    char *suffix = path + strlen(path) - SUFFIX, wanted[SUFFIX_CAP];
    g->n_parts = whole->count - 1;
    uint64_t n_tensors = g->n_tensors;
    for (uint32_t no = 1; no < whole->count; no++) {
        print_suffix(wanted, no, whole->count);
        memcpy(suffix, wanted, SUFFIX);
        WINA_TRY(wina_gguf_open(path, &g->parts[no - 1]));
        WINA_TRY(check_part(g, g->parts[no - 1], whole, no, path));
        n_tensors += g->parts[no - 1]->n_tensors;
    }
    print_suffix(wanted, 0, whole->count);
    memcpy(suffix, wanted, SUFFIX);
    if (n_tensors != whole->n_tensors)
        return wina_fail(WINA_E_FORMAT,
                         "%s: split.tensors.count is %u, but its parts hold %llu tensors",
                         base_name(path), whole->n_tensors, (ull)n_tensors);
    return wina_gguf_join_parts(g);
}

int32_t wina_split_attach(wina_gguf *g, const char *path) {
    split whole;
    if (wina_gguf_find(g, "wina.pack.version"))
        return WINA_OK;
    WINA_TRY(read_split(g, &whole));
    if (whole.count <= 1)
        return WINA_OK;
    const char *name = base_name(path);
    if (whole.count > WINA_SPLIT_MAX_PARTS)
        return wina_fail(WINA_E_UNSUPPORTED, "%s: split.count is %u, the limit is %u", name,
                         whole.count, WINA_SPLIT_MAX_PARTS);
    if (whole.no != 0)
        return wina_fail(WINA_E_ARGUMENT, "%s: this is part %llu of %u of a model; open part 1",
                         name, (ull)whole.no + 1, whole.count);
    char suffix[SUFFIX_CAP];
    print_suffix(suffix, 0, whole.count);
    size_t n = strlen(path);
    if (n < SUFFIX || memcmp(path + n - SUFFIX, suffix, SUFFIX) != 0)
        return wina_fail(WINA_E_FORMAT,
                         "%s: the first of %u parts; its name must end in %s, so that the others "
                         "are found",
                         name, whole.count, suffix);
    char *copy = NULL;
    WINA_TRY(wina_mem_create(n + 1, 1, "file name", &copy));
    memcpy(copy, path, n + 1);
    int32_t status =
        wina_mem_create(whole.count - 1, sizeof(wina_gguf *), "parts of the file", &g->parts);
    if (status == WINA_OK)
        status = open_parts(g, &whole, copy);
    free(copy);
    return status;
}

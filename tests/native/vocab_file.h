/* vocab_file: writes GGUF files that hold a vocabulary and nothing else, right or wrong in one
 * place, for the tests of the tokenizer. */
#ifndef VOCAB_FILE_H
#define VOCAB_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gguf.h"

#define MAX_EXTRA 4

typedef struct item {
    const char *text;
    int type; /* tokenizer.ggml.token_type */
    float score;
} item;

/* A scalar under tokenizer.ggml.<key>. */
typedef struct extra {
    const char *key;
    uint32_t type; /* WINA_GGUF_U32, _I32 or _BOOL; WINA_GGUF_STRING for text */
    int64_t value;
    const char *text;
} extra;

typedef struct vocab_file {
    const char *model; /* NULL: no such key */
    const char *pre;
    const char *architecture;
    item items[400]; /* (n_items) */
    int n_items;
    const char *merges[64];
    int n_merges;
    bool no_merges, no_types, no_scores; /* leave the key out */
    int types_off, scores_off;           /* how many items more the array has */
    uint32_t types_as, scores_as;        /* item types; 0: the right one */
    extra extras[MAX_EXTRA];
} vocab_file;

typedef struct buffer {
    uint8_t *data;
    size_t n, capacity;
} buffer;

static inline void put(buffer *b, const void *data, size_t n) {
    if (b->n + n > b->capacity) {
        b->capacity = (b->n + n) * 2;
        b->data = realloc(b->data, b->capacity);
        if (b->data == NULL)
            abort();
    }
    memcpy(b->data + b->n, data, n);
    b->n += n;
}

static inline void put_u32(buffer *b, uint32_t value) {
    put(b, &value, sizeof value);
}

static inline void put_u64(buffer *b, uint64_t value) {
    put(b, &value, sizeof value);
}

static inline void put_text(buffer *b, const char *text) {
    put_u64(b, strlen(text));
    put(b, text, strlen(text));
}

static inline void put_key(buffer *b, const char *name, uint32_t type, uint64_t *n_keys) {
    char key[128];
    snprintf(key, sizeof key, "%s%s", strchr(name, '.') ? "" : "tokenizer.ggml.", name);
    put_text(b, key);
    put_u32(b, type);
    ++*n_keys;
}

static inline void put_array(buffer *b, const char *name, uint32_t item_type, int n,
                             uint64_t *n_keys) {
    put_key(b, name, WINA_GGUF_ARRAY, n_keys);
    put_u32(b, item_type);
    put_u64(b, (uint64_t)n);
}

/* One number, as 4 bytes of the given type. */
static inline void put_number(buffer *b, uint32_t type, double value) {
    float as_float = (float)value;
    int32_t as_int = (int32_t)value;
    put(b, type == WINA_GGUF_F32 ? (const void *)&as_float : (const void *)&as_int, 4);
}

static inline void put_scalars(buffer *b, const vocab_file *v, uint64_t *n_keys) {
    const char *texts[][2] = {
        {"general.architecture", v->architecture}, {"model", v->model}, {"pre", v->pre}};
    for (int i = 0; i < 3; i++)
        if (texts[i][1] != NULL) {
            put_key(b, texts[i][0], WINA_GGUF_STRING, n_keys);
            put_text(b, texts[i][1]);
        }
    for (int i = 0; i < MAX_EXTRA && v->extras[i].key != NULL; i++) {
        const extra *e = &v->extras[i];
        uint8_t flag = (uint8_t)e->value;
        put_key(b, e->key, e->type, n_keys);
        if (e->type == WINA_GGUF_STRING)
            put_text(b, e->text);
        else if (e->type == WINA_GGUF_BOOL)
            put(b, &flag, 1);
        else
            put_u32(b, (uint32_t)e->value);
    }
}

static inline void put_arrays(buffer *b, const vocab_file *v, uint64_t *n_keys) {
    put_array(b, "tokens", WINA_GGUF_STRING, v->n_items, n_keys);
    for (int i = 0; i < v->n_items; i++)
        put_text(b, v->items[i].text);
    if (!v->no_types) {
        uint32_t type = v->types_as ? v->types_as : WINA_GGUF_I32;
        put_array(b, "token_type", type, v->n_items + v->types_off, n_keys);
        for (int i = 0; i < v->n_items + v->types_off; i++)
            put_number(b, type, i < v->n_items ? v->items[i].type : 1);
    }
    if (!v->no_scores) {
        uint32_t type = v->scores_as ? v->scores_as : WINA_GGUF_F32;
        put_array(b, "scores", type, v->n_items + v->scores_off, n_keys);
        for (int i = 0; i < v->n_items + v->scores_off; i++)
            put_number(b, type, i < v->n_items ? (double)v->items[i].score : 0);
    }
    if (!v->no_merges) {
        put_array(b, "merges", WINA_GGUF_STRING, v->n_merges, n_keys);
        for (int i = 0; i < v->n_merges; i++)
            put_text(b, v->merges[i]);
    }
}

/* Writes the file; path ends in XXXXXX, which is replaced. */
static inline void vocab_file_write(const vocab_file *v, char *path) {
    buffer body = {0};
    uint64_t n_keys = 0;
    put_scalars(&body, v, &n_keys);
    put_arrays(&body, v, &n_keys);
    buffer head = {0};
    put(&head, "GGUF", 4);
    put_u32(&head, 3);
    put_u64(&head, 0);
    put_u64(&head, n_keys);
    int fd = mkstemp(path);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "wb");
    if (file == NULL || fwrite(head.data, 1, head.n, file) != head.n ||
        fwrite(body.data, 1, body.n, file) != body.n || fclose(file) != 0)
        abort();
    free(head.data);
    free(body.data);
}

static inline void vocab_file_add(vocab_file *v, const char *text, int type, float score) {
    if (v->n_items == (int)(sizeof v->items / sizeof v->items[0]))
        abort();
    v->items[v->n_items++] = (item){text, type, score};
}

#endif

/* vocab: the vocabulary in tokenizer.ggml.*, read and validated once: what every token is, which
 * ids have a meaning, and the way from a text to its id. Immutable afterwards. */
#ifndef WINA_VOCAB_H
#define WINA_VOCAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gguf.h"

/* Values of tokenizer.ggml.token_type. */
typedef enum wina_vocab_type {
    WINA_VOCAB_UNDEFINED = 0,
    WINA_VOCAB_NORMAL = 1,
    WINA_VOCAB_UNKNOWN = 2,
    WINA_VOCAB_CONTROL = 3,      /* has no text; recognised in text only on request */
    WINA_VOCAB_USER_DEFINED = 4, /* taken whole wherever its text occurs */
    WINA_VOCAB_UNUSED = 5,
    WINA_VOCAB_BYTE = 6 /* "<0x41>" stands for one byte */
} wina_vocab_type;

/* Longest text of a token, and of one that is recognised as a whole in text (types 2, 3, 4). */
#define WINA_VOCAB_MAX_BYTES         (64 * 1024)
#define WINA_VOCAB_MAX_SPECIAL_BYTES 1024

typedef struct wina_vocab {
    int32_t n_tokens;      /* >= 1 */
    wina_str *texts;       /* (n_tokens) inside the file's mapping */
    uint8_t *types;        /* (n_tokens) wina_vocab_type */
    uint8_t *ends;         /* (n_tokens) 1: the token ends a generation */
    uint32_t max_bytes;    /* of the longest text */
    int32_t bos, eos, unk; /* -1 if none */
    bool has_add_bos;      /* the file says itself whether to add BOS: add_bos */
    bool add_bos, add_eos; /* add_eos: default false */
    struct {
        uint32_t hash;
        int32_t token; /* -1: empty */
    } * slots;         /* (n_slots) hash table from text to token */
    uint64_t n_slots;  /* a power of two */
    uint64_t seed;
} wina_vocab;

/* spm: ids that are not given have SentencePiece's defaults (bos 1, eos 2, unk 0) instead of none.
 * Errors name the key. */
int32_t wina_vocab_create(const wina_gguf *gguf, bool spm, wina_vocab **out);
void wina_vocab_free(wina_vocab *vocab); /* accepts NULL */

/* The token whose text is left followed by right (right_n may be 0); -1 if none. Of several tokens
 * with one text it is the last that plain text may become, else the last. */
int32_t wina_vocab_find(const wina_vocab *vocab, const void *left, size_t left_n, const void *right,
                        size_t right_n);

/* The same for many texts. They are found sooner together: what one of them waits for is fetched
 * from memory while the others are looked at. */
typedef struct wina_vocab_query {
    const char *left, *right;
    size_t left_n, right_n;
    uint32_t hash;
    int32_t token; /* the answer */
} wina_vocab_query;
void wina_vocab_find_all(const wina_vocab *vocab, wina_vocab_query *queries, int32_t n);

/* Whether text without special tokens may become this token: it is normal or user-defined. */
static inline bool wina_vocab_is_plain(const wina_vocab *vocab, int32_t token) {
    uint8_t type = vocab->types[token];
    return type == WINA_VOCAB_NORMAL || type == WINA_VOCAB_USER_DEFINED ||
           type == WINA_VOCAB_UNDEFINED;
}

/* Where an encoder puts its tokens: the first capacity are stored, all are counted. */
typedef struct wina_vocab_sink {
    int32_t *tokens;
    size_t capacity;
    size_t n;
} wina_vocab_sink;

static inline void wina_vocab_emit(wina_vocab_sink *sink, int32_t token) {
    if (sink->n < sink->capacity)
        sink->tokens[sink->n] = token;
    sink->n++;
}

/* Whether what has no token becomes the unknown token; else it is left out. */
static inline bool wina_vocab_has_unknown(const wina_vocab *vocab) {
    return vocab->unk >= 0 && vocab->types[vocab->unk] == WINA_VOCAB_UNKNOWN;
}

/* For a byte that no token stands for: the unknown token if there is a real one (of type 2; some
 * files name a control token here, which must not come out of plain text), else nothing. */
static inline void wina_vocab_emit_unknown(const wina_vocab *vocab, wina_vocab_sink *sink) {
    if (wina_vocab_has_unknown(vocab))
        wina_vocab_emit(sink, vocab->unk);
}

#endif

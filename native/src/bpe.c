/* bpe: merges are kept by the ids of their two sides, so that a word is merged without looking at
 * text again. A merge whose result plain text may not become (a control token) is left out. */
#include "bpe.h"

#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "merge.h"
#include "pairmap.h"
#include "pretok.h"
#include "status.h"
#include "unicode.h"

#define KEY(name) "tokenizer.ggml." name

struct wina_bpe {
    const wina_vocab *vocab;
    const wina_pretok *pretok;
    wina_pairmap merges; /* (left, right) -> value: token, extra: rank */
    int32_t bytes[256];  /* token of a byte, -1 if none */
};

/* GPT-2's stand-ins: bytes that print in Latin-1 stand for themselves, the others in rising order
 * are U+0100, U+0101, ... */
static bool prints(uint32_t byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

static uint32_t stand_in(uint8_t byte) {
    if (prints(byte))
        return byte;
    if (byte <= 0x20)
        return 0x100u + byte;
    if (byte <= 0xA0)
        return 0x121u + (byte - 0x7Fu);
    return 0x143; /* 0xAD */
}

/* -1 if cp stands for no byte. */
static int32_t byte_of(uint32_t cp) {
    if (cp < 0x100)
        return prints(cp) ? (int32_t)cp : -1;
    if (cp <= 0x120)
        return (int32_t)(cp - 0x100);
    if (cp <= 0x142)
        return (int32_t)(cp - 0x121 + 0x7F);
    return cp == 0x143 ? 0xAD : -1;
}

/* What a merge names: its sides and what they become. */
enum { LEFT, RIGHT, JOINED, N_NAMES, TOGETHER = 16 /* merges */ };

static bool parse_merge(wina_str text, wina_vocab_query names[N_NAMES]) {
    const char *space = memchr(text.data, ' ', text.n);
    const size_t left_n = space == NULL ? 0 : (size_t)(space - text.data);
    const size_t right_n = space == NULL ? 0 : text.n - left_n - 1;
    if (left_n == 0 || right_n == 0 || memchr(space + 1, ' ', right_n) != NULL)
        return false;
    names[LEFT] = (wina_vocab_query){.left = text.data, .left_n = left_n};
    names[RIGHT] = (wina_vocab_query){.left = space + 1, .left_n = right_n};
    names[JOINED] = (wina_vocab_query){text.data, space + 1, left_n, right_n, 0, 0};
    return true;
}

static int32_t add_merge(wina_bpe *bpe, const wina_vocab_query names[N_NAMES], uint32_t rank) {
    static const char *const NAMES[N_NAMES] = {"left side", "right side", "result"};
    for (int i = 0; i < N_NAMES; i++)
        if (names[i].token < 0)
            return wina_fail(WINA_E_FORMAT, KEY("merges") ": merge %u: its %s is no token", rank,
                             NAMES[i]);
    if (!wina_vocab_is_plain(bpe->vocab, names[JOINED].token))
        return WINA_OK;
    bool added; /* of two equal merges the first counts */
    return wina_pairmap_put(&bpe->merges, (uint32_t)names[LEFT].token, (uint32_t)names[RIGHT].token,
                            (uint32_t)names[JOINED].token, rank, KEY("merges"), &added);
}

static int32_t read_merges(const wina_gguf *gguf, wina_bpe *bpe) {
    const wina_gguf_kv *kv;
    WINA_TRY(wina_gguf_get_array(gguf, KEY("merges"), WINA_GGUF_STRING, 0, &kv));
    if (kv->count >= UINT32_MAX)
        return wina_fail(WINA_E_FORMAT, KEY("merges") ": %llu are too many",
                         (unsigned long long)kv->count);
    WINA_TRY(wina_pairmap_create(kv->count, bpe->vocab->seed, KEY("merges"), &bpe->merges));
    const uint8_t *cursor = kv->data;
    bool well_formed = true;
    for (uint32_t rank = 0; rank < kv->count && well_formed;) {
        wina_vocab_query names[TOGETHER][N_NAMES];
        uint32_t n = 0;
        for (; n < TOGETHER && rank + n < kv->count && well_formed; n += well_formed)
            well_formed = parse_merge(wina_gguf_next_str(&cursor), names[n]);
        wina_vocab_find_all(bpe->vocab, &names[0][0], (int32_t)(n * N_NAMES));
        for (uint32_t i = 0; i < n; i++)
            wina_pairmap_fetch(&bpe->merges, (uint32_t)names[i][LEFT].token,
                               (uint32_t)names[i][RIGHT].token);
        for (uint32_t i = 0; i < n; i++)
            WINA_TRY(add_merge(bpe, names[i], rank + i));
        rank += n;
        if (!well_formed)
            return wina_fail(WINA_E_FORMAT,
                             KEY("merges") ": merge %u is not two tokens and a space", rank);
    }
    return WINA_OK;
}

static int32_t fill(const wina_gguf *gguf, wina_bpe *bpe) {
    wina_str name;
    WINA_TRY(wina_gguf_get_str(gguf, KEY("pre"), &name));
    bpe->pretok = wina_pretok_find(name.data, name.n);
    if (bpe->pretok == NULL)
        return wina_fail(WINA_E_UNSUPPORTED, KEY("pre") ": unknown pre-tokenizer \"%.*s\"",
                         name.n < 64 ? (int)name.n : 64, name.data);
    for (uint32_t i = 0; i < 256; i++) {
        uint8_t text[4];
        size_t n = wina_unicode_encode(stand_in((uint8_t)i), text);
        int32_t token = wina_vocab_find(bpe->vocab, text, n, NULL, 0);
        bpe->bytes[i] = token >= 0 && wina_vocab_is_plain(bpe->vocab, token) ? token : -1;
    }
    return read_merges(gguf, bpe);
}

int32_t wina_bpe_create(const wina_gguf *gguf, const wina_vocab *vocab, wina_bpe **out) {
    *out = NULL;
    wina_bpe *bpe;
    WINA_TRY(wina_mem_create(1, sizeof *bpe, "tokenizer", &bpe));
    bpe->vocab = vocab;
    int32_t status = fill(gguf, bpe);
    if (status != WINA_OK) {
        wina_bpe_free(bpe);
        return status;
    }
    *out = bpe;
    return WINA_OK;
}

void wina_bpe_free(wina_bpe *bpe) {
    if (bpe == NULL)
        return;
    wina_pairmap_free(&bpe->merges);
    free(bpe);
}

bool wina_bpe_adds_bos(const wina_bpe *bpe) {
    return bpe->pretok->adds_bos;
}

static bool find_merge(const void *user, const uint8_t *word, const wina_merge_symbol *left,
                       const wina_merge_symbol *right, uint32_t left_at, uint32_t *rank,
                       int32_t *token) {
    (void)word, (void)left_at;
    if (left->token < 0 || right->token < 0)
        return false;
    const wina_bpe *bpe = user;
    const wina_pairmap_slot *slot =
        wina_pairmap_find(&bpe->merges, (uint32_t)left->token, (uint32_t)right->token);
    if (slot == NULL)
        return false;
    *rank = slot->extra;
    *token = (int32_t)slot->value;
    return true;
}

/* The token that is the whole word, -1 if there is none. */
static int32_t find_word(const wina_bpe *bpe, const uint8_t *word, size_t n) {
    uint8_t text[1024];
    size_t length = 0;
    if (n > bpe->vocab->max_bytes)
        return -1;
    for (size_t i = 0; i < n; i++) {
        if (length + 2 > sizeof text)
            return -1;
        length += wina_unicode_encode(stand_in(word[i]), text + length);
    }
    int32_t token = wina_vocab_find(bpe->vocab, text, length, NULL, 0);
    return token >= 0 && wina_vocab_is_plain(bpe->vocab, token) ? token : -1;
}

typedef struct encoder {
    const wina_bpe *bpe;
    wina_merge merge;
    wina_vocab_sink *sink;
} encoder;

static int32_t encode_word(void *user, const uint8_t *word, size_t n) {
    encoder *e = user;
    const wina_bpe *bpe = e->bpe;
    if (bpe->pretok->whole_words) {
        int32_t token = find_word(bpe, word, n);
        if (token >= 0) {
            wina_vocab_emit(e->sink, token);
            return WINA_OK;
        }
    }
    WINA_TRY(wina_merge_reserve(&e->merge, (uint32_t)n));
    wina_merge_symbol *symbols = e->merge.symbols;
    /* A byte without a token is left out, and its neighbours may merge across the place. */
    bool keeps = wina_vocab_has_unknown(bpe->vocab);
    uint32_t n_symbols = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t token = bpe->bytes[word[i]];
        if (token < 0 && !keeps)
            continue;
        uint32_t left = n_symbols == 0 ? WINA_MERGE_NONE : n_symbols - 1;
        symbols[n_symbols++] = (wina_merge_symbol){1, left, token};
    }
    WINA_TRY(wina_merge_run(&e->merge, word, n_symbols, find_merge, bpe));
    for (uint32_t i = 0; i < n_symbols; i += symbols[i].n) {
        if (symbols[i].token >= 0)
            wina_vocab_emit(e->sink, symbols[i].token);
        else
            wina_vocab_emit_unknown(bpe->vocab, e->sink);
    }
    return WINA_OK;
}

int32_t wina_bpe_encode(const wina_bpe *bpe, const uint8_t *text, size_t n, wina_vocab_sink *sink) {
    encoder e = {.bpe = bpe, .sink = sink};
    int32_t status = wina_pretok_split(bpe->pretok, text, n, encode_word, &e);
    wina_merge_free(&e.merge);
    return status;
}

size_t wina_bpe_decode(wina_str text, uint8_t *out) {
    size_t n = 0;
    for (size_t i = 0; i < text.n;) {
        uint32_t cp;
        i += wina_unicode_decode((const uint8_t *)text.data + i, text.n - i, &cp);
        int32_t byte = byte_of(cp);
        if (byte < 0) {
            memcpy(out, text.data, text.n);
            return text.n;
        }
        out[n++] = (uint8_t)byte;
    }
    return n;
}

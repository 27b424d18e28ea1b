/* spm: scores become ranks (an order-preserving map from floats to integers, highest score first),
 * so that the merge loop is the one BPE uses; ties go to the left, as in SentencePiece. */
#include "spm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "merge.h"
#include "status.h"
#include "unicode.h"

#define KEY(name) "tokenizer.ggml." name

static const uint8_t space_text[3] = {0xE2, 0x96, 0x81}; /* U+2581 */

struct wina_spm {
    const wina_vocab *vocab;
    uint32_t *ranks;    /* (n_tokens) smaller is merged first */
    int32_t bytes[256]; /* token of a byte, -1 if none */
    bool adds_space;
};

static uint32_t rank_of(float score) {
    uint32_t bits;
    score += 0.0f; /* -0 and 0 are equal */
    memcpy(&bits, &score, sizeof bits);
    uint32_t rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return ~rising;
}

static int32_t hex_digit(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return -1;
}

/* The byte that "<0x41>" stands for; -1 if the text is not of that form. */
static int32_t byte_value(wina_str text) {
    if (text.n != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>')
        return -1;
    int32_t high = hex_digit(text.data[3]);
    int32_t low = hex_digit(text.data[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static int32_t fill(const wina_gguf *gguf, wina_spm *spm) {
    const wina_vocab *vocab = spm->vocab;
    const wina_gguf_kv *scores;
    WINA_TRY(wina_gguf_get_array(gguf, KEY("scores"), WINA_GGUF_F32, (uint64_t)vocab->n_tokens,
                                 &scores));
    WINA_TRY(wina_gguf_has_bool(gguf, KEY("add_space_prefix"), true, &spm->adds_space));
    WINA_TRY(
        wina_mem_create((uint64_t)vocab->n_tokens, sizeof *spm->ranks, KEY("scores"), &spm->ranks));
    for (size_t i = 0; i < 256; i++)
        spm->bytes[i] = -1;
    for (int32_t i = 0; i < vocab->n_tokens; i++) {
        float score = (float)wina_gguf_item_float(scores, (uint64_t)i);
        if (!isfinite(score))
            return wina_fail(WINA_E_FORMAT, KEY("scores") ": token %d has score %g", i,
                             (double)score);
        spm->ranks[i] = rank_of(score);
        if (vocab->types[i] != WINA_VOCAB_BYTE)
            continue;
        int32_t byte = byte_value(vocab->texts[i]);
        if (byte < 0)
            return wina_fail(WINA_E_FORMAT, KEY("tokens") ": byte token %d is not like <0x41>", i);
        spm->bytes[byte] = i;
    }
    return WINA_OK;
}

int32_t wina_spm_create(const wina_gguf *gguf, const wina_vocab *vocab, wina_spm **out) {
    *out = NULL;
    wina_spm *spm;
    WINA_TRY(wina_mem_create(1, sizeof *spm, "tokenizer", &spm));
    spm->vocab = vocab;
    int32_t status = fill(gguf, spm);
    if (status != WINA_OK) {
        wina_spm_free(spm);
        return status;
    }
    *out = spm;
    return WINA_OK;
}

void wina_spm_free(wina_spm *spm) {
    if (spm == NULL)
        return;
    free(spm->ranks);
    free(spm);
}

bool wina_spm_adds_space(const wina_spm *spm) {
    return spm->adds_space;
}

static int32_t find_plain(const wina_vocab *vocab, const uint8_t *text, size_t n) {
    int32_t token = wina_vocab_find(vocab, text, n, NULL, 0);
    return token >= 0 && wina_vocab_is_plain(vocab, token) ? token : -1;
}

static bool find_merge(const void *user, const uint8_t *word, const wina_merge_symbol *left,
                       const wina_merge_symbol *right, uint32_t left_at, uint32_t *rank,
                       int32_t *token) {
    const wina_spm *spm = user;
    *token = find_plain(spm->vocab, word + left_at, left->n + right->n);
    if (*token < 0)
        return false;
    *rank = spm->ranks[*token];
    return true;
}

/* A character that is no token: its bytes, or the unknown token if one of them has none. */
static void emit_bytes(const wina_spm *spm, const uint8_t *text, uint32_t n,
                       wina_vocab_sink *sink) {
    for (uint32_t i = 0; i < n; i++)
        if (spm->bytes[text[i]] < 0) {
            wina_vocab_emit_unknown(spm->vocab, sink);
            return;
        }
    for (uint32_t i = 0; i < n; i++)
        wina_vocab_emit(sink, spm->bytes[text[i]]);
}

/* Merges text[0..n), spaces already written as U+2581, and appends its tokens. */
static int32_t encode_escaped(const wina_spm *spm, wina_merge *merge, const uint8_t *text,
                              uint32_t n, wina_vocab_sink *sink) {
    WINA_TRY(wina_merge_reserve(merge, n));
    wina_merge_symbol *symbols = merge->symbols;
    uint32_t previous = WINA_MERGE_NONE;
    for (uint32_t i = 0; i < n;) {
        uint32_t cp;
        uint32_t length = (uint32_t)wina_unicode_decode(text + i, n - i, &cp);
        int32_t token = cp == WINA_UNICODE_LIMIT ? -1 : find_plain(spm->vocab, text + i, length);
        symbols[i] = (wina_merge_symbol){length, previous, token};
        previous = i;
        i += length;
    }
    WINA_TRY(wina_merge_run(merge, text, n, find_merge, spm));
    for (uint32_t i = 0; i < n; i += symbols[i].n) {
        if (symbols[i].token >= 0)
            wina_vocab_emit(sink, symbols[i].token);
        else
            emit_bytes(spm, text + i, symbols[i].n, sink);
    }
    return WINA_OK;
}

int32_t wina_spm_encode(const wina_spm *spm, const uint8_t *text, size_t n, bool prefix,
                        wina_vocab_sink *sink) {
    uint8_t *escaped;
    WINA_TRY(wina_mem_create((n + 1) * 3ull, 1, "text with spaces escaped", &escaped));
    size_t length = 0;
    if (prefix) {
        memcpy(escaped, space_text, sizeof space_text);
        length = sizeof space_text;
    }
    for (size_t i = 0; i < n; i++) {
        if (text[i] == ' ') {
            memcpy(escaped + length, space_text, sizeof space_text);
            length += sizeof space_text;
        } else {
            escaped[length++] = text[i];
        }
    }
    wina_merge merge = {0};
    int32_t status = encode_escaped(spm, &merge, escaped, (uint32_t)length, sink);
    wina_merge_free(&merge);
    free(escaped);
    return status;
}

size_t wina_spm_decode(const wina_spm *spm, int32_t token, uint8_t *out) {
    wina_str text = spm->vocab->texts[token];
    if (spm->vocab->types[token] == WINA_VOCAB_BYTE) {
        out[0] = (uint8_t)byte_value(text);
        return 1;
    }
    size_t n = 0;
    for (size_t i = 0; i < text.n;) {
        if (text.n - i >= sizeof space_text &&
            memcmp(text.data + i, space_text, sizeof space_text) == 0) {
            out[n++] = ' ';
            i += sizeof space_text;
        } else {
            out[n++] = (uint8_t)text.data[i++];
        }
    }
    return n;
}

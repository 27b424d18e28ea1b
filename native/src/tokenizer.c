/* tokenizer: the front of both families. Text is cut at special tokens first, and only what lies
 * between them reaches BPE or SPM; those never produce a control token, so no text can become one
 * unless the caller asked for it. */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "bpe.h"
#include "mem.h"
#include "special.h"
#include "spm.h"
#include "status.h"
#include "unicode.h"
#include "vocab.h"

#define KEY(name) "tokenizer.ggml." name

/* Offsets are 32 bits wide, and a byte of text may become three (U+2581, U+FFFD). */
#define MAX_TEXT_BYTES (512u * 1024 * 1024)

struct wina_tokenizer {
    wina_vocab *vocab;
    wina_special *special;
    wina_bpe *bpe; /* one of the two */
    wina_spm *spm;
    bool adds_bos;
    bool strips_after; /* control tokens swallow the spaces that follow them in text */
};

static bool equals(wina_str text, const char *word) {
    return text.n == strlen(word) && memcmp(text.data, word, text.n) == 0;
}

static int32_t fill(const wina_gguf *gguf, wina_tokenizer *tokenizer) {
    wina_str model;
    WINA_TRY(wina_gguf_get_str(gguf, KEY("model"), &model));
    bool spm = equals(model, "llama");
    if (!spm && !equals(model, "gpt2"))
        return wina_fail(WINA_E_UNSUPPORTED, KEY("model") ": unknown tokenizer \"%.*s\"",
                         model.n < 64 ? (int)model.n : 64, model.data);
    WINA_TRY(wina_vocab_create(gguf, spm, &tokenizer->vocab));
    WINA_TRY(wina_special_create(tokenizer->vocab, &tokenizer->special));
    if (spm)
        WINA_TRY(wina_spm_create(gguf, tokenizer->vocab, &tokenizer->spm));
    else
        WINA_TRY(wina_bpe_create(gguf, tokenizer->vocab, &tokenizer->bpe));
    const wina_vocab *vocab = tokenizer->vocab;
    tokenizer->adds_bos = vocab->has_add_bos ? vocab->add_bos
                          : spm              ? true
                                             : wina_bpe_adds_bos(tokenizer->bpe);
    if (vocab->bos < 0)
        tokenizer->adds_bos = false;
    /* Phi-3's chat tokens are declared so (rstrip), which GGUF has no key for. */
    wina_str architecture = {"", 0};
    if (wina_gguf_find(gguf, "general.architecture") != NULL)
        WINA_TRY(wina_gguf_get_str(gguf, "general.architecture", &architecture));
    tokenizer->strips_after = spm && equals(architecture, "phi3");
    return WINA_OK;
}

int32_t wina_tokenizer_create(const wina_gguf *gguf, wina_tokenizer **out) {
    *out = NULL;
    wina_tokenizer *tokenizer;
    WINA_TRY(wina_mem_create(1, sizeof *tokenizer, "tokenizer", &tokenizer));
    int32_t status = fill(gguf, tokenizer);
    if (status != WINA_OK) {
        wina_tokenizer_free(tokenizer);
        return status;
    }
    *out = tokenizer;
    return WINA_OK;
}

void wina_tokenizer_free(wina_tokenizer *tokenizer) {
    if (tokenizer == NULL)
        return;
    wina_spm_free(tokenizer->spm);
    wina_bpe_free(tokenizer->bpe);
    wina_special_free(tokenizer->special);
    wina_vocab_free(tokenizer->vocab);
    free(tokenizer);
}

/* A copy of text in which every wrong piece is U+FFFD; from is where the first one is. Free with
 * free(). */
static int32_t repair(const uint8_t *text, size_t n, size_t from, uint8_t **out, size_t *out_n) {
    uint8_t *copy;
    WINA_TRY(wina_mem_create(n * 3ull, 1, "text with U+FFFD", &copy));
    memcpy(copy, text, from);
    size_t length = from;
    for (size_t i = from; i < n;) {
        uint32_t cp;
        size_t piece = wina_unicode_decode(text + i, n - i, &cp);
        if (cp == WINA_UNICODE_LIMIT) {
            length += wina_unicode_encode(WINA_UNICODE_REPLACEMENT, copy + length);
        } else {
            memcpy(copy + length, text + i, piece);
            length += piece;
        }
        i += piece;
    }
    *out = copy;
    *out_n = length;
    return WINA_OK;
}

/* Where the text that follows a special token goes on. BOS and the token that ends a document keep
 * the spaces after them even in Phi-3. */
static size_t skip_after(const wina_tokenizer *tokenizer, int32_t token, const uint8_t *text,
                         size_t at, size_t n) {
    const wina_vocab *vocab = tokenizer->vocab;
    if (!tokenizer->strips_after || token == vocab->bos || token == vocab->unk ||
        equals(vocab->texts[token], "<|endoftext|>"))
        return at;
    while (at < n) {
        uint32_t cp;
        size_t length = wina_unicode_decode(text + at, n - at, &cp);
        if (wina_unicode_get_class(cp) != WINA_UNICODE_SPACE)
            break;
        at += length;
    }
    return at;
}

/* Appends the tokens of text, specials included. */
static int32_t encode_text(const wina_tokenizer *tokenizer, const uint8_t *text, size_t n,
                           bool control, wina_vocab_sink *sink) {
    /* SentencePiece puts a space before the text, and again after each special token. */
    bool prefix = tokenizer->spm != NULL && wina_spm_adds_space(tokenizer->spm);
    size_t at = 0;
    while (at < n) {
        size_t start, end;
        int32_t token = wina_special_find(tokenizer->special, text, at, n, control, &start, &end);
        if (start > at) {
            if (tokenizer->spm != NULL)
                WINA_TRY(wina_spm_encode(tokenizer->spm, text + at, start - at, prefix, sink));
            else
                WINA_TRY(wina_bpe_encode(tokenizer->bpe, text + at, start - at, sink));
        }
        if (token < 0)
            break;
        wina_vocab_emit(sink, token);
        at = skip_after(tokenizer, token, text, end, n);
    }
    return WINA_OK;
}

int32_t wina_tokenizer_encode(const wina_tokenizer *tokenizer, const char *text, size_t n_bytes,
                              int32_t flags, int32_t *tokens, size_t capacity, size_t *n_tokens) {
    if (n_bytes > MAX_TEXT_BYTES)
        return wina_fail(WINA_E_ARGUMENT, "text of %zu bytes: at most %u can be tokenized", n_bytes,
                         MAX_TEXT_BYTES);
    const wina_vocab *vocab = tokenizer->vocab;
    wina_vocab_sink sink = {tokens, capacity, 0};
    if ((flags & WINA_TOKENIZE_ADD_SPECIAL) && tokenizer->adds_bos)
        wina_vocab_emit(&sink, vocab->bos);
    const uint8_t *bytes = (const uint8_t *)text;
    uint8_t *repaired = NULL;
    if (tokenizer->bpe != NULL) {
        size_t valid = wina_unicode_valid(bytes, n_bytes);
        if (valid < n_bytes) {
            WINA_TRY(repair(bytes, n_bytes, valid, &repaired, &n_bytes));
            bytes = repaired;
        }
    }
    int32_t status =
        encode_text(tokenizer, bytes, n_bytes, (flags & WINA_TOKENIZE_PARSE_SPECIAL) != 0, &sink);
    free(repaired);
    if (status != WINA_OK)
        return status;
    if ((flags & WINA_TOKENIZE_ADD_SPECIAL) && vocab->add_eos)
        wina_vocab_emit(&sink, vocab->eos);
    *n_tokens = sink.n;
    if (sink.n > capacity)
        return wina_fail(WINA_E_SPACE, "%zu tokens, room for %zu", sink.n, capacity);
    return WINA_OK;
}

static int32_t check_token(const wina_vocab *vocab, int32_t token) {
    if (token < 0 || token >= vocab->n_tokens)
        return wina_fail(WINA_E_ARGUMENT, "token %d is not in the vocabulary of %d", token,
                         vocab->n_tokens);
    return WINA_OK;
}

/* Bytes of a token into out, which has room for its text. Returns how many. */
static size_t write_piece(const wina_tokenizer *tokenizer, int32_t token, int32_t special,
                          uint8_t *out) {
    const wina_vocab *vocab = tokenizer->vocab;
    wina_str text = vocab->texts[token];
    switch (vocab->types[token]) {
    case WINA_VOCAB_CONTROL:
    case WINA_VOCAB_UNKNOWN:
    case WINA_VOCAB_UNUSED:
        if (!special)
            return 0;
        break;
    case WINA_VOCAB_USER_DEFINED:
        break;
    default:
        return tokenizer->spm != NULL ? wina_spm_decode(tokenizer->spm, token, out)
                                      : wina_bpe_decode(text, out);
    }
    memcpy(out, text.data, text.n);
    return text.n;
}

int32_t wina_tokenizer_decode(const wina_tokenizer *tokenizer, const int32_t *tokens,
                              size_t n_tokens, int32_t special, char *text, size_t capacity,
                              size_t *n_bytes) {
    const wina_vocab *vocab = tokenizer->vocab;
    for (size_t i = 0; i < n_tokens; i++)
        WINA_TRY(check_token(vocab, tokens[i]));
    uint8_t *piece;
    WINA_TRY(wina_mem_create(vocab->max_bytes + 1ull, 1, "text of a token", &piece));
    /* The space that SentencePiece put before the text goes away again. */
    bool strip = tokenizer->spm != NULL && wina_spm_adds_space(tokenizer->spm);
    size_t total = 0;
    for (size_t i = 0; i < n_tokens; i++) {
        size_t n = write_piece(tokenizer, tokens[i], special, piece);
        const uint8_t *from = piece;
        if (n > 0 && strip) {
            strip = false;
            if (piece[0] == ' ' && vocab->types[tokens[i]] != WINA_VOCAB_USER_DEFINED)
                from++, n--;
        }
        if (total < capacity)
            memcpy(text + total, from, n < capacity - total ? n : capacity - total);
        total += n;
    }
    free(piece);
    *n_bytes = total;
    if (total > capacity)
        return wina_fail(WINA_E_SPACE, "%zu bytes of text, room for %zu", total, capacity);
    return WINA_OK;
}

int32_t wina_tokenizer_piece(const wina_tokenizer *tokenizer, int32_t token, int32_t special,
                             char *text, size_t capacity, size_t *n_bytes) {
    const wina_vocab *vocab = tokenizer->vocab;
    WINA_TRY(check_token(vocab, token));
    uint8_t *piece;
    WINA_TRY(wina_mem_create(vocab->max_bytes + 1ull, 1, "text of a token", &piece));
    size_t n = write_piece(tokenizer, token, special, piece);
    if (capacity > 0)
        memcpy(text, piece, n < capacity ? n : capacity);
    free(piece);
    *n_bytes = n;
    if (n > capacity)
        return wina_fail(WINA_E_SPACE, "%zu bytes of text, room for %zu", n, capacity);
    return WINA_OK;
}

int32_t wina_tokenizer_n_vocab(const wina_tokenizer *tokenizer) {
    return tokenizer->vocab->n_tokens;
}

int32_t wina_tokenizer_bos(const wina_tokenizer *tokenizer) {
    return tokenizer->vocab->bos;
}

int32_t wina_tokenizer_eos(const wina_tokenizer *tokenizer) {
    return tokenizer->vocab->eos;
}

int32_t wina_tokenizer_adds_bos(const wina_tokenizer *tokenizer) {
    return tokenizer->adds_bos;
}

int32_t wina_tokenizer_is_eog(const wina_tokenizer *tokenizer, int32_t token) {
    const wina_vocab *vocab = tokenizer->vocab;
    return token >= 0 && token < vocab->n_tokens && vocab->ends[token];
}

int32_t wina_tokenizer_is_special(const wina_tokenizer *tokenizer, int32_t token) {
    const wina_vocab *vocab = tokenizer->vocab;
    return token >= 0 && token < vocab->n_tokens &&
           (vocab->types[token] == WINA_VOCAB_CONTROL ||
            vocab->types[token] == WINA_VOCAB_USER_DEFINED);
}

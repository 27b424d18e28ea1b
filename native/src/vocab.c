/* vocab: everything here comes from the file, so everything is checked: parallel arrays are as long
 * as the list of tokens and of the right type, every id that is named lies in it. The hash of a
 * text is seeded per vocabulary, so that no file can be made whose texts all collide. */
#include "vocab.h"

#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "pairmap.h"
#include "status.h"

#define KEY(name) "tokenizer.ggml." name

static uint64_t mix(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Adds bytes to a running hash. The hash of a text must not depend on where it is cut into left and
 * right, so bytes go in one by one; texts of tokens are short. */
static uint64_t hash_bytes(uint64_t hash, const void *data, size_t n) {
    const uint8_t *bytes = data;
    for (size_t i = 0; i < n; i++)
        hash = (hash ^ bytes[i]) * 0x100000001B3u + (hash >> 47);
    return hash;
}

static uint32_t finish_hash(const wina_vocab *vocab, uint64_t hash) {
    return (uint32_t)mix(hash ^ vocab->seed, 0x9E3779B97F4A7C15u);
}

static uint32_t hash_text(const wina_vocab *vocab, const void *left, size_t left_n,
                          const void *right, size_t right_n) {
    return finish_hash(vocab, hash_bytes(hash_bytes(vocab->seed, left, left_n), right, right_n));
}

static int32_t find_hashed(const wina_vocab *vocab, uint32_t hash, const void *left, size_t left_n,
                           const void *right, size_t right_n) {
    size_t n = left_n + right_n;
    for (uint64_t i = hash;; i++) {
        uint64_t at = i & (vocab->n_slots - 1);
        int32_t token = vocab->slots[at].token;
        if (token < 0)
            return -1;
        if (vocab->slots[at].hash != hash || vocab->texts[token].n != n)
            continue;
        const char *text = vocab->texts[token].data;
        if (memcmp(text, left, left_n) == 0 &&
            (right_n == 0 || memcmp(text + left_n, right, right_n) == 0))
            return token;
    }
}

int32_t wina_vocab_find(const wina_vocab *vocab, const void *left, size_t left_n, const void *right,
                        size_t right_n) {
    if (left_n + right_n > vocab->max_bytes)
        return -1;
    const uint32_t hash = hash_text(vocab, left, left_n, right, right_n);
    return find_hashed(vocab, hash, left, left_n, right, right_n);
}

void wina_vocab_find_all(const wina_vocab *vocab, wina_vocab_query *queries, int32_t n) {
    const uint64_t mask = vocab->n_slots - 1;
    for (int32_t i = 0; i < n; i++) {
        wina_vocab_query *q = &queries[i];
        const bool fits = q->left_n + q->right_n <= vocab->max_bytes;
        q->hash = fits ? hash_text(vocab, q->left, q->left_n, q->right, q->right_n) : 0;
        q->token = fits ? 0 : -1;
        __builtin_prefetch(&vocab->slots[q->hash & mask]);
    }
    /* Most lie in the first slot that they may be in. */
    for (int32_t i = 0; i < n; i++) {
        const int32_t token = vocab->slots[queries[i].hash & mask].token;
        __builtin_prefetch(&vocab->texts[token < 0 ? 0 : token]);
    }
    for (int32_t i = 0; i < n; i++) {
        const int32_t token = vocab->slots[queries[i].hash & mask].token;
        __builtin_prefetch(vocab->texts[token < 0 ? 0 : token].data);
    }
    for (int32_t i = 0; i < n; i++) {
        wina_vocab_query *q = &queries[i];
        if (q->token == 0)
            q->token = find_hashed(vocab, q->hash, q->left, q->left_n, q->right, q->right_n);
    }
}

/* Tokens without text are in no table. */
static int32_t build_table(wina_vocab *vocab) {
    vocab->n_slots = 16;
    while (vocab->n_slots / 2 < (uint64_t)vocab->n_tokens)
        vocab->n_slots *= 2;
    WINA_TRY(
        wina_mem_create(vocab->n_slots, sizeof *vocab->slots, "table of tokens", &vocab->slots));
    for (uint64_t i = 0; i < vocab->n_slots; i++)
        vocab->slots[i].token = -1;
    for (int32_t token = 0; token < vocab->n_tokens; token++) {
        wina_str text = vocab->texts[token];
        if (text.n == 0)
            continue;
        uint32_t hash = finish_hash(vocab, hash_bytes(vocab->seed, text.data, text.n));
        uint64_t at = hash & (vocab->n_slots - 1);
        for (;; at = (at + 1) & (vocab->n_slots - 1)) {
            int32_t other = vocab->slots[at].token;
            if (other < 0)
                break;
            if (vocab->slots[at].hash == hash && vocab->texts[other].n == text.n &&
                memcmp(vocab->texts[other].data, text.data, text.n) == 0)
                break;
        }
        int32_t other = vocab->slots[at].token;
        if (other >= 0 && wina_vocab_is_plain(vocab, other) && !wina_vocab_is_plain(vocab, token))
            continue;
        vocab->slots[at].hash = hash;
        vocab->slots[at].token = token;
    }
    return WINA_OK;
}

static int32_t read_tokens(const wina_gguf *gguf, wina_vocab *vocab) {
    const wina_gguf_kv *kv;
    WINA_TRY(wina_gguf_get_array(gguf, KEY("tokens"), WINA_GGUF_STRING, 0, &kv));
    if (kv->count == 0)
        return wina_fail(WINA_E_FORMAT, KEY("tokens") ": empty");
    if (kv->count > INT32_MAX)
        return wina_fail(WINA_E_FORMAT, KEY("tokens") ": %llu are too many",
                         (unsigned long long)kv->count);
    vocab->n_tokens = (int32_t)kv->count;
    WINA_TRY(wina_mem_create(kv->count, sizeof *vocab->texts, KEY("tokens"), &vocab->texts));
    WINA_TRY(wina_mem_create(kv->count, 1, KEY("token_type"), &vocab->types));
    WINA_TRY(wina_mem_create(kv->count, 1, "tokens that end", &vocab->ends));
    const uint8_t *cursor = kv->data;
    for (int32_t i = 0; i < vocab->n_tokens; i++) {
        vocab->texts[i] = wina_gguf_next_str(&cursor);
        if (vocab->texts[i].n > WINA_VOCAB_MAX_BYTES)
            return wina_fail(WINA_E_FORMAT, KEY("tokens") ": token %d has %llu bytes, more than %d",
                             i, (unsigned long long)vocab->texts[i].n, WINA_VOCAB_MAX_BYTES);
        if (vocab->texts[i].n > vocab->max_bytes)
            vocab->max_bytes = (uint32_t)vocab->texts[i].n;
    }
    return WINA_OK;
}

/* Without the array every token is a normal one. */
static int32_t read_types(const wina_gguf *gguf, wina_vocab *vocab) {
    if (wina_gguf_find(gguf, KEY("token_type")) == NULL) {
        memset(vocab->types, WINA_VOCAB_NORMAL, (size_t)vocab->n_tokens);
        return WINA_OK;
    }
    const wina_gguf_kv *kv;
    WINA_TRY(wina_gguf_get_array(gguf, KEY("token_type"), WINA_GGUF_I32, (uint64_t)vocab->n_tokens,
                                 &kv));
    for (int32_t i = 0; i < vocab->n_tokens; i++) {
        int64_t type = wina_gguf_item_int(kv, (uint64_t)i);
        if (type < WINA_VOCAB_UNDEFINED || type > WINA_VOCAB_BYTE)
            return wina_fail(WINA_E_FORMAT, KEY("token_type") ": token %d has type %lld", i,
                             (long long)type);
        vocab->types[i] = (uint8_t)type;
    }
    return WINA_OK;
}

/* Only SPM needs the scores; a file that has them is held to them. */
static int32_t check_scores(const wina_gguf *gguf, const wina_vocab *vocab) {
    const wina_gguf_kv *kv;
    if (wina_gguf_find(gguf, KEY("scores")) == NULL)
        return WINA_OK;
    return wina_gguf_get_array(gguf, KEY("scores"), WINA_GGUF_F32, (uint64_t)vocab->n_tokens, &kv);
}

enum { ROLE_NONE, ROLE_BOS, ROLE_EOS, ROLE_UNK, ROLE_END };

/* Every key that names a token, with what we do with it. ROLE_END: it ends a generation. */
static const struct {
    const char *key;
    int role;
} id_keys[] = {
    {KEY("bos_token_id"), ROLE_BOS},        {KEY("eos_token_id"), ROLE_EOS},
    {KEY("unknown_token_id"), ROLE_UNK},    {KEY("eot_token_id"), ROLE_END},
    {KEY("eom_token_id"), ROLE_END},        {KEY("fim_pad_token_id"), ROLE_END},
    {KEY("fim_rep_token_id"), ROLE_END},    {KEY("fim_sep_token_id"), ROLE_END},
    {KEY("fim_pre_token_id"), ROLE_NONE},   {KEY("fim_suf_token_id"), ROLE_NONE},
    {KEY("fim_mid_token_id"), ROLE_NONE},   {KEY("prefix_token_id"), ROLE_NONE},
    {KEY("suffix_token_id"), ROLE_NONE},    {KEY("middle_token_id"), ROLE_NONE},
    {KEY("padding_token_id"), ROLE_NONE},   {KEY("seperator_token_id"), ROLE_NONE},
    {KEY("separator_token_id"), ROLE_NONE}, {KEY("cls_token_id"), ROLE_NONE},
    {KEY("mask_token_id"), ROLE_NONE},
};

static int32_t read_id(const wina_gguf *gguf, wina_vocab *vocab, const char *key, int64_t fallback,
                       int32_t *out) {
    *out = -1;
    bool given = wina_gguf_find(gguf, key) != NULL;
    if (!given && fallback < 0)
        return WINA_OK;
    uint32_t id;
    WINA_TRY(wina_gguf_has_u32(gguf, key, (uint32_t)fallback, &id));
    if (id >= (uint32_t)vocab->n_tokens)
        return wina_fail(WINA_E_FORMAT, "%s%s: %u is not below the number of tokens, %d", key,
                         given ? "" : " (default)", id, vocab->n_tokens);
    /* A default is a guess: it must look like what it is guessed to be. */
    if (given || vocab->types[id] == WINA_VOCAB_CONTROL || vocab->types[id] == WINA_VOCAB_UNKNOWN)
        *out = (int32_t)id;
    return WINA_OK;
}

static int32_t read_ids(const wina_gguf *gguf, bool spm, wina_vocab *vocab) {
    for (size_t i = 0; i < sizeof id_keys / sizeof id_keys[0]; i++) {
        int role = id_keys[i].role;
        int64_t fallback = -1;
        if (spm && role == ROLE_BOS)
            fallback = 1;
        if (spm && role == ROLE_EOS)
            fallback = 2;
        if (spm && role == ROLE_UNK)
            fallback = 0;
        int32_t id;
        WINA_TRY(read_id(gguf, vocab, id_keys[i].key, fallback, &id));
        if (role == ROLE_BOS)
            vocab->bos = id;
        if (role == ROLE_EOS)
            vocab->eos = id;
        if (role == ROLE_UNK)
            vocab->unk = id;
        if ((role == ROLE_EOS || role == ROLE_END) && id >= 0)
            vocab->ends[id] = 1;
    }
    vocab->has_add_bos = wina_gguf_find(gguf, KEY("add_bos_token")) != NULL;
    WINA_TRY(wina_gguf_has_bool(gguf, KEY("add_bos_token"), false, &vocab->add_bos));
    WINA_TRY(wina_gguf_has_bool(gguf, KEY("add_eos_token"), false, &vocab->add_eos));
    if (vocab->add_bos && vocab->bos < 0)
        return wina_fail(WINA_E_FORMAT, KEY("add_bos_token") " is true without a bos_token_id");
    if (vocab->add_eos && vocab->eos < 0)
        return wina_fail(WINA_E_FORMAT, KEY("add_eos_token") " is true without an eos_token_id");
    return WINA_OK;
}

/* Texts by which the chat formats end a turn, whatever ids the file names. Some of them are
 * ordinary words of other vocabularies ("</s>" is HTML), so those count only as control tokens. */
static const struct {
    const char *text;
    bool control_only;
} end_texts[] = {
    {"<|endoftext|>", false},
    {"<|im_end|>", false},
    {"<|eot_id|>", false},
    {"<|eom_id|>", false},
    {"<|end|>", false},
    {"<|end_of_text|>", false},
    {"<|EOT|>", false},
    {"<end_of_turn>", false},
    {"<end_of_utterance>", false},
    {"<\uFF5Cend\u2581of\u2581sentence\uFF5C>", false},
    {"<EOT>", true},
    {"_<EOT>", true},
    {"[EOT]", true},
    {"[EOS]", true},
    {"</s>", true},
    {"<eos>", true},
    {"<|fim_pad|>", true}, /* code models end a completion with these */
    {"<fim_pad>", true},
    {"<|repo_name|>", true},
    {"<reponame>", true},
    {"<|file_sep|>", true},
};

/* A token that ends a generation is a control token even where the file calls it something else:
 * text that a user types must not become it. */
static void mark_ends(wina_vocab *vocab) {
    for (size_t i = 0; i < sizeof end_texts / sizeof end_texts[0]; i++) {
        const char *text = end_texts[i].text;
        int32_t token = wina_vocab_find(vocab, text, strlen(text), NULL, 0);
        if (token < 0)
            continue;
        if (end_texts[i].control_only && vocab->types[token] != WINA_VOCAB_CONTROL)
            continue;
        vocab->ends[token] = 1;
    }
    for (int32_t token = 0; token < vocab->n_tokens; token++)
        if (vocab->ends[token])
            vocab->types[token] = WINA_VOCAB_CONTROL;
}

static int32_t check_specials(const wina_vocab *vocab) {
    for (int32_t i = 0; i < vocab->n_tokens; i++) {
        uint8_t type = vocab->types[i];
        if (type != WINA_VOCAB_CONTROL && type != WINA_VOCAB_USER_DEFINED &&
            type != WINA_VOCAB_UNKNOWN)
            continue;
        if (vocab->texts[i].n > WINA_VOCAB_MAX_SPECIAL_BYTES)
            return wina_fail(WINA_E_FORMAT,
                             KEY("tokens") ": special token %d has %llu bytes, more than %d", i,
                             (unsigned long long)vocab->texts[i].n, WINA_VOCAB_MAX_SPECIAL_BYTES);
    }
    return WINA_OK;
}

static int32_t fill(const wina_gguf *gguf, bool spm, wina_vocab *vocab) {
    vocab->seed = wina_pairmap_make_seed();
    WINA_TRY(read_tokens(gguf, vocab));
    WINA_TRY(read_types(gguf, vocab));
    WINA_TRY(check_scores(gguf, vocab));
    WINA_TRY(read_ids(gguf, spm, vocab));
    WINA_TRY(build_table(vocab));
    mark_ends(vocab);
    return check_specials(vocab);
}

int32_t wina_vocab_create(const wina_gguf *gguf, bool spm, wina_vocab **out) {
    *out = NULL;
    wina_vocab *vocab;
    WINA_TRY(wina_mem_create(1, sizeof *vocab, "vocabulary", &vocab));
    int32_t status = fill(gguf, spm, vocab);
    if (status != WINA_OK) {
        wina_vocab_free(vocab);
        return status;
    }
    *out = vocab;
    return WINA_OK;
}

void wina_vocab_free(wina_vocab *vocab) {
    if (vocab == NULL)
        return;
    free(vocab->texts);
    free(vocab->types);
    free(vocab->ends);
    free(vocab->slots);
    free(vocab);
}

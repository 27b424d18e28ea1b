/* test_tokenizer: vocabularies of a few hundred tokens, written to a file by the test, so that each
 * rule can be seen alone. Agreement with other tokenizers on real vocabularies is tested from
 * Python (tests/python/test_tokenizer.py). */
#include <stdbool.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "status.h"
#include "tokenizer.h"
#include "unicode.h"
#include "vocab_file.h"

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER = 4, UNUSED = 5, BYTE = 6 };

#define MEBI ((size_t)1 << 20)

typedef struct loaded {
    wina_gguf *gguf;
    wina_tokenizer *tokenizer;
} loaded;

static int32_t load(const vocab_file *v, loaded *out) {
    char path[] = "/tmp/pywina-vocab-XXXXXX";
    *out = (loaded){0};
    vocab_file_write(v, path);
    int32_t status = wina_gguf_open(path, &out->gguf);
    unlink(path);
    return status == WINA_OK ? wina_tokenizer_create(out->gguf, &out->tokenizer) : status;
}

static void unload(loaded *l) {
    wina_tokenizer_free(l->tokenizer);
    wina_gguf_close(l->gguf);
}

/* All bytes as GPT-2's stand-in characters, ids 0..255, worked out from the rule's own words: bytes
 * that print stand for themselves, the others are counted up from U+0100. */
static void start_bpe(vocab_file *v) {
    static char texts[256][8];
    *v = (vocab_file){.model = "gpt2", .pre = "gpt-2", .architecture = "llama", .no_scores = true};
    uint32_t next = 0x100;
    for (uint32_t b = 0; b < 256; b++) {
        bool prints = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        uint8_t text[4];
        size_t n = wina_unicode_encode(prints ? b : next++, text);
        memcpy(texts[b], text, n);
        texts[b][n] = '\0';
        vocab_file_add(v, texts[b], NORMAL, 0);
    }
}

static void add_merge(vocab_file *v, const char *merge) {
    v->merges[v->n_merges++] = merge;
}

/* unk, bos, eos at 0, 1, 2; bytes at 3..258; U+2581 at 259. */
static void start_spm(vocab_file *v) {
    static char texts[256][8];
    *v = (vocab_file){.model = "llama", .architecture = "llama", .no_merges = true};
    vocab_file_add(v, "<unk>", UNKNOWN, 0);
    vocab_file_add(v, "<s>", CONTROL, 0);
    vocab_file_add(v, "</s>", CONTROL, 0);
    for (int b = 0; b < 256; b++) {
        snprintf(texts[b], sizeof texts[b], "<0x%02X>", b);
        vocab_file_add(v, texts[b], BYTE, 0);
    }
    vocab_file_add(v, "\u2581", NORMAL, -100);
}

/* Encodes and compares with ids that end in -1. */
static bool encodes(const loaded *l, const char *text, size_t n, int flags, const int32_t *want) {
    int32_t ids[64];
    size_t n_ids = 0, n_want = 0;
    while (want[n_want] >= 0)
        n_want++;
    if (wina_tokenizer_encode(l->tokenizer, text, n, flags, ids, 64, &n_ids) != WINA_OK)
        return false;
    bool same = n_ids == n_want && memcmp(ids, want, n_ids * sizeof *ids) == 0;
    if (!same) {
        fprintf(stderr, "\"%s\" gives", text);
        for (size_t i = 0; i < n_ids; i++)
            fprintf(stderr, " %d", ids[i]);
        fputc('\n', stderr);
    }
    return same;
}

#define ENCODES(l, text, flags, ...)                                                               \
    CHECK(encodes(l, text, sizeof(text) - 1, flags, (const int32_t[]){__VA_ARGS__, -1}))

static bool decodes(const loaded *l, const int32_t *ids, size_t n, int special, const char *want) {
    char text[256];
    size_t n_bytes = 0;
    if (wina_tokenizer_decode(l->tokenizer, ids, n, special, text, sizeof text, &n_bytes))
        return false;
    bool same = n_bytes == strlen(want) && memcmp(text, want, n_bytes) == 0;
    if (!same)
        fprintf(stderr, "got \"%.*s\", wanted \"%s\"\n", (int)n_bytes, text, want);
    return same;
}

#define DECODES(l, special, want, ...)                                                             \
    CHECK(decodes(l, (const int32_t[]){__VA_ARGS__},                                               \
                  sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t), special, want))

static void test_unicode(void) {
    for (uint32_t cp = 0; cp < WINA_UNICODE_LIMIT; cp++) {
        uint8_t text[4];
        uint32_t back;
        size_t n = wina_unicode_encode(cp, text);
        size_t length = wina_unicode_decode(text, n, &back);
        bool surrogate = cp >= 0xD800 && cp < 0xE000;
        if (surrogate ? back != WINA_UNICODE_LIMIT || length != 1 : back != cp || length != n) {
            CHECK_MSG(false, "U+%04X", cp);
            return;
        }
    }
    /* The longest start of a valid character is one wrong piece. */
    static const struct {
        const char *text;
        size_t length;
    } wrong[] = {
        {"\x80", 1},     {"\xC0\xAF", 1},         {"\xC1\x81", 1},      {"\xC3", 1},
        {"\xC3(", 1},    {"\xE0\x80\x80", 1},     {"\xE2\x82", 2},      {"\xE2\x82(", 2},
        {"\xED\xA0", 1}, {"\xF0\x8F\x80\x80", 1}, {"\xF0\x9F\x98(", 3}, {"\xF0\x9F(", 2},
        {"\xF5\x80", 1}, {"\xF4\x90\x80\x80", 1}, {"\xFF", 1},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        uint32_t cp = 0;
        const uint8_t *text = (const uint8_t *)wrong[i].text;
        size_t n = wina_unicode_decode(text, strlen(wrong[i].text), &cp);
        CHECK_MSG(cp == WINA_UNICODE_LIMIT && n == wrong[i].length, "wrong piece %zu", i);
    }
    CHECK(wina_unicode_valid((const uint8_t *)"abcdefgh\xC3\xA4ijklmnop\xC3", 19) == 18);
    CHECK(wina_unicode_valid((const uint8_t *)"abcdefghij", 10) == 10);
    static const struct {
        uint32_t cp;
        wina_unicode_class class;
    } classes[] = {
        {'a', WINA_UNICODE_LOWER},        {'7', WINA_UNICODE_NUMBER},
        {'!', WINA_UNICODE_PUNCTUATION},  {'$', WINA_UNICODE_SYMBOL},
        {'\n', WINA_UNICODE_SPACE},       {0x85, WINA_UNICODE_SPACE},
        {0x1C, WINA_UNICODE_OTHER},       {0xB2, WINA_UNICODE_NUMBER},
        {0x301, WINA_UNICODE_MARK},       {0x3000, WINA_UNICODE_SPACE},
        {0x180E, WINA_UNICODE_OTHER},     {0x4E2D, WINA_UNICODE_LETTER},
        {0x2167, WINA_UNICODE_NUMBER},    {0x10D40, WINA_UNICODE_NUMBER},
        {0x1F600, WINA_UNICODE_SYMBOL},   {0x10FFFF, WINA_UNICODE_OTHER},
        {0xFFFFFFFF, WINA_UNICODE_OTHER},
    };
    for (size_t i = 0; i < sizeof classes / sizeof classes[0]; i++)
        CHECK_MSG(wina_unicode_get_class(classes[i].cp) == classes[i].class, "U+%04X",
                  classes[i].cp);
}

static void test_bpe_order(void) {
    vocab_file v;
    loaded l;
    start_bpe(&v);
    vocab_file_add(&v, "ab", NORMAL, 0);  /* 256 */
    vocab_file_add(&v, "bc", NORMAL, 0);  /* 257 */
    vocab_file_add(&v, "aa", NORMAL, 0);  /* 258 */
    vocab_file_add(&v, "abc", NORMAL, 0); /* 259 */
    add_merge(&v, "b c");
    add_merge(&v, "a b");
    add_merge(&v, "a a");
    CHECK(load(&v, &l) == WINA_OK);
    ENCODES(&l, "abc", 0, 'a', 257); /* the earlier merge first, though further right */
    ENCODES(&l, "abab", 0, 256, 256);
    ENCODES(&l, "aaa", 0, 258, 'a'); /* of equals the left one */
    ENCODES(&l, "aab", 0, 'a', 256);
    ENCODES(&l, "", 0, -1);
    unload(&l);
    v.merges[0] = "a b", v.merges[1] = "b c";
    add_merge(&v, "ab c");
    CHECK(load(&v, &l) == WINA_OK);
    ENCODES(&l, "abc", 0, 259);
    ENCODES(&l, "ab c", 0, 256, 32, 'c'); /* words do not merge with each other */
    unload(&l);
    /* A merge that a later one makes possible comes before those that wait. */
    v.merges[0] = "ab c", v.merges[1] = "a b", v.merges[2] = "b c";
    CHECK(load(&v, &l) == WINA_OK);
    ENCODES(&l, "abcababcababcab", 0, 259, 256, 259, 256, 259, 256);
    unload(&l);
    v.merges[0] = "a b", v.merges[1] = "b c", v.merges[2] = "ab c";
    /* Llama 3 takes a word that is a token whole, without merges, and starts with BOS. */
    vocab_file_add(&v, "cba", NORMAL, 0);      /* 260 */
    vocab_file_add(&v, "<|bos|>", CONTROL, 0); /* 261 */
    v.extras[0] = (extra){"bos_token_id", WINA_GGUF_U32, 261, NULL};
    CHECK(load(&v, &l) == WINA_OK);
    ENCODES(&l, "cba", WINA_TOKENIZE_ADD_SPECIAL, 'c', 'b', 'a');
    CHECK(!wina_tokenizer_adds_bos(l.tokenizer));
    unload(&l);
    v.pre = "llama-bpe";
    CHECK(load(&v, &l) == WINA_OK);
    ENCODES(&l, "cba", WINA_TOKENIZE_ADD_SPECIAL, 261, 260);
    ENCODES(&l, "cba", WINA_TOKENIZE_PLAIN, 260);
    ENCODES(&l, "cbab", 0, 'c', 'b', 256);
    CHECK(wina_tokenizer_adds_bos(l.tokenizer));
    unload(&l);
}

/* Invalid UTF-8 becomes U+FFFD; bytes without a token become the unknown token or nothing. */
static void test_bpe_bytes(void) {
    vocab_file v;
    loaded l;
    start_bpe(&v);
    CHECK(load(&v, &l) == WINA_OK);
    ENCODES(&l, "a\xFFz", 0, 'a', 0xEF, 0xBF, 0xBD, 'z');
    ENCODES(&l, "\xE2\x82", 0, 0xEF, 0xBF, 0xBD);
    ENCODES(&l, "\0\xC2\xAD", 0, 0, 0xC2, 0xAD);
    DECODES(&l, 0, "\xC2\xAD \n~", 0xC2, 0xAD, ' ', '\n', '~');
    unload(&l);
    v.items['q'].text = "qq";
    v.items['r'].text = "<unk>", v.items['r'].type = CONTROL;
    v.extras[0] = (extra){"unknown_token_id", WINA_GGUF_U32, 'r', NULL};
    CHECK(load(&v, &l) == WINA_OK);
    ENCODES(&l, "aqb", 0, 'a', 'b'); /* a control token must not come out of text */
    unload(&l);
    v.items['r'].type = UNKNOWN;
    CHECK(load(&v, &l) == WINA_OK);
    ENCODES(&l, "aqb", 0, 'a', 'r', 'b');
    unload(&l);
}

static void test_specials(void) {
    vocab_file v;
    loaded l;
    start_bpe(&v);
    vocab_file_add(&v, "<|im_end|>", NORMAL, 0); /* 256: a control token whatever the file says */
    vocab_file_add(&v, "<b>", CONTROL, 0);       /* 257 */
    vocab_file_add(&v, "<b>bold", CONTROL, 0);   /* 258 */
    vocab_file_add(&v, "\n\n", USER, 0);         /* 259 */
    vocab_file_add(&v, "<bu", USER, 0);          /* 260 */
    vocab_file_add(&v, "[PAD]", UNUSED, 0);      /* 261 */
    vocab_file_add(&v, "<b", NORMAL, 0);         /* 262 */
    add_merge(&v, "< b");
    vocab_file_add(&v, "b>", NORMAL, 0); /* 263 */
    add_merge(&v, "b >");
    add_merge(&v, "<b >"); /* would make the control token 257 out of text */
    CHECK(load(&v, &l) == WINA_OK);
    int parse = WINA_TOKENIZE_PARSE_SPECIAL;
    ENCODES(&l, "<|im_end|>", parse, 256);
    ENCODES(&l, "<|im_end|>", 0, '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>');
    ENCODES(&l, "a<b>c", parse, 'a', 257, 'c');
    ENCODES(&l, "<b>boldly", parse, 258, 'l', 'y');
    ENCODES(&l, "<b>bol", parse, 257, 'b', 'o', 'l');
    ENCODES(&l, "<b><b>", parse, 257, 257);
    ENCODES(&l, "\n\n\n", 0, 259, '\n');
    ENCODES(&l, "<bu", 0, 260);
    ENCODES(&l, "[PAD]", parse, '[', 'P', 'A', 'D', ']');
    CHECK(wina_tokenizer_is_eog(l.tokenizer, 256) && !wina_tokenizer_is_eog(l.tokenizer, 257));
    CHECK(wina_tokenizer_is_special(l.tokenizer, 256) &&
          wina_tokenizer_is_special(l.tokenizer, 259));
    CHECK(!wina_tokenizer_is_special(l.tokenizer, 'a') &&
          !wina_tokenizer_is_special(l.tokenizer, -1));
    CHECK(!wina_tokenizer_is_eog(l.tokenizer, -1) && !wina_tokenizer_is_eog(l.tokenizer, 264));
    DECODES(&l, 0, "a\n\n", 'a', 256, 259, 261);
    DECODES(&l, 1, "a<|im_end|>\n\n[PAD]", 'a', 256, 259, 261);
    unload(&l);
    /* The words of text must never add up to a control token, in any pre-tokenizer. */
    v.pre = "llama3";
    CHECK(load(&v, &l) == WINA_OK);
    ENCODES(&l, "<b>", 0, 262, '>');
    unload(&l);
}

/* Several tokens with one text: the user-defined one is found in both modes, else the last. */
static void test_specials_of_one_text(void) {
    static const int types[][3] = {{USER, CONTROL, CONTROL},
                                   {CONTROL, USER, CONTROL},
                                   {CONTROL, CONTROL, USER},
                                   {USER, USER, CONTROL},
                                   {CONTROL, CONTROL, CONTROL}};
    static const int32_t want[] = {256, 257, 258, 257, 258};
    for (int i = 0; i < 5; i++) {
        vocab_file v;
        loaded l;
        start_bpe(&v);
        for (int k = 0; k < 3; k++)
            vocab_file_add(&v, "<u>", types[i][k], 0);
        CHECK(load(&v, &l) == WINA_OK);
        ENCODES(&l, "a<u>b", WINA_TOKENIZE_PARSE_SPECIAL, 'a', want[i], 'b');
        if (i < 4)
            ENCODES(&l, "a<u>b", 0, 'a', want[i], 'b');
        else
            ENCODES(&l, "a<u>b", 0, 'a', '<', 'u', '>', 'b');
        unload(&l);
    }
}

static void test_spm(void) {
    vocab_file v;
    loaded l;
    start_spm(&v);                                 /* U+2581 is 259 */
    vocab_file_add(&v, "a", NORMAL, -10);          /* 260 */
    vocab_file_add(&v, "b", NORMAL, -11);          /* 261 */
    vocab_file_add(&v, "ab", NORMAL, -3);          /* 262 */
    vocab_file_add(&v, "ba", NORMAL, -2);          /* 263 */
    vocab_file_add(&v, "\u2581a", NORMAL, -4);     /* 264 */
    vocab_file_add(&v, "s>", NORMAL, -1);          /* 265 */
    vocab_file_add(&v, "</", NORMAL, -1);          /* 266 */
    vocab_file_add(&v, "s", NORMAL, -1);           /* 267 */
    vocab_file_add(&v, "<", NORMAL, -1);           /* 268 */
    vocab_file_add(&v, "/", NORMAL, -1);           /* 269 */
    vocab_file_add(&v, ">", NORMAL, -1);           /* 270 */
    vocab_file_add(&v, "\u2581\u2581", NORMAL, 0); /* 271 */
    CHECK(load(&v, &l) == WINA_OK);
    CHECK(wina_tokenizer_bos(l.tokenizer) == 1 && wina_tokenizer_eos(l.tokenizer) == 2);
    ENCODES(&l, "ab", 0, 259, 262);  /* ab (-3) before U+2581 a (-4) */
    ENCODES(&l, "aba", 0, 264, 263); /* ba (-2) before ab */
    ENCODES(&l, "", 0, -1);
    ENCODES(&l, "", WINA_TOKENIZE_ADD_SPECIAL, 1);
    ENCODES(&l, " a", WINA_TOKENIZE_ADD_SPECIAL, 1, 271, 260);
    ENCODES(&l, "\xC3\xA4", 0, 259, 3 + 0xC3, 3 + 0xA4);
    ENCODES(&l, "\xFF\xE2\x82", 0, 259, 3 + 0xFF, 3 + 0xE2, 3 + 0x82);
    ENCODES(&l, "</s>", 0, 259, 266, 265); /* never the control token */
    ENCODES(&l, "</s>a", WINA_TOKENIZE_PARSE_SPECIAL, 2, 264);
    DECODES(&l, 0, "ab", 259, 262);
    DECODES(&l, 0, "ab  \xC3\xA4", 1, 259, 262, 271, 3 + 0xC3, 3 + 0xA4);
    DECODES(&l, 1, "</s> a", 2, 264);
    char text[8];
    size_t n = 0;
    CHECK(wina_tokenizer_piece(l.tokenizer, 264, 0, text, sizeof text, &n) == WINA_OK);
    CHECK(n == 2 && memcmp(text, " a", 2) == 0);
    CHECK(wina_tokenizer_piece(l.tokenizer, 2, 0, text, sizeof text, &n) == WINA_OK && n == 0);
    CHECK(wina_tokenizer_piece(l.tokenizer, 2, 1, text, 2, &n) == WINA_E_SPACE && n == 4);
    CHECK(wina_tokenizer_piece(l.tokenizer, 272, 0, text, sizeof text, &n) == WINA_E_ARGUMENT);
    CHECK(wina_tokenizer_is_eog(l.tokenizer, 2));
    unload(&l);
    v.extras[0] = (extra){"add_space_prefix", WINA_GGUF_BOOL, 0, NULL};
    v.extras[1] = (extra){"add_bos_token", WINA_GGUF_BOOL, 0, NULL};
    v.extras[2] = (extra){"add_eos_token", WINA_GGUF_BOOL, 1, NULL};
    CHECK(load(&v, &l) == WINA_OK);
    ENCODES(&l, "ab", WINA_TOKENIZE_ADD_SPECIAL, 262, 2);
    DECODES(&l, 0, " a", 264);
    unload(&l);
}

/* Phi-3: control tokens swallow the spaces that follow, BOS does not. */
static void test_phi3(void) {
    vocab_file v;
    loaded l;
    start_spm(&v);
    v.architecture = "phi3";
    vocab_file_add(&v, "<|end|>", CONTROL, 0); /* 260 */
    CHECK(load(&v, &l) == WINA_OK);
    int parse = WINA_TOKENIZE_PARSE_SPECIAL;
    ENCODES(&l, "<|end|> \n<s> ", parse, 260, 1, 259, 259);
    CHECK(wina_tokenizer_is_eog(l.tokenizer, 260));
    unload(&l);
    v.architecture = "llama";
    CHECK(load(&v, &l) == WINA_OK);
    ENCODES(&l, "<|end|> \n", parse, 260, 259, 259, 3 + '\n');
    unload(&l);
}

static void test_capacity(void) {
    vocab_file v;
    loaded l;
    start_bpe(&v);
    CHECK(load(&v, &l) == WINA_OK);
    int32_t ids[3] = {-7, -7, -7};
    size_t n = 0;
    CHECK(wina_tokenizer_encode(l.tokenizer, "abc", 3, 0, NULL, 0, &n) == WINA_E_SPACE && n == 3);
    CHECK(wina_tokenizer_encode(l.tokenizer, "abc", 3, 0, ids, 2, &n) == WINA_E_SPACE && n == 3);
    CHECK(ids[0] == 'a' && ids[1] == 'b' && ids[2] == -7);
    CHECK(wina_tokenizer_encode(l.tokenizer, "abc", 3, 0, ids, 3, &n) == WINA_OK && ids[2] == 'c');
    char text[3] = {'-', '-', '-'};
    CHECK(wina_tokenizer_decode(l.tokenizer, ids, 3, 0, text, 2, &n) == WINA_E_SPACE && n == 3);
    CHECK(memcmp(text, "ab-", 3) == 0);
    CHECK(wina_tokenizer_decode(l.tokenizer, ids, 3, 0, NULL, 0, &n) == WINA_E_SPACE && n == 3);
    ids[1] = 256;
    CHECK(wina_tokenizer_decode(l.tokenizer, ids, 3, 0, text, 3, &n) == WINA_E_ARGUMENT);
    CHECK(strstr(wina_error(), "256") != NULL);
    ids[1] = -1;
    CHECK(wina_tokenizer_decode(l.tokenizer, ids, 3, 0, text, 3, &n) == WINA_E_ARGUMENT);
    unload(&l);
    wina_tokenizer_free(NULL);
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Encodes text, checks the time and that decoding gives the text back. */
static void check_fast(const loaded *l, const char *name, const char *text, size_t n) {
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    char *back = malloc(n);
    size_t n_ids = 0, n_back = 0;
    double start = now();
    CHECK(wina_tokenizer_encode(l->tokenizer, text, n, 0, ids, n + 1, &n_ids) == WINA_OK);
    double seconds = now() - start;
    CHECK_MSG(seconds < check_time(1), "%s: %zu bytes took %.2f s", name, n, seconds);
    CHECK(wina_tokenizer_decode(l->tokenizer, ids, n_ids, 0, back, n, &n_back) == WINA_OK);
    CHECK_MSG(n_back == n && memcmp(text, back, n) == 0, "%s: other text comes back", name);
    printf("%s: %zu bytes, %zu tokens, %.3f s\n", name, n, n_ids, seconds);
    free(ids);
    free(back);
}

/* One word of a mebibyte, with merges that double it; and texts that would be slow if a failing try
 * looked at more than its own run. */
static void test_speed(void) {
    static char runs[8][136], merges[8][272];
    vocab_file bpe, spm;
    loaded l;
    start_bpe(&bpe);
    start_spm(&spm);
    vocab_file_add(&spm, "a", NORMAL, -100);
    for (int i = 0; i < 7; i++) {
        memset(runs[i], 'a', (size_t)2 << i);
        snprintf(merges[i], sizeof merges[i], "%.*s %.*s", 1 << i, runs[i], 1 << i, runs[i]);
        vocab_file_add(&bpe, runs[i], NORMAL, 0);
        vocab_file_add(&spm, runs[i], NORMAL, (float)-i);
        add_merge(&bpe, merges[i]);
    }
    vocab_file_add(&bpe, "aaaaaaaaaaaaaaaaaaab", USER, 0);
    char *text = malloc(MEBI);
    CHECK(load(&spm, &l) == WINA_OK);
    memset(text, 'a', MEBI);
    check_fast(&l, "spm, one letter", text, MEBI);
    unload(&l);
    static const char *const pres[] = {"gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-coder"};
    static const char *const fills[] = {"a", " ", "\n", "1", "!", "\n ", "' "};
    for (size_t p = 0; p < sizeof pres / sizeof pres[0]; p++) {
        bpe.pre = pres[p];
        CHECK(load(&bpe, &l) == WINA_OK);
        for (size_t f = 0; f < sizeof fills / sizeof fills[0]; f++) {
            for (size_t i = 0; i < MEBI; i++)
                text[i] = fills[f][i % strlen(fills[f])];
            char name[64];
            snprintf(name, sizeof name, "%s, fill %zu", pres[p], f);
            check_fast(&l, name, text, MEBI);
        }
        unload(&l);
    }
    free(text);
}

/* Random text: bytes come back from SPM as they were; BPE gives back any valid UTF-8; every id
 * sequence decodes. */
static void test_random(void) {
    vocab_file v;
    loaded bpe, spm;
    start_bpe(&v);
    add_merge(&v, "a b"), vocab_file_add(&v, "ab", NORMAL, 0);
    add_merge(&v, "ab ab"), vocab_file_add(&v, "abab", NORMAL, 0);
    CHECK(load(&v, &bpe) == WINA_OK);
    start_spm(&v);
    vocab_file_add(&v, "ab", NORMAL, -1);
    vocab_file_add(&v, "\u00E4", NORMAL, -2);
    vocab_file_add(&v, "\u2581\u2581", NORMAL, -2);
    CHECK(load(&v, &spm) == WINA_OK);
    unsigned long long random = 2025;
    int n_bad = 0;
    for (int round = 0; round < 20000; round++) {
        char text[64], back[256];
        int32_t ids[300];
        size_t n = 0, n_ids = 0, n_back = 0;
        while (n < check_random(&random) % 60)
            text[n++] = check_random(&random) % 4 ? (char)check_random(&random)
                                                  : "ab \xC3\xA4"[check_random(&random) % 5];
        n_bad += wina_tokenizer_encode(spm.tokenizer, text, n, 0, ids, 300, &n_ids) != WINA_OK ||
                 wina_tokenizer_decode(spm.tokenizer, ids, n_ids, 0, back, 256, &n_back) ||
                 n_back != n || memcmp(text, back, n) != 0;
        n_bad += wina_tokenizer_encode(bpe.tokenizer, text, n, 3, ids, 300, &n_ids) != WINA_OK ||
                 wina_tokenizer_decode(bpe.tokenizer, ids, n_ids, 0, back, 256, &n_back);
        if (wina_unicode_valid((const uint8_t *)text, n) == n)
            n_bad += n_back != n || memcmp(text, back, n) != 0;
        else
            n_bad += wina_unicode_valid((const uint8_t *)back, n_back) != n_back;
        n_ids = check_random(&random) % 40;
        for (size_t i = 0; i < n_ids; i++)
            ids[i] = (int32_t)(check_random(&random) % 258);
        n_bad += wina_tokenizer_decode(spm.tokenizer, ids, n_ids, 1, back, 256, &n_back) != WINA_OK;
        n_bad += wina_tokenizer_decode(bpe.tokenizer, ids, n_ids, 1, back, 256, &n_back) != WINA_OK;
    }
    CHECK_MSG(n_bad == 0, "%d", n_bad);
    unload(&bpe);
    unload(&spm);
}

int main(void) {
    test_unicode();
    test_bpe_order();
    test_bpe_bytes();
    test_specials();
    test_specials_of_one_text();
    test_spm();
    test_phi3();
    test_capacity();
    test_speed();
    test_random();
    return check_report("tokenizer");
}

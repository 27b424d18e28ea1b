/* pretok: the regular expressions of the pre-tokenizers, by hand. Each match function follows its
 * expression alternative by alternative, in order, and works out by hand where a backtracking
 * matcher would stop: for \s+(?!\S), one character before the end of a run of spaces that is
 * followed by something. Every alternative that fails has looked at one run of characters, and what
 * matches instead takes that run (all but its last character), so the walk is linear. */
#include "pretok.h"

#include <string.h>

#include "status.h"
#include "unicode.h"

typedef struct character {
    uint32_t cp;
    wina_unicode_class class;
    size_t next; /* offset after it; == at for the end of the text */
} character;

/* The end of the text is a character of no class and length 0. */
static character peek(const uint8_t *text, size_t at, size_t end) {
    character c = {WINA_UNICODE_LIMIT, WINA_UNICODE_OTHER, at};
    if (at < end) {
        c.next = at + wina_unicode_decode(text + at, end - at, &c.cp);
        c.class = wina_unicode_get_class(c.cp);
    }
    return c;
}

/* End of the run of at most limit characters of one class (SIZE_MAX: any number). */
static size_t run_of(wina_unicode_class class, const uint8_t *text, size_t at, size_t end,
                     size_t limit) {
    for (; limit > 0; limit--) {
        character c = peek(text, at, end);
        if (c.class != class || c.next == at)
            break;
        at = c.next;
    }
    return at;
}

/* [^\s\p{L}\p{N}]: what is left, and not the end. */
static bool is_symbol(character c) {
    return (c.class == WINA_UNICODE_OTHER || c.class == WINA_UNICODE_PUNCTUATION) &&
           c.cp != WINA_UNICODE_LIMIT;
}

static size_t run_of_symbols(const uint8_t *text, size_t at, size_t end) {
    for (;;) {
        character c = peek(text, at, end);
        if (!is_symbol(c))
            return at;
        at = c.next;
    }
}

static bool is_newline(uint32_t cp) {
    return cp == '\r' || cp == '\n';
}

/* 's|'t|'re|'ve|'m|'ll|'d; fold: in any case, which for s includes the long s, U+017F. */
static size_t contraction(const uint8_t *text, size_t at, size_t end, bool fold) {
    if (text[at] != '\'')
        return at;
    uint8_t letters[2] = {0, 0};
    for (size_t i = 0; i < 2 && at + 1 + i < end; i++) {
        uint8_t c = text[at + 1 + i];
        letters[i] = fold && c >= 'A' && c <= 'Z' ? (uint8_t)(c + 32) : c;
    }
    if (letters[0] != 0 && strchr("stmd", letters[0]) != NULL)
        return at + 2;
    if (memcmp(letters, "re", 2) == 0 || memcmp(letters, "ve", 2) == 0 ||
        memcmp(letters, "ll", 2) == 0)
        return at + 3;
    if (fold && letters[0] == 0xC5 && letters[1] == 0xBF)
        return at + 3;
    return at;
}

/* \s+(?!\S)|\s+ at a space. */
static size_t spaces(const uint8_t *text, size_t at, size_t end) {
    size_t last = at;
    size_t after = at;
    for (;;) {
        character c = peek(text, after, end);
        if (c.class != WINA_UNICODE_SPACE)
            break;
        last = after;
        after = c.next;
    }
    return after == end || last == at ? after : last;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t match_gpt2(const uint8_t *text, size_t at, size_t end) {
    size_t after = contraction(text, at, end, false);
    if (after > at)
        return after;
    size_t start = text[at] == ' ' ? at + 1 : at;
    character c = peek(text, start, end);
    if (c.class == WINA_UNICODE_LETTER || c.class == WINA_UNICODE_NUMBER)
        return run_of(c.class, text, start, end, SIZE_MAX);
    if (is_symbol(c))
        return run_of_symbols(text, start, end);
    return spaces(text, at, end);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,max}|
 *  ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t match_modern(const uint8_t *text, size_t at, size_t end, size_t max_digits) {
    size_t after = contraction(text, at, end, true);
    if (after > at)
        return after;
    character c = peek(text, at, end);
    if (c.class == WINA_UNICODE_NUMBER)
        return run_of(WINA_UNICODE_NUMBER, text, at, end, max_digits);
    size_t letters = c.class == WINA_UNICODE_LETTER || is_newline(c.cp) ? at : c.next;
    after = run_of(WINA_UNICODE_LETTER, text, letters, end, SIZE_MAX);
    if (after > letters)
        return after;
    size_t start = c.cp == ' ' ? at + 1 : at;
    after = run_of_symbols(text, start, end);
    if (after > start) {
        while (after < end && is_newline(text[after]))
            after++;
        return after;
    }
    size_t run_end = run_of(WINA_UNICODE_SPACE, text, at, end, SIZE_MAX);
    for (size_t i = run_end; i > at; i--)
        if (is_newline(text[i - 1]))
            return i;
    return spaces(text, at, end);
}

static size_t match_llama3(const uint8_t *text, size_t at, size_t end) {
    return match_modern(text, at, end, 3);
}

static size_t match_qwen2(const uint8_t *text, size_t at, size_t end) {
    return match_modern(text, at, end, 1);
}

/* \p{N} */
static size_t match_digit(const uint8_t *text, size_t at, size_t end) {
    return run_of(WINA_UNICODE_NUMBER, text, at, end, 1);
}

/* [\r\n] */
static size_t match_newline(const uint8_t *text, size_t at, size_t end) {
    (void)end;
    return is_newline(text[at]) ? at + 1 : at;
}

/* \s?class+ */
static size_t space_and_run(wina_unicode_class class, const uint8_t *text, size_t at, size_t end) {
    character c = peek(text, at, end);
    size_t start = c.class == WINA_UNICODE_SPACE ? c.next : at;
    size_t after = run_of(class, text, start, end, SIZE_MAX);
    return after > start ? after : at;
}

static size_t match_letters(const uint8_t *text, size_t at, size_t end) {
    return space_and_run(WINA_UNICODE_LETTER, text, at, end);
}

static size_t match_punctuation(const uint8_t *text, size_t at, size_t end) {
    return space_and_run(WINA_UNICODE_PUNCTUATION, text, at, end);
}

/* [U+4E00-U+9FA5 U+0800-U+4E00 U+AC00-U+D7FF]+: deepseek's idea of ideographs. */
static size_t match_ideographs(const uint8_t *text, size_t at, size_t end) {
    for (;;) {
        character c = peek(text, at, end);
        if (!(c.cp >= 0x0800 && c.cp <= 0x9FA5) && !(c.cp >= 0xAC00 && c.cp <= 0xD7FF))
            return at;
        at = c.next;
    }
}

static const wina_pretok rows[] = {
    {"gpt-2", false, false, {match_gpt2}},
    {"smollm", false, false, {match_digit, match_gpt2}},
    {"starcoder", false, false, {match_digit, match_gpt2}},
    {"llama-bpe", true, true, {match_llama3}},
    {"llama3", true, true, {match_llama3}},
    {"llama-v3", true, true, {match_llama3}},
    {"qwen2", false, false, {match_qwen2}},
    {"deepseek-coder",
     false,
     false,
     {match_newline, match_letters, match_punctuation, match_ideographs, match_digit}},
};

const wina_pretok *wina_pretok_find(const char *name, size_t n) {
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (strlen(rows[i].name) == n && memcmp(rows[i].name, name, n) == 0)
            return &rows[i];
    return NULL;
}

typedef struct split {
    const wina_pretok *pretok;
    const uint8_t *text;
    wina_pretok_fn fn;
    void *user;
} split;

/* Cuts text[at..end) by the given stage and hands the pieces to the next; at most
 * WINA_PRETOK_MAX_STAGES deep. */
static int32_t run_stage(const split *s, size_t stage, size_t at, size_t end) {
    if (stage == WINA_PRETOK_MAX_STAGES || s->pretok->stages[stage] == NULL)
        return s->fn(s->user, s->text + at, end - at);
    size_t gap = at;
    while (at < end) {
        size_t after = s->pretok->stages[stage](s->text, at, end);
        if (after == at) {
            at = peek(s->text, at, end).next;
            continue;
        }
        if (gap < at)
            WINA_TRY(run_stage(s, stage + 1, gap, at));
        WINA_TRY(run_stage(s, stage + 1, at, after));
        gap = at = after;
    }
    return gap < end ? run_stage(s, stage + 1, gap, end) : WINA_OK;
}

int32_t wina_pretok_split(const wina_pretok *pretok, const uint8_t *text, size_t n,
                          wina_pretok_fn fn, void *user) {
    const split s = {pretok, text, fn, user};
    return run_stage(&s, 0, 0, n);
}

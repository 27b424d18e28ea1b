/* pretokmatch: the regular expressions of the pre-tokenizers, by hand. Each function follows its
 * expression alternative by alternative, in order, and works out where a backtracking matcher would
 * stop: for \s+(?!\S), one character before the end of a run of spaces that is followed by
 * something. Every alternative that fails has looked at one run of characters, and what matches
 * instead takes that run (all but its last character), so a walk over a text is linear. */
#include "pretokmatch.h"

#include <stdbool.h>
#include <string.h>

#include "unicode.h"

/* Sets of character classes are masks of these. */
enum {
    OTHER = 1u << WINA_UNICODE_OTHER,
    UPPER = 1u << WINA_UNICODE_UPPER,
    LOWER = 1u << WINA_UNICODE_LOWER,
    CASELESS = 1u << WINA_UNICODE_LETTER,
    MARK = 1u << WINA_UNICODE_MARK,
    NUMBER = 1u << WINA_UNICODE_NUMBER,
    PUNCTUATION = 1u << WINA_UNICODE_PUNCTUATION,
    SYMBOL = 1u << WINA_UNICODE_SYMBOL,
    SPACE = 1u << WINA_UNICODE_SPACE,
    LETTER = UPPER | LOWER | CASELESS,          /* \p{L} */
    SIGN = OTHER | MARK | PUNCTUATION | SYMBOL, /* [^\s\p{L}\p{N}] */
    NO_LOWER = UPPER | CASELESS | MARK,         /* [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] */
    NO_UPPER = LOWER | CASELESS | MARK          /* [\p{Ll}\p{Lm}\p{Lo}\p{M}] */
};

typedef struct character {
    uint32_t cp;
    uint32_t class; /* a mask of one class; 0 at the end of the text */
    size_t next;    /* offset after it; == at for the end of the text */
} character;

static character peek(const uint8_t *text, size_t at, size_t end) {
    character c = {WINA_UNICODE_LIMIT, 0, at};
    if (at < end) {
        c.next = at + wina_unicode_decode(text + at, end - at, &c.cp);
        c.class = 1u << wina_unicode_get_class(c.cp);
    }
    return c;
}

/* End of the run of at most limit characters of a set (SIZE_MAX: any number). */
static size_t run_of(uint32_t set, const uint8_t *text, size_t at, size_t end, size_t limit) {
    for (; limit > 0; limit--) {
        character c = peek(text, at, end);
        if ((c.class & set) == 0)
            break;
        at = c.next;
    }
    return at;
}

static bool is_newline(uint32_t cp) {
    return cp == '\r' || cp == '\n';
}

static bool is_ascii_letter(uint32_t cp) {
    return (cp | 0x20) >= 'a' && (cp | 0x20) <= 'z';
}

/* ASCII punctuation and symbols. */
static bool is_ascii_sign(uint32_t cp) {
    return cp > ' ' && cp < 0x7F && !is_ascii_letter(cp) && !(cp >= '0' && cp <= '9');
}

/* 's|'t|'re|'ve|'m|'ll|'d; fold: in any case, which for s includes the long s, U+017F. */
static size_t contraction(const uint8_t *text, size_t at, size_t end, bool fold) {
    if (at >= end || text[at] != '\'')
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
        if (c.class != SPACE)
            break;
        last = after;
        after = c.next;
    }
    return after == end || last == at ? after : last;
}

/*  ?[signs]+[newlines]*|\s*[\r\n]+|\s+(?!\S)|\s+, where newlines are \r, \n and what else is
 * given; NULL: no newlines follow, nor are they among the signs. */
static size_t signs_or_spaces(uint32_t signs, const char *newlines, const uint8_t *text, size_t at,
                              size_t end) {
    size_t start = text[at] == ' ' ? at + 1 : at;
    size_t after = run_of(signs, text, start, end, SIZE_MAX);
    if (after > start) {
        while (newlines != NULL && after < end && text[after] != 0 &&
               strchr(newlines, text[after]) != NULL)
            after++;
        return after;
    }
    size_t run_end = run_of(SPACE, text, at, end, SIZE_MAX);
    for (size_t i = run_end; i > at; i--)
        if (is_newline(text[i - 1]))
            return i;
    return spaces(text, at, end);
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
size_t wina_pretokmatch_gpt2(const uint8_t *text, size_t at, size_t end) {
    size_t after = contraction(text, at, end, false);
    if (after > at)
        return after;
    size_t start = text[at] == ' ' ? at + 1 : at;
    character c = peek(text, start, end);
    if (c.class & LETTER)
        return run_of(LETTER, text, start, end, SIZE_MAX);
    if (c.class & NUMBER)
        return run_of(NUMBER, text, start, end, SIZE_MAX);
    if (c.class & SIGN)
        return run_of(SIGN, text, start, end, SIZE_MAX);
    return spaces(text, at, end);
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?letters+|\p{N}{1,max}|
 *  ?[^\s\p{N}letters]+[newlines]*|\s*[\r\n]+|\s+(?!\S)|\s+
 * The variants "\s*[\r\n]" and those with possessive quantifiers match the same. */
static size_t match_modern(uint32_t letters, size_t max_digits, const char *newlines,
                           const uint8_t *text, size_t at, size_t end) {
    size_t after = contraction(text, at, end, true);
    if (after > at)
        return after;
    character c = peek(text, at, end);
    if (c.class == NUMBER)
        return run_of(NUMBER, text, at, end, max_digits);
    size_t start = c.class & LETTER || is_newline(c.cp) ? at : c.next;
    after = run_of(letters, text, start, end, SIZE_MAX);
    if (after > start)
        return after;
    if (c.class & letters) /* a mark with nothing behind it */
        return c.next;
    return signs_or_spaces(SIGN & ~letters, newlines, text, at, end);
}

size_t wina_pretokmatch_llama3(const uint8_t *text, size_t at, size_t end) {
    return match_modern(LETTER, 3, "\r\n", text, at, end);
}

size_t wina_pretokmatch_qwen2(const uint8_t *text, size_t at, size_t end) {
    return match_modern(LETTER, 1, "\r\n", text, at, end);
}

size_t wina_pretokmatch_qwen35(const uint8_t *text, size_t at, size_t end) {
    return match_modern(LETTER | MARK, 1, "\r\n", text, at, end);
}

/* Newlines are not taken by the signs before them. */
size_t wina_pretokmatch_seed(const uint8_t *text, size_t at, size_t end) {
    return match_modern(LETTER, 1, NULL, text, at, end);
}

size_t wina_pretokmatch_minicpm(const uint8_t *text, size_t at, size_t end) {
    return match_modern(LETTER, SIZE_MAX, "\r\n", text, at, end);
}

/* [no lower]*[no upper]+|[no lower]+[no upper]*, in terms of the sets above. Where no lower-case
 * letter follows the first run, the first alternative gives back characters until the last one that
 * is in both sets. */
static size_t cased_word(const uint8_t *text, size_t at, size_t end) {
    size_t both_end = at; /* after the last character that is in both sets */
    size_t after = at;
    for (;;) {
        character c = peek(text, after, end);
        if ((c.class & NO_LOWER) == 0)
            break;
        after = c.next;
        if (c.class & NO_UPPER)
            both_end = after;
    }
    size_t lower_end = run_of(NO_UPPER, text, after, end, SIZE_MAX);
    if (lower_end > after)
        return lower_end;
    return both_end > at ? both_end : after;
}

/* As cased_word, the first alternative alone. */
static size_t cased_word_with_lower(const uint8_t *text, size_t at, size_t end) {
    size_t after = cased_word(text, at, end);
    if (after == at)
        return at;
    /* Only the second alternative ends in a letter of upper case. */
    size_t last = after - 1;
    while (last > at && (text[last] & 0xC0) == 0x80)
        last--;
    return peek(text, last, end).class & NO_UPPER ? after : at;
}

/* [^\r\n\p{L}\p{N}]?[no lower]*[no upper]+(contraction)?|
 * [^\r\n\p{L}\p{N}]?[no lower]+[no upper]*(contraction)?|\p{N}{1,max}|
 *  ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+ */
static size_t match_cased(size_t max_digits, bool contractions, const uint8_t *text, size_t at,
                          size_t end) {
    character c = peek(text, at, end);
    if (c.class == NUMBER)
        return run_of(NUMBER, text, at, end, max_digits);
    bool prefix = (c.class & LETTER) == 0 && !is_newline(c.cp);
    size_t after = at;
    if (prefix) {
        after = cased_word_with_lower(text, c.next, end);
        if (after == c.next) /* a mark may also begin the word */
            after = cased_word_with_lower(text, at, end);
        if (after == at) {
            after = cased_word(text, c.next, end);
            if (after == c.next)
                after = at;
        }
    } else {
        after = cased_word(text, at, end);
    }
    if (after > at)
        return contractions ? contraction(text, after, end, true) : after;
    return signs_or_spaces(SIGN, "\r\n/", text, at, end);
}

size_t wina_pretokmatch_gpt4o(const uint8_t *text, size_t at, size_t end) {
    return match_cased(3, true, text, at, end);
}

size_t wina_pretokmatch_tekken(const uint8_t *text, size_t at, size_t end) {
    return match_cased(1, false, text, at, end);
}

/* [ASCII sign][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|
 * \s*[\r\n]+|\s+(?!\S)|\s+ */
size_t wina_pretokmatch_deepseek3(const uint8_t *text, size_t at, size_t end) {
    character c = peek(text, at, end);
    if (is_ascii_sign(c.cp)) {
        size_t after = c.next;
        while (after < end && is_ascii_letter(text[after]))
            after++;
        if (after > c.next)
            return after;
    }
    bool prefix = (c.class & (LETTER | PUNCTUATION | SYMBOL)) == 0 && !is_newline(c.cp);
    size_t start = prefix ? c.next : at;
    size_t after = run_of(LETTER | MARK, text, start, end, SIZE_MAX);
    if (after > start)
        return after;
    if (c.class == MARK)
        return c.next;
    return signs_or_spaces(PUNCTUATION | SYMBOL, "\r\n", text, at, end);
}

/* U+2026, U+3002, U+FF0C, U+3001, U+0964, U+06D4, U+060C. */
static bool is_bloom_stop(uint32_t cp) {
    static const uint32_t more[] = {0x2026, 0x3002, 0xFF0C, 0x3001, 0x0964, 0x06D4, 0x060C};
    if (cp < 0x80)
        return cp != 0 && strchr("(|.,!?)", (int)cp) != NULL;
    for (size_t i = 0; i < sizeof more / sizeof more[0]; i++)
        if (cp == more[i])
            return true;
    return false;
}

/*  ?[^(\s|.,!?)]+, with the stops of other scripts. */
size_t wina_pretokmatch_bloom(const uint8_t *text, size_t at, size_t end) {
    size_t start = text[at] == ' ' ? at + 1 : at;
    size_t after = start;
    for (;;) {
        character c = peek(text, after, end);
        if (c.class == 0 || c.class == SPACE || is_bloom_stop(c.cp))
            break;
        after = c.next;
    }
    return after > start ? after : at;
}

/* \p{N} */
size_t wina_pretokmatch_digit(const uint8_t *text, size_t at, size_t end) {
    return run_of(NUMBER, text, at, end, 1);
}

/* \p{N}{1,3} */
size_t wina_pretokmatch_digits3(const uint8_t *text, size_t at, size_t end) {
    return run_of(NUMBER, text, at, end, 3);
}

/* [\r\n] */
size_t wina_pretokmatch_newline(const uint8_t *text, size_t at, size_t end) {
    (void)end;
    return is_newline(text[at]) ? at + 1 : at;
}

/* \s?set+ */
static size_t space_and_run(uint32_t set, const uint8_t *text, size_t at, size_t end) {
    character c = peek(text, at, end);
    size_t start = c.class == SPACE ? c.next : at;
    size_t after = run_of(set, text, start, end, SIZE_MAX);
    return after > start ? after : at;
}

/* \s?\p{L}+ */
size_t wina_pretokmatch_letters(const uint8_t *text, size_t at, size_t end) {
    return space_and_run(LETTER, text, at, end);
}

/* \s?\p{P}+ */
size_t wina_pretokmatch_punctuation(const uint8_t *text, size_t at, size_t end) {
    return space_and_run(PUNCTUATION, text, at, end);
}

typedef struct range {
    uint32_t first, last;
} range;

static bool in_ranges(const range *ranges, size_t n, uint32_t cp) {
    size_t low = 0;
    while (n > 0) {
        size_t half = n / 2;
        if (cp > ranges[low + half].last) {
            low += half + 1;
            n -= half + 1;
        } else {
            n = half;
        }
    }
    return cp < WINA_UNICODE_LIMIT && cp >= ranges[low].first && cp <= ranges[low].last;
}

/* Letters with case as DeepSeek LLM's expression lists them; the last row stops every search. */
static const range cased[] = {
    {0x41, 0x5A},
    {0x61, 0x7A},
    {0xB5, 0xB5},
    {0xC0, 0xD6},
    {0xD8, 0xF6},
    {0xF8, 0x1BA},
    {0x1BC, 0x1BF},
    {0x1C4, 0x293},
    {0x295, 0x2AF},
    {0x370, 0x373},
    {0x376, 0x377},
    {0x37B, 0x37D},
    {0x37F, 0x37F},
    {0x386, 0x386},
    {0x388, 0x38A},
    {0x38C, 0x38C},
    {0x38E, 0x3A1},
    {0x3A3, 0x3F5},
    {0x3F7, 0x481},
    {0x48A, 0x52F},
    {0x531, 0x556},
    {0x10A0, 0x10C5},
    {0x13A0, 0x13F5},
    {0x13F8, 0x13FD},
    {0x1C90, 0x1CBA},
    {0x1CBD, 0x1CBF},
    {0x1D00, 0x1D2B},
    {0x1D6B, 0x1D77},
    {0x1D79, 0x1D9A},
    {0x1E00, 0x1F15},
    {0x1F18, 0x1F1D},
    {0x1F20, 0x1F45},
    {0x1F48, 0x1F4D},
    {0x1F50, 0x1F57},
    {0x1F59, 0x1F59},
    {0x1F5B, 0x1F5B},
    {0x1F5D, 0x1F5D},
    {0x1F5F, 0x1F7D},
    {0x1F80, 0x1FB4},
    {0x1FB6, 0x1FBC},
    {0x1FBE, 0x1FBE},
    {0x1FC2, 0x1FC4},
    {0x1FC6, 0x1FCC},
    {0x1FD0, 0x1FD3},
    {0x1FD6, 0x1FDB},
    {0x1FE0, 0x1FEC},
    {0x1FF2, 0x1FF4},
    {0x1FF6, 0x1FFC},
    {0x2102, 0x2102},
    {0x2107, 0x2107},
    {0x210A, 0x2113},
    {0x2115, 0x2115},
    {0x2119, 0x211D},
    {0x2124, 0x2124},
    {0x2126, 0x2126},
    {0x2128, 0x2128},
    {0x212A, 0x212D},
    {0x212F, 0x2134},
    {0x2139, 0x2139},
    {0x213C, 0x213F},
    {0x2145, 0x2149},
    {0x214E, 0x214E},
    {0x2183, 0x2184},
    {0x2C00, 0x2C7B},
    {0x2C7E, 0x2CE4},
    {0x2CEB, 0x2CEE},
    {0x2CF2, 0x2CF3},
    {0xA640, 0xA66D},
    {0xA680, 0xA69B},
    {0xA722, 0xA76F},
    {0xA771, 0xA787},
    {0xA78B, 0xA78E},
    {0xAB70, 0xABBF},
    {0xFB00, 0xFB06},
    {0xFB13, 0xFB17},
    {0xFF21, 0xFF3A},
    {0xFF41, 0xFF5A},
    {0x10400, 0x1044F},
    {0x104B0, 0x104D3},
    {0x104D8, 0x104FB},
    {0x10C80, 0x10CB2},
    {0x10CC0, 0x10CF2},
    {0x118A0, 0x118DF},
    {0x1E900, 0x1E943},
    {WINA_UNICODE_LIMIT, WINA_UNICODE_LIMIT},
};

/* Signs in the same way; letters lie between ':' and '~'. */
static const range listed[] = {
    {0x21, 0x2F},
    {0x3A, 0x7E},
    {0x2018, 0x201F},
    {0x3000, 0x3002},
    {0xFF01, 0xFF0F},
    {0xFF1A, 0xFF5E},
    {WINA_UNICODE_LIMIT, WINA_UNICODE_LIMIT},
};

/* \s?[ranges]+. A space that is itself in the ranges (U+3000) may also be the first of them. */
static size_t space_and_ranges(const range *ranges, size_t n, const uint8_t *text, size_t at,
                               size_t end) {
    character c = peek(text, at, end);
    size_t start = c.class == SPACE ? c.next : at;
    size_t after = start;
    for (;;) {
        character next = peek(text, after, end);
        if (!in_ranges(ranges, n, next.cp))
            break;
        after = next.next;
    }
    if (after == start && start > at && in_ranges(ranges, n, c.cp))
        return start;
    return after > start ? after : at;
}

/* \s?[cased]+ */
size_t wina_pretokmatch_cased(const uint8_t *text, size_t at, size_t end) {
    return space_and_ranges(cased, sizeof cased / sizeof cased[0] - 1, text, at, end);
}

/* \s?[listed]+ */
size_t wina_pretokmatch_listed(const uint8_t *text, size_t at, size_t end) {
    return space_and_ranges(listed, sizeof listed / sizeof listed[0] - 1, text, at, end);
}

/* \s+$: the first call takes all that stands before the spaces at the end, which leaves the same
 * pieces as a gap would and looks at every character once. */
size_t wina_pretokmatch_trailing(const uint8_t *text, size_t at, size_t end) {
    size_t start = at;
    for (size_t i = at; i < end;) {
        character c = peek(text, i, end);
        i = c.next;
        if (c.class != SPACE)
            start = i;
    }
    return start > at ? start : end;
}

/* [U+4E00-U+9FA5 U+0800-U+4E00 U+AC00-U+D7FF]+: DeepSeek's idea of ideographs. */
size_t wina_pretokmatch_ideographs(const uint8_t *text, size_t at, size_t end) {
    for (;;) {
        character c = peek(text, at, end);
        if (!(c.cp >= 0x0800 && c.cp <= 0x9FA5) && !(c.cp >= 0xAC00 && c.cp <= 0xD7FF))
            return at;
        at = c.next;
    }
}

/* [U+4E00-U+9FA5 U+3040-U+309F U+30A0-U+30FF]+ */
size_t wina_pretokmatch_kana(const uint8_t *text, size_t at, size_t end) {
    for (;;) {
        character c = peek(text, at, end);
        if (!(c.cp >= 0x4E00 && c.cp <= 0x9FA5) && !(c.cp >= 0x3040 && c.cp <= 0x30FF))
            return at;
        at = c.next;
    }
}

/* Punctuation that is younger than the tables behind falcon's expression (Unicode 8). */
static const range young[] = {
    {0x61D, 0x61D},     {0x9FD, 0x9FD},
    {0xA76, 0xA76},     {0xC77, 0xC77},
    {0xC84, 0xC84},     {0x1B4E, 0x1B4F},
    {0x1B7D, 0x1B7F},   {0x2E43, 0x2E4F},
    {0x2E52, 0x2E5D},   {0x10D6E, 0x10D6E},
    {0x10EAD, 0x10EAD}, {0x10F55, 0x10F59},
    {0x10F86, 0x10F89}, {0x113D4, 0x113D5},
    {0x113D7, 0x113D8}, {0x1144B, 0x1144F},
    {0x1145A, 0x1145B}, {0x1145D, 0x1145D},
    {0x11660, 0x1166C}, {0x116B9, 0x116B9},
    {0x1183B, 0x1183B}, {0x11944, 0x11946},
    {0x119E2, 0x119E2}, {0x11A3F, 0x11A46},
    {0x11A9A, 0x11A9C}, {0x11A9E, 0x11AA2},
    {0x11B00, 0x11B09}, {0x11BE1, 0x11BE1},
    {0x11C41, 0x11C45}, {0x11C70, 0x11C71},
    {0x11EF7, 0x11EF8}, {0x11F43, 0x11F4F},
    {0x11FFF, 0x11FFF}, {0x12FF1, 0x12FF2},
    {0x16D6D, 0x16D6F}, {0x16E97, 0x16E9A},
    {0x16FE2, 0x16FE2}, {0x1E5FF, 0x1E5FF},
    {0x1E95E, 0x1E95F}, {WINA_UNICODE_LIMIT, WINA_UNICODE_LIMIT},
};

/* Two characters have ceased to be punctuation since. */
static bool was_punctuation(character c) {
    if (c.class != PUNCTUATION)
        return c.cp == 0x166D || c.cp == 0x111C9;
    return !in_ranges(young, sizeof young / sizeof young[0] - 1, c.cp);
}

/* [\p{P}$+<=>^~|`]+ */
size_t wina_pretokmatch_signs(const uint8_t *text, size_t at, size_t end) {
    for (;;) {
        character c = peek(text, at, end);
        if (!was_punctuation(c) && !is_ascii_sign(c.cp))
            return at;
        at = c.next;
    }
}

/* Numbers among the characters that stand for bytes in byte-level BPE: 0 to 9 and the bytes that
 * are superscripts and fractions in Latin 1. */
static bool is_byte_digit(uint8_t byte) {
    return (byte >= '0' && byte <= '9') || byte == 0xB2 || byte == 0xB3 || byte == 0xB9 ||
           (byte >= 0xBC && byte <= 0xBE);
}

/* \p{N}+ after bytes have become characters, which cuts inside characters; what lies between is
 * matched as well, since gaps are walked character by character. */
size_t wina_pretokmatch_byte_digits(const uint8_t *text, size_t at, size_t end) {
    bool digits = is_byte_digit(text[at]);
    while (at < end && is_byte_digit(text[at]) == digits)
        at++;
    return at;
}

/* [0-9][0-9][0-9] */
size_t wina_pretokmatch_triple(const uint8_t *text, size_t at, size_t end) {
    for (size_t i = 0; i < 3; i++)
        if (at + i >= end || text[at + i] < '0' || text[at + i] > '9')
            return at;
    return at + 3;
}

/* unicode: UTF-8 and the character classes that pre-tokenizers ask for. The classes are disjoint:
 * general categories L (in three parts), M, N, P and S, and the property White_Space (which is Zs,
 * Zl, Zp and six control characters). Tables: unicode_data.c, made by tools/make_unicode.py. */
#ifndef WINA_UNICODE_H
#define WINA_UNICODE_H

#include <stddef.h>
#include <stdint.h>

typedef enum wina_unicode_class {
    WINA_UNICODE_OTHER = 0,  /* controls, formats, private use, unassigned */
    WINA_UNICODE_UPPER = 1,  /* Lu, Lt */
    WINA_UNICODE_LOWER = 2,  /* Ll */
    WINA_UNICODE_LETTER = 3, /* Lm, Lo: without case */
    WINA_UNICODE_MARK = 4,
    WINA_UNICODE_NUMBER = 5,
    WINA_UNICODE_PUNCTUATION = 6,
    WINA_UNICODE_SYMBOL = 7,
    WINA_UNICODE_SPACE = 8
} wina_unicode_class;

#define WINA_UNICODE_REPLACEMENT 0xFFFDu
#define WINA_UNICODE_LIMIT       0x110000u /* code points are below */

/* Class of a code point: block of 128 code points, then its row of classes. */
extern const uint8_t wina_unicode_block[WINA_UNICODE_LIMIT / 128];
extern const uint8_t wina_unicode_rows[][128];

static inline wina_unicode_class wina_unicode_get_class(uint32_t cp) {
    if (cp >= WINA_UNICODE_LIMIT)
        return WINA_UNICODE_OTHER;
    return (wina_unicode_class)wina_unicode_rows[wina_unicode_block[cp / 128]][cp % 128];
}

/* Reads one character from text[0..n), n >= 1: its length in bytes, *cp its code point. Where the
 * bytes are not UTF-8 (surrogates and overlong forms are not), *cp is WINA_UNICODE_LIMIT and the
 * result is the length of the wrong piece: the longest start of a valid character, at least 1. */
size_t wina_unicode_decode(const uint8_t *text, size_t n, uint32_t *cp);

/* Writes cp < WINA_UNICODE_LIMIT as 1..4 bytes and returns how many. */
size_t wina_unicode_encode(uint32_t cp, uint8_t out[4]);

/* Offset of the first byte of text[0..n) that does not belong to a valid character; n if none. */
size_t wina_unicode_valid(const uint8_t *text, size_t n);

#endif

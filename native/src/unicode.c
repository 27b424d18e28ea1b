/* unicode: strict UTF-8. One decoder serves every caller; what it calls a wrong piece is the
 * "maximal subpart" of the Unicode standard (section 3.9), so that replacing each piece by U+FFFD
 * gives what browsers and Python give. */
#include "unicode.h"

#include <string.h>

size_t wina_unicode_decode(const uint8_t *text, size_t n, uint32_t *cp) {
    uint8_t first = text[0];
    if (first < 0x80) {
        *cp = first;
        return 1;
    }
    *cp = WINA_UNICODE_LIMIT;
    if (first < 0xC2 || first > 0xF4)
        return 1;
    size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    /* The range of the second byte shuts out overlong forms, surrogates and what is above
     * U+10FFFF; all later bytes are 80..BF. */
    uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    uint32_t value = first & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if (i >= n || text[i] < low || text[i] > high)
            return i;
        value = value << 6 | (text[i] & 0x3Fu);
        low = 0x80, high = 0xBF;
    }
    *cp = value;
    return length;
}

size_t wina_unicode_encode(uint32_t cp, uint8_t out[4]) {
    if (cp < 0x80) {
        out[0] = (uint8_t)cp;
        return 1;
    }
    size_t length = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--, cp >>= 6)
        out[i] = (uint8_t)(0x80 | (cp & 0x3F));
    out[0] = (uint8_t)((0xF00u >> length & 0xFF) | cp);
    return length;
}

size_t wina_unicode_valid(const uint8_t *text, size_t n) {
    size_t i = 0;
    while (i < n) {
        /* Eight ASCII bytes at a time: most text is that. */
        uint64_t word;
        while (n - i >= sizeof word) {
            memcpy(&word, text + i, sizeof word);
            if (word & 0x8080808080808080u)
                break;
            i += sizeof word;
        }
        if (i == n)
            break;
        uint32_t cp;
        size_t length = wina_unicode_decode(text + i, n - i, &cp);
        if (cp == WINA_UNICODE_LIMIT)
            return i;
        i += length;
    }
    return n;
}

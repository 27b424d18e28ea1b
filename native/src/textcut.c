#include "textcut.h"

#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "status.h"

/* Length of the valid character at the start of n bytes: 0 if more bytes could complete it, -1 if
 * it is invalid. */
static int character_length(const unsigned char *s, size_t n) {
    if (s[0] < 0x80)
        return 1;
    int length = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return -1;
    for (int i = 1; i < length; i++) {
        if ((size_t)i >= n)
            return 0;
        /* The second byte rules out overlong forms, surrogates and what lies beyond U+10FFFF. */
        unsigned low = 0x80, high = 0xbf;
        if (i == 1) {
            low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
            high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
        }
        if (s[i] < low || s[i] > high)
            return -1;
    }
    return length;
}

static bool is_valid(const char *text) {
    const unsigned char *s = (const unsigned char *)text;
    size_t n = strlen(text);
    for (size_t i = 0, length; i < n; i += length) {
        int found = character_length(s + i, n - i);
        if (found <= 0)
            return false;
        length = (size_t)found;
    }
    return true;
}

int32_t wina_textcut_init(wina_textcut *cut, const char *const *stops, int32_t n_stops) {
    *cut = (wina_textcut){0};
    if (n_stops < 0 || (n_stops > 0 && !stops))
        return wina_fail(WINA_E_ARGUMENT, "n_stop is %d", n_stops);
    WINA_TRY(wina_mem_create((uint64_t)n_stops, sizeof *cut->stops, "stop strings", &cut->stops));
    for (int32_t i = 0; i < n_stops; i++) {
        if (!stops[i] || !*stops[i]) {
            wina_textcut_clear(cut);
            return wina_fail(WINA_E_ARGUMENT, "stop string %d is empty", i + 1);
        }
        if (!is_valid(stops[i])) {
            wina_textcut_clear(cut);
            return wina_fail(WINA_E_ARGUMENT, "stop string %d is not valid UTF-8", i + 1);
        }
        cut->stops[i] = strdup(stops[i]);
        if (!cut->stops[i]) {
            wina_textcut_clear(cut);
            return wina_fail(WINA_E_MEMORY, "out of memory: stop strings");
        }
        cut->n_stops++;
    }
    return WINA_OK;
}

void wina_textcut_clear(wina_textcut *cut) {
    for (int32_t i = 0; i < cut->n_stops; i++)
        free(cut->stops[i]);
    free(cut->stops);
    free(cut->text);
    free(cut->out);
    *cut = (wina_textcut){0};
}

/* Rewrites the held text from byte `from` on so that it is valid, but for an unfinished character
 * at its end (with last: none). Returns the number of valid bytes. Room for 3 bytes per byte is
 * there. */
static uint64_t repair(wina_textcut *cut, uint64_t from, bool last) {
    uint64_t n_tail = cut->n - from, done = from;
    unsigned char *tail = (unsigned char *)cut->text + cut->capacity - n_tail;
    memmove(tail, cut->text + from, n_tail);
    uint64_t i = 0;
    while (i < n_tail) {
        int length = character_length(tail + i, n_tail - i);
        if (length == 0 && !last)
            break;
        if (length <= 0) {
            memcpy(cut->text + done, "\xef\xbf\xbd", 3);
            done += 3;
            i++;
            continue;
        }
        memmove(cut->text + done, tail + i, (size_t)length);
        done += (uint64_t)length;
        i += (uint64_t)length;
    }
    memmove(cut->text + done, tail + i, n_tail - i);
    cut->n = done + (n_tail - i);
    return done;
}

/* Where the text ends: at the stop string that is complete first in the valid bytes; of several
 * complete at the same byte, at the longest. n if there is none. (The one that begins first would
 * not do: whether it is complete yet depends on how the bytes were cut.) */
static uint64_t find_stop(const wina_textcut *cut, uint64_t n) {
    uint64_t begin = n, end = n + 1;
    for (int32_t s = 0; s < cut->n_stops; s++) {
        size_t length = strlen(cut->stops[s]);
        const char *p = length <= n ? memmem(cut->text, n, cut->stops[s], length) : NULL;
        if (!p)
            continue;
        uint64_t at = (uint64_t)(p - cut->text);
        if (at + length < end || (at + length == end && at < begin))
            begin = at, end = at + length;
    }
    return begin;
}

/* Length of the longest end of the valid bytes that begins a stop string. */
static uint64_t held_by_stops(const wina_textcut *cut, uint64_t n) {
    uint64_t longest = 0;
    for (int32_t s = 0; s < cut->n_stops; s++) {
        uint64_t length = strlen(cut->stops[s]) - 1;
        for (uint64_t k = length < n ? length : n; k > longest; k--)
            if (memcmp(cut->text + n - k, cut->stops[s], k) == 0)
                longest = k;
    }
    return longest;
}

int32_t wina_textcut_add(wina_textcut *cut, const char *bytes, size_t n_bytes, bool last,
                         const char **piece, size_t *n_piece) {
    *piece = "";
    *n_piece = 0;
    if (cut->stopped)
        return WINA_OK;
    /* What is held is valid up to at most three bytes of an unfinished character. */
    uint64_t from = cut->n > 3 ? cut->n - 3 : 0;
    while (from > 0 && ((unsigned char)cut->text[from] & 0xc0) == 0x80)
        from--;
    uint64_t room = from + 4 * (cut->n - from + n_bytes) + 16;
    WINA_TRY(wina_mem_grow(&cut->text, &cut->capacity, room, 1, "text"));
    memcpy(cut->text + cut->n, bytes, n_bytes);
    cut->n += n_bytes;
    uint64_t valid = repair(cut, from, last);
    uint64_t end = find_stop(cut, valid);
    if (end < valid)
        cut->stopped = true;
    else if (!last)
        end -= held_by_stops(cut, valid);
    WINA_TRY(wina_mem_grow(&cut->out, &cut->out_capacity, end + 1, 1, "text"));
    memcpy(cut->out, cut->text, end);
    memmove(cut->text, cut->text + end, cut->n - end);
    cut->n -= end;
    if (cut->stopped)
        cut->n = 0;
    *piece = cut->out;
    *n_piece = end;
    return WINA_OK;
}

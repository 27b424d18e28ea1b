/* textcut: turns the bytes of a generation into pieces that may be shown at once. Bytes go in as
 * tokens yield them; out come whole characters that cannot be part of a stop string any more. What
 * comes out, concatenated, does not depend on how the bytes were cut: it is the input with each
 * invalid byte replaced by U+FFFD, up to the stop string that is complete first. */
#ifndef WINA_TEXTCUT_H
#define WINA_TEXTCUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct wina_textcut {
    char *text; /* held back: valid characters, then bytes of an unfinished one */
    uint64_t n, capacity;
    char *out; /* the piece handed out last */
    uint64_t out_capacity;
    char **stops; /* (n_stops) owned, none empty */
    int32_t n_stops;
    bool stopped;
} wina_textcut;

/* Copies the stop strings; an empty one, or one that is not valid UTF-8, is an error. */
int32_t wina_textcut_init(wina_textcut *cut, const char *const *stops, int32_t n_stops);
void wina_textcut_clear(wina_textcut *cut);

/* Adds bytes; *piece, *n_piece is what may be shown now (valid until the next call). With last, all
 * that is left comes out. After a stop string was met cut->stopped is true and nothing more comes.
 */
int32_t wina_textcut_add(wina_textcut *cut, const char *bytes, size_t n_bytes, bool last,
                         const char **piece, size_t *n_piece);

#endif

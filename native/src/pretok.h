/* pretok: cuts text into the words within which byte-level BPE merges. Each pre-tokenizer of
 * tokenizer.ggml.pre is a row of a table: a short list of stages (pretokmatch.h). A stage cuts
 * every piece of the stage before it into its matches and the gaps between them; together the words
 * are the text again, byte for byte. */
#ifndef WINA_PRETOK_H
#define WINA_PRETOK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pretokmatch.h"

#define WINA_PRETOK_MAX_STAGES 6

typedef struct wina_pretok {
    const char *name; /* value of tokenizer.ggml.pre */
    bool whole_words; /* a word that is a token is taken whole, without merges */
    bool adds_bos;    /* default of tokenizer.ggml.add_bos_token */
    wina_pretok_stage stages[WINA_PRETOK_MAX_STAGES]; /* NULL after the last */
} wina_pretok;

/* NULL if there is no pre-tokenizer of that name (n bytes). */
const wina_pretok *wina_pretok_find(const char *name, size_t n);

/* Gets each word in order; anything but WINA_OK ends the walk. */
typedef int32_t (*wina_pretok_fn)(void *user, const uint8_t *word, size_t n);

/* text[0..n) must be valid UTF-8. Takes time in proportion to n. */
int32_t wina_pretok_split(const wina_pretok *pretok, const uint8_t *text, size_t n,
                          wina_pretok_fn fn, void *user);

#endif

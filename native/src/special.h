/* special: finds the tokens that are recognised as a whole in text: user-defined ones always,
 * control and unknown ones where the caller asks. A trie over bytes, its edges in one hash map. */
#ifndef WINA_SPECIAL_H
#define WINA_SPECIAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vocab.h"

typedef struct wina_special wina_special;

int32_t wina_special_create(const wina_vocab *vocab, wina_special **out);
void wina_special_free(wina_special *special); /* accepts NULL */

/* The first special token in text[from..n), the longest of those that start there: its id, and
 * [*start, *end) is its text. -1 if there is none; *start is then n. control: control and unknown
 * tokens count too. */
int32_t wina_special_find(const wina_special *special, const uint8_t *text, size_t from, size_t n,
                          bool control, size_t *start, size_t *end);

#endif

/* merge: the loop that both tokenizer families share. A word starts as a row of symbols; again and
 * again the best adjacent pair becomes one symbol, the leftmost first where two are equally good,
 * until no pair can be merged. A heap of candidate pairs makes that n log n. */
#ifndef WINA_MERGE_H
#define WINA_MERGE_H

#include <stdbool.h>
#include <stdint.h>

/* A symbol is known by the offset of its first byte, which is also its index: symbols[at] for
 * bytes at .. at + n of the word; the next symbol is at + n. */
typedef struct wina_merge_symbol {
    uint32_t n;        /* bytes; 0: this is not the start of a symbol */
    uint32_t previous; /* start of the symbol before; WINA_MERGE_NONE for the first */
    int32_t token;     /* -1: no token has this text */
} wina_merge_symbol;

#define WINA_MERGE_NONE UINT32_MAX

/* A pair that may be merged: the smallest key goes first. */
typedef struct wina_merge_pair {
    uint64_t key;  /* rank << 32 | start of the left symbol */
    uint32_t n;    /* bytes of both when it was found: tells stale entries */
    int32_t token; /* what they become */
} wina_merge_pair;

/* Scratch that is used again from word to word; start from zero. */
typedef struct wina_merge {
    wina_merge_symbol *symbols;
    uint64_t symbols_capacity;
    wina_merge_pair *heap;
    uint64_t heap_capacity;
    uint64_t n_heap;
} wina_merge;

/* Whether the symbols at left and left + symbols[left].n merge; gives rank (smaller first) and the
 * token they become. */
typedef bool (*wina_merge_fn)(const void *user, const uint8_t *word, const wina_merge_symbol *left,
                              const wina_merge_symbol *right, uint32_t left_at, uint32_t *rank,
                              int32_t *token);

/* Makes room for a word of n bytes; the caller then fills symbols. */
int32_t wina_merge_reserve(wina_merge *merge, uint32_t n);

/* Merges symbols[0..n) of word as far as fn allows. */
int32_t wina_merge_run(wina_merge *merge, const uint8_t *word, uint32_t n, wina_merge_fn fn,
                       const void *user);

void wina_merge_free(wina_merge *merge);

#endif

/* merge: a lazy heap. An entry is not removed when one of its symbols is merged away; it is stale
 * when it comes up, which shows because the two symbols that now start there do not span the same
 * bytes any more: symbols only ever grow to the right or vanish into their left neighbour. */
#include "merge.h"

#include <stdlib.h>

#include "mem.h"
#include "status.h"

/* Four children to a node: a heap of a million pairs is 10 levels deep instead of 20. */
enum { CHILDREN = 4 };

static void sift_down(wina_merge_pair *heap, uint64_t n, uint64_t i) {
    wina_merge_pair moving = heap[i];
    for (;;) {
        uint64_t child = i * CHILDREN + 1;
        if (child >= n)
            break;
        uint64_t last = child + CHILDREN < n ? child + CHILDREN : n;
        uint64_t best = child;
        for (uint64_t c = child + 1; c < last; c++)
            if (heap[c].key < heap[best].key)
                best = c;
        if (heap[best].key >= moving.key)
            break;
        heap[i] = heap[best];
        i = best;
    }
    heap[i] = moving;
}

static void sift_up(wina_merge_pair *heap, uint64_t i) {
    wina_merge_pair moving = heap[i];
    while (i > 0 && heap[(i - 1) / CHILDREN].key > moving.key) {
        heap[i] = heap[(i - 1) / CHILDREN];
        i = (i - 1) / CHILDREN;
    }
    heap[i] = moving;
}

typedef struct context {
    wina_merge *merge;
    const uint8_t *word;
    uint32_t n;
    wina_merge_fn fn;
    const void *user;
} context;

/* Appends the pair that starts at left if it can be merged; keeping the heap's order is the
 * caller's business. */
static bool append_pair(const context *c, uint32_t left) {
    wina_merge *merge = c->merge;
    const wina_merge_symbol *a = &merge->symbols[left];
    if (left + a->n >= c->n)
        return false;
    const wina_merge_symbol *b = a + a->n;
    uint32_t rank;
    int32_t token;
    if (!c->fn(c->user, c->word, a, b, left, &rank, &token))
        return false;
    merge->heap[merge->n_heap++] =
        (wina_merge_pair){(uint64_t)rank << 32 | left, a->n + b->n, token};
    return true;
}

static int32_t push_pair(const context *c, uint32_t left) {
    wina_merge *merge = c->merge;
    WINA_TRY(wina_mem_grow(&merge->heap, &merge->heap_capacity, merge->n_heap + 1,
                           sizeof *merge->heap, "merge candidates"));
    if (append_pair(c, left))
        sift_up(merge->heap, merge->n_heap - 1);
    return WINA_OK;
}

int32_t wina_merge_reserve(wina_merge *merge, uint32_t n) {
    WINA_TRY(wina_mem_grow(&merge->symbols, &merge->symbols_capacity, n, sizeof *merge->symbols,
                           "symbols of a word"));
    return wina_mem_grow(&merge->heap, &merge->heap_capacity, n, sizeof *merge->heap,
                         "merge candidates");
}

int32_t wina_merge_run(wina_merge *merge, const uint8_t *word, uint32_t n, wina_merge_fn fn,
                       const void *user) {
    const context c = {merge, word, n, fn, user};
    wina_merge_symbol *symbols = merge->symbols;
    merge->n_heap = 0;
    for (uint32_t at = 0; at < n; at += symbols[at].n)
        append_pair(&c, at);
    for (uint64_t i = merge->n_heap / CHILDREN + 1; i-- > 0;)
        if (i < merge->n_heap)
            sift_down(merge->heap, merge->n_heap, i);
    while (merge->n_heap > 0) {
        wina_merge_pair pair = merge->heap[0];
        merge->heap[0] = merge->heap[--merge->n_heap];
        if (merge->n_heap > 0)
            sift_down(merge->heap, merge->n_heap, 0);
        uint32_t at = (uint32_t)pair.key;
        wina_merge_symbol *left = &symbols[at];
        if (left->n == 0 || left->n >= pair.n || left->n + left[left->n].n != pair.n)
            continue;
        left[left->n].n = 0;
        left->n = pair.n;
        left->token = pair.token;
        if (at + left->n < n)
            left[left->n].previous = at;
        if (left->previous != WINA_MERGE_NONE)
            WINA_TRY(push_pair(&c, left->previous));
        WINA_TRY(push_pair(&c, at));
    }
    return WINA_OK;
}

void wina_merge_free(wina_merge *merge) {
    free(merge->symbols);
    free(merge->heap);
    *merge = (wina_merge){0};
}

/* special: node 0 is the root; the edge (node, byte) leads to a node. A position is tried only if
 * its byte starts some token, and a try walks at most WINA_VOCAB_MAX_SPECIAL_BYTES edges. */
#include "special.h"

#include <stdlib.h>

#include "mem.h"
#include "pairmap.h"
#include "status.h"

struct wina_special {
    wina_pairmap edges;
    int32_t *tokens; /* (n_nodes) token that ends at a node, -1: none */
    uint64_t tokens_capacity;
    uint32_t n_nodes;
    const wina_vocab *vocab;
    bool starts[2][256]; /* [control]: bytes that start a token */
};

static int32_t add_node(wina_special *special) {
    WINA_TRY(wina_mem_grow(&special->tokens, &special->tokens_capacity, special->n_nodes + 1ull,
                           sizeof *special->tokens, "special tokens"));
    special->tokens[special->n_nodes++] = -1;
    return WINA_OK;
}

static bool is_user_defined(const wina_vocab *vocab, int32_t token) {
    return vocab->types[token] == WINA_VOCAB_USER_DEFINED;
}

static int32_t add_token(wina_special *special, int32_t token) {
    wina_str text = special->vocab->texts[token];
    uint32_t node = 0;
    for (uint64_t i = 0; i < text.n; i++) {
        uint32_t byte = (uint8_t)text.data[i];
        bool added;
        WINA_TRY(wina_pairmap_put(&special->edges, node, byte, special->n_nodes, 0,
                                  "special tokens", &added));
        if (added)
            WINA_TRY(add_node(special));
        node = wina_pairmap_find(&special->edges, node, byte)->value;
    }
    /* Several tokens with one text: a user-defined one stands in both modes, else the last. */
    int32_t other = special->tokens[node];
    if (other >= 0 && is_user_defined(special->vocab, other) &&
        !is_user_defined(special->vocab, token))
        return WINA_OK;
    special->tokens[node] = token;
    return WINA_OK;
}

static int32_t fill(wina_special *special) {
    const wina_vocab *vocab = special->vocab;
    WINA_TRY(wina_pairmap_create(0, vocab->seed, "special tokens", &special->edges));
    WINA_TRY(add_node(special));
    for (int32_t i = 0; i < vocab->n_tokens; i++) {
        uint8_t type = vocab->types[i];
        bool user_defined = is_user_defined(vocab, i);
        if (vocab->texts[i].n == 0 ||
            !(user_defined || type == WINA_VOCAB_CONTROL || type == WINA_VOCAB_UNKNOWN))
            continue;
        WINA_TRY(add_token(special, i));
        uint8_t first = (uint8_t)vocab->texts[i].data[0];
        special->starts[1][first] = true;
        special->starts[0][first] |= user_defined;
    }
    return WINA_OK;
}

int32_t wina_special_create(const wina_vocab *vocab, wina_special **out) {
    *out = NULL;
    wina_special *special;
    WINA_TRY(wina_mem_create(1, sizeof *special, "special tokens", &special));
    special->vocab = vocab;
    int32_t status = fill(special);
    if (status != WINA_OK) {
        wina_special_free(special);
        return status;
    }
    *out = special;
    return WINA_OK;
}

void wina_special_free(wina_special *special) {
    if (special == NULL)
        return;
    wina_pairmap_free(&special->edges);
    free(special->tokens);
    free(special);
}

/* The longest token that starts at text[at], -1 if none; *end is where it ends. */
static int32_t longest_at(const wina_special *special, const uint8_t *text, size_t at, size_t n,
                          bool control, size_t *end) {
    int32_t found = -1;
    uint32_t node = 0;
    while (at < n) {
        const wina_pairmap_slot *edge = wina_pairmap_find(&special->edges, node, text[at]);
        if (edge == NULL)
            break;
        at++;
        node = edge->value;
        int32_t token = special->tokens[node];
        if (token >= 0 && (control || is_user_defined(special->vocab, token))) {
            found = token;
            *end = at;
        }
    }
    return found;
}

int32_t wina_special_find(const wina_special *special, const uint8_t *text, size_t from, size_t n,
                          bool control, size_t *start, size_t *end) {
    const bool *starts = special->starts[control];
    for (size_t at = from; at < n; at++) {
        if (!starts[text[at]])
            continue;
        int32_t token = longest_at(special, text, at, n, control, end);
        if (token >= 0) {
            *start = at;
            return token;
        }
    }
    *start = n;
    return -1;
}

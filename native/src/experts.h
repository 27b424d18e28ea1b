/* experts: the feed-forward block of a layer as a mixture. A router gives every token a few of the
 * layer's experts; an expert is a block of its own with the groups gate_up and down, its own column
 * norms and its own kept inputs. A shared expert, which all tokens go through, comes last. */
#ifndef WINA_EXPERTS_H
#define WINA_EXPERTS_H

#include "config.h"
#include "group.h"

typedef struct wina_expert {
    wina_group_weights gate_up; /* (2 * width, n_embd) */
    wina_group_weights down;    /* (n_embd, width) */
} wina_expert;

typedef struct wina_experts_layer {
    int32_t n; /* experts to choose from, then the shared one; 0: the layer has none */
    int32_t n_chosen_from;
    wina_group_weights router; /* logits (n_expert), then that of the shared expert's gate; dense */
    wina_expert *experts;      /* (n) */
} wina_experts_layer;

/* Experts of a layer, the shared one included. */
static inline int32_t wina_experts_count(const wina_config *c) {
    return c->n_expert + (c->n_ff_shared > 0);
}

/* The same three steps as for a group; see group.h. */
int32_t wina_experts_plan(const wina_gguf *gguf, const wina_config *config, int32_t layer,
                          wina_experts_layer *out);
uint64_t wina_experts_place(wina_experts_layer *experts, uint8_t *arena, uint64_t at);
int32_t wina_experts_load(const wina_packer *how, const wina_config *config, int32_t layer,
                          wina_experts_layer *experts);
void wina_experts_free(wina_experts_layer *experts);

/* Row `row` of a tensor of this layer, as wina_weights_find_rows has it. */
bool wina_experts_find_row(const wina_experts_layer *experts, int32_t layer, const char *name,
                           int64_t row, wina_panel_rows *out);

/* Bytes of the panels of all experts; the router's are not among them. */
uint64_t wina_experts_bytes(const wina_experts_layer *experts);

#endif

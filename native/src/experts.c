#include "experts.h"

#include <stdio.h>
#include <stdlib.h>

#include "mem.h"
#include "status.h"

/* Adds expert `index` of a stack of matrices, blk.<layer>.<role>_exps.weight, or, in files from
 * before there were stacks, the tensor blk.<layer>.<role>.<index>.weight. */
static void add_chosen(const wina_gguf *gguf, const wina_config *c, wina_group_source *s,
                       int32_t layer, const char *role, int32_t index, int32_t n_rows) {
    char name[32], alone[64];
    snprintf(name, sizeof name, "%s.%d", role, index);
    snprintf(alone, sizeof alone, "blk.%d.%s.weight", layer, name);
    if (wina_gguf_find_tensor(gguf, alone)) {
        wina_group_add_source(s, layer, name, n_rows);
        return;
    }
    snprintf(name, sizeof name, "%s_exps", role);
    wina_matrix_source *m = wina_group_add_source(s, layer, name, n_rows);
    m->n_stacked = c->n_expert;
    m->index = index;
}

static void add_matrix(const wina_gguf *gguf, const wina_config *c, wina_group_source *s,
                       int32_t layer, const char *role, int32_t index, int32_t n_rows) {
    char name[32];
    if (index < c->n_expert) {
        add_chosen(gguf, c, s, layer, role, index, n_rows);
        return;
    }
    snprintf(name, sizeof name, "%s_shexp", role);
    wina_group_add_source(s, layer, name, n_rows);
}

static int32_t width_of(const wina_config *c, int32_t index) {
    return index < c->n_expert ? c->n_ff_expert : c->n_ff_shared;
}

static wina_group_source gate_up_source(const wina_gguf *gguf, const wina_config *c, int32_t layer,
                                        int32_t index) {
    wina_group_source s = {.n_in = c->n_embd};
    add_matrix(gguf, c, &s, layer, "ffn_gate", index, width_of(c, index));
    add_matrix(gguf, c, &s, layer, "ffn_up", index, width_of(c, index));
    return s;
}

static wina_group_source down_source(const wina_gguf *gguf, const wina_config *c, int32_t layer,
                                     int32_t index) {
    wina_group_source s = {.n_in = width_of(c, index)};
    add_matrix(gguf, c, &s, layer, "ffn_down", index, c->n_embd);
    return s;
}

static wina_group_source router_source(const wina_config *c, int32_t layer) {
    wina_group_source s = {.n_in = c->n_embd};
    wina_group_add_source(&s, layer, "ffn_gate_inp", c->n_expert);
    if (c->arch->shared == WINA_SHARED_GATED)
        wina_group_add_source(&s, layer, "ffn_gate_inp_shexp", 1);
    return s;
}

int32_t wina_experts_plan(const wina_gguf *gguf, const wina_config *c, int32_t layer,
                          wina_experts_layer *out) {
    const wina_group_source router = router_source(c, layer);
    WINA_TRY(wina_group_plan(gguf, &router, &out->router));
    /* One is looked at before there is memory for all that the metadata speaks of. */
    wina_group_source s = gate_up_source(gguf, c, layer, c->n_expert - 1);
    WINA_TRY(wina_group_plan(gguf, &s, &(wina_group_weights){0}));
    const int32_t n = wina_experts_count(c);
    WINA_TRY(wina_mem_create((uint64_t)n, sizeof *out->experts, "experts", &out->experts));
    out->n = n;
    for (int32_t i = 0; i < n; i++) {
        s = gate_up_source(gguf, c, layer, i);
        WINA_TRY(wina_group_plan(gguf, &s, &out->experts[i].gate_up));
        s = down_source(gguf, c, layer, i);
        WINA_TRY(wina_group_plan(gguf, &s, &out->experts[i].down));
    }
    return WINA_OK;
}

uint64_t wina_experts_place(wina_experts_layer *e, uint8_t *arena, uint64_t at) {
    at = wina_group_place(&e->router, arena, at);
    for (int32_t i = 0; i < e->n; i++) {
        at = wina_group_place(&e->experts[i].gate_up, arena, at);
        at = wina_group_place(&e->experts[i].down, arena, at);
    }
    return at;
}

int32_t wina_experts_load(const wina_gguf *gguf, const wina_config *c, wina_threads *threads,
                          int32_t layer, wina_experts_layer *e) {
    wina_group_source s = router_source(c, layer);
    WINA_TRY(wina_group_load(gguf, threads, &s, false, &e->router));
    for (int32_t i = 0; i < e->n; i++) {
        s = gate_up_source(gguf, c, layer, i);
        WINA_TRY(wina_group_load(gguf, threads, &s, true, &e->experts[i].gate_up));
        s = down_source(gguf, c, layer, i);
        WINA_TRY(wina_group_load(gguf, threads, &s, true, &e->experts[i].down));
    }
    return WINA_OK;
}

uint64_t wina_experts_bytes(const wina_experts_layer *e) {
    uint64_t n = 0;
    for (int32_t i = 0; i < e->n; i++)
        n += wina_group_bytes(&e->experts[i].gate_up) + wina_group_bytes(&e->experts[i].down);
    return n;
}

void wina_experts_free(wina_experts_layer *e) {
    wina_group_free(&e->router);
    for (int32_t i = 0; i < e->n; i++) {
        wina_group_free(&e->experts[i].gate_up);
        wina_group_free(&e->experts[i].down);
    }
    free(e->experts);
}

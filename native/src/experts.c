#include "experts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    out->n_chosen_from = c->n_expert;
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

int32_t wina_experts_load(const wina_packer *how, const wina_config *c, int32_t layer,
                          wina_experts_layer *e) {
    wina_group_source s = router_source(c, layer);
    WINA_TRY(wina_group_load(how, &s, false, &e->router));
    for (int32_t i = 0; i < e->n; i++) {
        s = gate_up_source(how->gguf, c, layer, i);
        WINA_TRY(wina_group_load(how, &s, true, &e->experts[i].gate_up));
        s = down_source(how->gguf, c, layer, i);
        WINA_TRY(wina_group_load(how, &s, true, &e->experts[i].down));
    }
    return WINA_OK;
}

/* Whether the name is blk.<layer>.<role><rest>.weight; *rest is what stands there. */
static bool match(const char *name, int32_t layer, const char *role, char rest[16]) {
    char head[64];
    const int n = snprintf(head, sizeof head, "blk.%d.%s", layer, role);
    const size_t all = strlen(name), tail = strlen(".weight");
    if (all < (size_t)n + tail || strncmp(name, head, (size_t)n) != 0 ||
        strcmp(name + all - tail, ".weight") != 0 || all - (size_t)n - tail >= 16)
        return false;
    snprintf(rest, 16, "%.*s", (int)(all - (size_t)n - tail), name + n);
    return true;
}

/* Row `row` of the matrix that `rest` of a name says: "_exps", "_shexp" or the expert's number. */
static bool find_matrix(const wina_experts_layer *e, int32_t projection, bool down,
                        const char *rest, int64_t row, wina_panel_rows *out) {
    const wina_expert *first = &e->experts[0];
    const int64_t n_rows = (down ? &first->down : &first->gate_up)->projections[projection].n_rows;
    int64_t index;
    if (strcmp(rest, "_exps") == 0) {
        index = row / n_rows;
        row %= n_rows;
    } else if (strcmp(rest, "_shexp") == 0 && e->n > e->n_chosen_from) {
        index = e->n_chosen_from;
    } else {
        char own[16];
        index = rest[0] == '.' ? strtol(rest + 1, NULL, 10) : -1;
        snprintf(own, sizeof own, ".%d", (int32_t)index);
        if (strcmp(rest, own) != 0)
            return false;
    }
    if (index < 0 || index >= e->n || (index >= e->n_chosen_from && rest[1] != 's'))
        return false;
    const wina_expert *x = &e->experts[index];
    return wina_group_find_row(down ? &x->down : &x->gate_up, projection, 1, row, out);
}

bool wina_experts_find_row(const wina_experts_layer *e, int32_t layer, const char *name,
                           int64_t row, wina_panel_rows *out) {
    char rest[16];
    if (e->n == 0)
        return false;
    if (match(name, layer, "ffn_gate_inp", rest)) {
        const int32_t i = rest[0] ? 1 : 0; /* ffn_gate_inp_shexp */
        return (i == 0 || strcmp(rest, "_shexp") == 0) && i < e->router.n_projections &&
               wina_group_find_row(&e->router, i, 1, row, out);
    }
    if (match(name, layer, "ffn_gate", rest))
        return find_matrix(e, 0, false, rest, row, out);
    if (match(name, layer, "ffn_up", rest))
        return find_matrix(e, 1, false, rest, row, out);
    return match(name, layer, "ffn_down", rest) && find_matrix(e, 0, true, rest, row, out);
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

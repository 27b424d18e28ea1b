#include "weights.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "mem.h"
#include "packed.h"
#include "status.h"

/* Names of the matrices of each group, in the order of their rows. */
static const char *const GROUP_TENSORS[WINA_N_GROUPS][WINA_MAX_PROJECTIONS] = {
    {"attn_q", "attn_k", "attn_v"},
    {"attn_output"},
    {"ffn_gate", "ffn_up"},
    {"ffn_down"},
};
/* Names of the tensors that hold all of them in one, where they are fused. */
static const char *const FUSED_TENSORS[WINA_N_GROUPS] = {
    [WINA_GROUP_QKV] = "attn_qkv", [WINA_GROUP_GATE_UP] = "ffn_up"};

static const char *const SITE_TENSORS[WINA_N_SITES] = {"attn_rot", "ffn_rot"};

static void layer_name(char *out, size_t cap, int32_t layer, const char *role, const char *kind) {
    snprintf(out, cap, "blk.%d.%s.%s", layer, role, kind);
}

/* Where the matrices of a group are. */
static wina_group_source source_of(const wina_config *c, int32_t layer, int group) {
    const int32_t q = c->n_head * c->head_dim, kv = c->n_head_kv * c->head_dim;
    const int32_t n_in[] = {c->n_embd, q, c->n_embd, c->n_ff};
    const int32_t n_out[][WINA_MAX_PROJECTIONS] = {
        {q, kv, kv}, {c->n_embd}, {c->n_ff, c->n_ff}, {c->n_embd}};
    const bool fused = c->arch->fused && GROUP_TENSORS[group][1];
    wina_group_source s = {.n_in = n_in[group]};
    int32_t n_all = 0;
    for (int i = 0; i < WINA_MAX_PROJECTIONS && GROUP_TENSORS[group][i]; i++) {
        const char *role = fused ? FUSED_TENSORS[group] : GROUP_TENSORS[group][i];
        wina_matrix_source *m = wina_group_add_source(&s, layer, role, n_out[group][i]);
        m->row0 = fused ? n_all : 0;
        n_all += n_out[group][i];
    }
    for (int i = 0; i < s.n_matrices && fused; i++)
        s.matrices[i].n_all = n_all;
    return s;
}

static wina_group_source rotation_source(const wina_config *c, int32_t layer, int site) {
    wina_group_source s = {.n_in = c->n_embd};
    wina_group_add_source(&s, layer, SITE_TENSORS[site], c->n_embd);
    return s;
}

/* A group without weights, of the shape that rules of a layer with experts go by. */
static wina_group_weights shape_of(const wina_group_weights *expert) {
    return (wina_group_weights){.n_in = expert->n_in, .n_projections = expert->n_projections};
}

static int32_t plan_layer(const wina_gguf *gguf, const wina_config *c, int32_t i, wina_weights *w) {
    wina_layer *layer = &w->layers[i];
    for (int group = 0; group < WINA_N_GROUPS; group++) {
        if (c->n_expert && group >= WINA_GROUP_GATE_UP)
            continue;
        const wina_group_source s = source_of(c, i, group);
        WINA_TRY(wina_group_plan(gguf, &s, &layer->groups[group]));
        w->sparse_bytes += wina_group_bytes(&layer->groups[group]);
    }
    if (c->n_expert) {
        WINA_TRY(wina_experts_plan(gguf, c, i, &layer->mixture));
        layer->groups[WINA_GROUP_GATE_UP] = shape_of(&layer->mixture.experts[0].gate_up);
        layer->groups[WINA_GROUP_DOWN] = shape_of(&layer->mixture.experts[0].down);
        w->sparse_bytes += wina_experts_bytes(&layer->mixture);
        w->total_bytes += wina_group_bytes(&layer->mixture.router);
    }
    for (int site = 0; site < WINA_N_SITES; site++) {
        const wina_group_source s = rotation_source(c, i, site);
        if (!wina_gguf_find_tensor(gguf, s.matrices[0].name))
            continue;
        WINA_TRY(wina_group_plan(gguf, &s, &layer->rotations[site]));
        w->total_bytes += wina_group_bytes(&layer->rotations[site]);
    }
    return WINA_OK;
}

/* One block for all panels: small ones would each lie in small pages, and walking columns in those
 * costs a page walk at every other step. */
static uint64_t place_panels(wina_weights *w) {
    w->output.data = w->arena;
    uint64_t at = (w->output.n_bytes + 63) / 64 * 64;
    for (int32_t i = 0; i < w->n_layer; i++) {
        wina_layer *layer = &w->layers[i];
        layer->offset = at;
        for (int group = 0; group < WINA_N_GROUPS; group++)
            at = wina_group_place(&layer->groups[group], w->arena, at);
        at = wina_experts_place(&layer->mixture, w->arena, at);
        for (int site = 0; site < WINA_N_SITES; site++)
            at = wina_group_place(&layer->rotations[site], w->arena, at);
    }
    return at;
}

int32_t wina_weights_plan(const wina_gguf *gguf, const wina_config *c, wina_weights *out) {
    wina_weights w = {.n_layer = c->n_layer, .fused = c->arch->fused};
    const wina_gguf_tensor *t;
    WINA_TRY(wina_group_get_tensor(gguf, "token_embd.weight", c->n_vocab, c->n_embd, 1, &t));
    if (!c->tied_output) {
        if (!t->data)
            return wina_fail(WINA_E_FORMAT, "tensor token_embd.weight must not be packed here");
        w.token_embd = t;
        WINA_TRY(wina_group_get_tensor(gguf, "output.weight", c->n_vocab, c->n_embd, 1, &t));
    }
    WINA_TRY(wina_panel_plan(t->dtype->id, c->n_vocab, c->n_embd, &w.output));
    WINA_TRY(wina_mem_create((uint64_t)c->n_layer, sizeof *w.layers, "layers", &w.layers));
    w.total_bytes = w.output.n_bytes;
    for (int32_t i = 0; i < c->n_layer; i++) {
        int32_t status = plan_layer(gguf, c, i, &w);
        if (status != WINA_OK) {
            wina_weights_free(&w);
            return status;
        }
    }
    w.total_bytes += w.sparse_bytes;
    w.end_here = w.n_layer;
    w.arena_bytes = place_panels(&w);
    *out = w;
    return WINA_OK;
}

/* A vector of floats (any type that decodes), (n); padded to n_alloc with zeros. */
static int32_t load_vector(const wina_gguf *gguf, const char *name, int32_t n, float *out) {
    const wina_gguf_tensor *t = NULL;
    WINA_TRY(wina_group_get_tensor(gguf, name, 0, n, 1, &t));
    if (!t->data)
        return wina_fail(WINA_E_FORMAT, "tensor %s must not be packed", name);
    t->dtype->decode(t->data, out, (uint64_t)n / t->dtype->block);
    return WINA_OK;
}

static int32_t create_vector(const wina_gguf *gguf, const char *name, int32_t n, float **out) {
    WINA_TRY(wina_mem_create((uint64_t)n, sizeof(float), name, out));
    return load_vector(gguf, name, n, *out);
}

static int32_t load_bias(const wina_gguf *gguf, int32_t layer, int group, wina_group_weights *g) {
    WINA_TRY(wina_mem_create((uint64_t)g->n_out, sizeof(float), "bias", &g->bias));
    for (int32_t i = 0; i < g->n_projections; i++) {
        char name[64];
        const wina_projection *p = &g->projections[i];
        /* NOLINTNEXTLINE(clang-analyzer-core*): there are no more than the table has */
        layer_name(name, sizeof name, layer, GROUP_TENSORS[group][i], "bias");
        WINA_TRY(load_vector(gguf, name, p->n_rows, g->bias + p->row0));
    }
    return WINA_OK;
}

static int32_t create_gain(const wina_gguf *gguf, int32_t layer, const char *role, int32_t n,
                           float **out) {
    char name[64];
    layer_name(name, sizeof name, layer, role, "weight");
    return create_vector(gguf, name, n, out);
}

static int32_t load_gains(const wina_gguf *gguf, const wina_config *c, int32_t i,
                          wina_layer *layer) {
    const wina_arch *a = c->arch;
    if (!a->no_pre_norm) {
        WINA_TRY(create_gain(gguf, i, "attn_norm", c->n_embd, &layer->attn_norm));
        WINA_TRY(create_gain(gguf, i, "ffn_norm", c->n_embd, &layer->ffn_norm));
    }
    if (a->post_norm) {
        float **exit = layer->exit_norms;
        WINA_TRY(create_gain(gguf, i, "post_attention_norm", c->n_embd, &exit[WINA_SITE_ATTN]));
        WINA_TRY(create_gain(gguf, i, "post_ffw_norm", c->n_embd, &exit[WINA_SITE_FFN]));
    }
    if (a->qk_norm) {
        const bool all = a->qk_norm == WINA_QK_NORM_ALL;
        const int32_t q = all ? c->n_head : 1, k = all ? c->n_head_kv : 1;
        WINA_TRY(create_gain(gguf, i, "attn_q_norm", q * c->head_dim, &layer->q_norm));
        WINA_TRY(create_gain(gguf, i, "attn_k_norm", k * c->head_dim, &layer->k_norm));
    }
    return WINA_OK;
}

static int32_t load_layer(const wina_packer *how, const wina_config *c, int32_t i,
                          wina_layer *layer) {
    const wina_gguf *gguf = how->gguf;
    bool packed = wina_packed_find(gguf);
    WINA_TRY(load_gains(gguf, c, i, layer));
    for (int group = 0; group < WINA_N_GROUPS && !packed; group++) {
        const wina_group_source s = source_of(c, i, group);
        if (layer->groups[group].n_panels)
            WINA_TRY(wina_group_load(how, &s, true, &layer->groups[group]));
    }
    if (layer->mixture.n && !packed)
        WINA_TRY(wina_experts_load(how, c, i, &layer->mixture));
    for (int site = 0; site < WINA_N_SITES && !packed; site++) {
        const wina_group_source s = rotation_source(c, i, site);
        if (layer->rotations[site].n_panels)
            WINA_TRY(wina_group_load(how, &s, false, &layer->rotations[site]));
    }
    if (c->arch->qkv_bias)
        WINA_TRY(load_bias(gguf, i, WINA_GROUP_QKV, &layer->groups[WINA_GROUP_QKV]));
    return WINA_OK;
}

/* Memory for all panels, or those of a packed file. */
static int32_t create_arena(const wina_gguf *gguf, const wina_weights_how *how, wina_weights *w) {
    if (!wina_packed_find(gguf)) {
        WINA_TRY(wina_mem_create_big(w->arena_bytes, "weights", &w->arena));
    } else {
        WINA_TRY(wina_packed_get_panels(gguf, w->arena_bytes, how->copy, &w->arena));
        w->mapped = !how->copy;
    }
    place_panels(w);
    if (how->lock && mlock(w->arena, (size_t)w->arena_bytes) != 0)
        return wina_fail(WINA_E_MEMORY, "cannot lock %llu bytes of weights in memory: %s",
                         (unsigned long long)w->arena_bytes,
                         errno == EPERM || errno == ENOMEM
                             ? "more than RLIMIT_MEMLOCK (ulimit -l) allows, or than there is"
                             : "the system refuses");
    w->locked = how->lock;
    return WINA_OK;
}

int32_t wina_weights_load(const wina_gguf *gguf, const wina_config *c, const wina_weights_how *how,
                          wina_weights *w) {
    const wina_packer packer = {.gguf = gguf, .threads = how->threads, .fill = how->fill};
    WINA_TRY(create_vector(gguf, "output_norm.weight", c->n_embd, &w->output_norm));
    if (wina_gguf_find_tensor(gguf, "rope_freqs.weight"))
        WINA_TRY(create_vector(gguf, "rope_freqs.weight", c->rope_dim / 2, &w->rope_factors));
    if (c->n_ctx_short) {
        WINA_TRY(create_vector(gguf, "rope_factors_long.weight", c->rope_dim / 2,
                               &w->rope_factors_long));
        if (!w->rope_factors)
            WINA_TRY(create_vector(gguf, "rope_factors_short.weight", c->rope_dim / 2,
                                   &w->rope_factors));
    }
    const char *head = c->tied_output ? "token_embd.weight" : "output.weight";
    WINA_TRY(create_arena(gguf, how, w));
    if (wina_packed_find(gguf))
        WINA_TRY(wina_packed_read_norms(gguf, w));
    else
        WINA_TRY(wina_group_pack_matrix(&packer, wina_gguf_find_tensor(gguf, head), &w->output));
    uint64_t done = w->output.n_bytes;
    for (int32_t i = 0; i < c->n_layer; i++) {
        if (how->stop && how->stop((float)done / (float)w->total_bytes, how->user))
            return wina_fail(WINA_E_CANCELLED, "loading was cancelled");
        WINA_TRY(load_layer(&packer, c, i, &w->layers[i]));
        for (int g = 0; g < WINA_N_GROUPS; g++)
            done += wina_group_bytes(&w->layers[i].groups[g]);
        done += wina_experts_bytes(&w->layers[i].mixture);
    }
    if (how->stop && how->stop(1.0f, how->user))
        return wina_fail(WINA_E_CANCELLED, "loading was cancelled");
    return WINA_OK;
}

static bool find_in_layer(const wina_weights *w, int32_t i, const char *name, int64_t row,
                          wina_panel_rows *out) {
    const wina_layer *layer = &w->layers[i];
    char own[64];
    for (int group = 0; group < WINA_N_GROUPS; group++) {
        const wina_group_weights *g = &layer->groups[group];
        const char *fused = w->fused ? FUSED_TENSORS[group] : NULL;
        if (g->n_panels == 0) /* only the shape of an expert */
            continue;
        for (int32_t p = 0; p < WINA_MAX_PROJECTIONS && p < g->n_projections; p++) {
            layer_name(own, sizeof own, i, fused ? fused : GROUP_TENSORS[group][p], "weight");
            if (strcmp(name, own) == 0)
                return wina_group_find_row(g, p, fused ? g->n_projections : 1, row, out);
        }
    }
    for (int site = 0; site < WINA_N_SITES; site++) {
        layer_name(own, sizeof own, i, SITE_TENSORS[site], "weight");
        if (layer->rotations[site].n_panels && strcmp(name, own) == 0)
            return wina_group_find_row(&layer->rotations[site], 0, 1, row, out);
    }
    return wina_experts_find_row(&layer->mixture, i, name, row, out);
}

bool wina_weights_find_rows(const wina_weights *w, const char *name, int64_t row,
                            wina_panel_rows *out) {
    if (strcmp(name, w->token_embd ? "output.weight" : "token_embd.weight") == 0) {
        *out = (wina_panel_rows){&w->output, row, w->output.n_rows - row};
        return true;
    }
    for (int32_t i = 0; i < w->n_layer; i++) {
        char own[64];
        int n = snprintf(own, sizeof own, "blk.%d.", i);
        if (strncmp(name, own, (size_t)n) == 0)
            return find_in_layer(w, i, name, row, out);
    }
    return false;
}

static int32_t each_norms(wina_group_weights *g, int32_t (*visit)(float **, int32_t, void *),
                          void *user) {
    if (g->n_panels == 0) /* only the shape of an expert */
        return WINA_OK;
    WINA_TRY(visit(&g->norms, g->n_in, user));
    for (int32_t p = 0; p < g->n_projections; p++)
        WINA_TRY(visit(&g->projections[p].norms, g->n_in, user));
    return WINA_OK;
}

int32_t wina_weights_each_norms(wina_weights *w,
                                int32_t (*visit)(float **norms, int32_t n, void *user),
                                void *user) {
    for (int32_t i = 0; i < w->n_layer; i++) {
        wina_layer *layer = &w->layers[i];
        for (int group = 0; group < WINA_N_GROUPS; group++)
            WINA_TRY(each_norms(&layer->groups[group], visit, user));
        for (int32_t e = 0; e < layer->mixture.n; e++) {
            WINA_TRY(each_norms(&layer->mixture.experts[e].gate_up, visit, user));
            WINA_TRY(each_norms(&layer->mixture.experts[e].down, visit, user));
        }
    }
    return WINA_OK;
}

void wina_weights_free(wina_weights *w) {
    for (int32_t i = 0; i < w->n_layer && w->layers; i++) {
        wina_layer *layer = &w->layers[i];
        for (int group = 0; group < WINA_N_GROUPS; group++)
            wina_group_free(&layer->groups[group]);
        wina_experts_free(&layer->mixture);
        free(layer->attn_norm);
        free(layer->ffn_norm);
        free(layer->q_norm);
        free(layer->k_norm);
        for (int site = 0; site < WINA_N_SITES; site++)
            free(layer->exit_norms[site]);
    }
    if (w->locked)
        munlock(w->arena, (size_t)w->arena_bytes);
    if (!w->mapped)
        wina_mem_free_big(w->arena, w->arena_bytes);
    free(w->output_norm);
    free(w->rope_factors);
    free(w->rope_factors_long);
    free(w->layers);
    *w = (wina_weights){0};
}

static void drop(wina_weights *w, uint64_t begin, uint64_t end) {
    if (w->locked)
        munlock(w->arena + begin, (size_t)(end - begin));
    wina_mem_drop_part(w->arena + begin, end - begin);
}

/* Whether the output matrix is not needed beside layers before `first`. */
static bool drops_output(const wina_weights *w, int32_t first) {
    return first == 0 || w->token_embd;
}

void wina_weights_drop(wina_weights *w, const wina_gguf *gguf, int32_t first) {
    if (!w->arena || first >= w->n_layer)
        return;
    drop(w, w->layers[first].offset, w->arena_bytes);
    if (drops_output(w, first))
        drop(w, 0, w->layers[0].offset);
    if (first == 0 && w->token_embd)
        wina_gguf_release(gguf, w->token_embd);
    w->end_here = first;
    if (w->mapped)
        return;
    for (int32_t i = first; i < w->n_layer; i++)
        for (int group = 0; group < WINA_N_GROUPS; group++)
            for (int32_t p = 0; p < w->layers[i].groups[group].n_panels; p++)
                w->layers[i].groups[group].panels[p].data = NULL;
    if (drops_output(w, first))
        w->output.data = NULL;
}

uint64_t wina_weights_kept_bytes(const wina_weights *w, int32_t first) {
    const uint64_t end = first < w->n_layer ? w->layers[first].offset : w->arena_bytes;
    return drops_output(w, first) ? end - w->layers[0].offset : end;
}

static const wina_group_weights *expert_group(const wina_expert *e, int group) {
    return group == WINA_GROUP_DOWN ? &e->down : &e->gate_up;
}

/* The most inputs, or outputs, of a group in any layer. */
static int32_t widest(const wina_weights *w, int group, bool outputs) {
    int32_t most = 0;
    for (int32_t i = 0; i < w->n_layer; i++) {
        const wina_layer *layer = &w->layers[i];
        const int32_t n_experts = group >= WINA_GROUP_GATE_UP ? layer->mixture.n : 0;
        for (int32_t e = -1; e < n_experts; e++) {
            const wina_group_weights *g =
                e < 0 ? &layer->groups[group] : expert_group(&layer->mixture.experts[e], group);
            const int32_t n = outputs ? g->n_out : g->n_in;
            most = n > most ? n : most;
        }
    }
    return most;
}

int32_t wina_weights_widest_in(const wina_weights *w, int group) {
    return widest(w, group, false);
}

int32_t wina_weights_widest_out(const wina_weights *w, int group) {
    return widest(w, group, true);
}

static bool rounds_by(const wina_group_weights *g, int32_t sub) {
    for (int32_t i = 0; i < g->n_panels; i++)
        if (wina_layout_rounds_by(g->panels[i].layout, sub))
            return true;
    return false;
}

bool wina_weights_round_by(const wina_weights *w, int32_t sub) {
    if (wina_layout_rounds_by(w->output.layout, sub))
        return true;
    for (int32_t i = 0; i < w->n_layer; i++) {
        const wina_layer *layer = &w->layers[i];
        for (int group = 0; group < WINA_N_GROUPS; group++)
            if (rounds_by(&layer->groups[group], sub))
                return true;
        for (int site = 0; site < WINA_N_SITES; site++)
            if (rounds_by(&layer->rotations[site], sub))
                return true;
        if (rounds_by(&layer->mixture.router, sub))
            return true;
        for (int32_t e = 0; e < layer->mixture.n; e++)
            if (rounds_by(&layer->mixture.experts[e].gate_up, sub) ||
                rounds_by(&layer->mixture.experts[e].down, sub))
                return true;
    }
    return false;
}

void wina_weights_embed(const wina_weights *w, int32_t token, float *out) {
    const wina_gguf_tensor *t = w->token_embd;
    if (t)
        t->dtype->decode(t->data + (uint64_t)token * t->row_bytes, out, t->ne[0] / t->dtype->block);
    else
        wina_panel_decode_row(&w->output, token, out);
}

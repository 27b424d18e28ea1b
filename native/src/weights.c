#include "weights.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "mem.h"
#include "packed.h"
#include "sparse/norms.h"
#include "status.h"

/* Names of the matrices of each group, in the order of their rows. */
static const char *const GROUP_TENSORS[WINA_N_GROUPS][WINA_MAX_PROJECTIONS] = {
    {"attn_q", "attn_k", "attn_v"},
    {"attn_output"},
    {"ffn_gate", "ffn_up"},
    {"ffn_down"},
};

typedef struct shape {
    int32_t n_in;
    int32_t n_out[WINA_MAX_PROJECTIONS];
} shape;

static shape group_shape(const wina_config *c, int group) {
    int32_t q = c->n_head * c->head_dim, kv = c->n_head_kv * c->head_dim;
    switch (group) {
    case WINA_GROUP_QKV:
        return (shape){c->n_embd, {q, kv, kv}};
    case WINA_GROUP_O:
        return (shape){q, {c->n_embd}};
    case WINA_GROUP_GATE_UP:
        return (shape){c->n_embd, {c->n_ff, c->n_ff}};
    default:
        return (shape){c->n_ff, {c->n_embd}};
    }
}

static void layer_name(char *out, size_t cap, int32_t layer, const char *role, const char *kind) {
    snprintf(out, cap, "blk.%d.%s.%s", layer, role, kind);
}

/* A tensor of exactly this shape (rows == 0: a vector of cols). */
static int32_t get_tensor(const wina_gguf *gguf, const char *name, int64_t rows, int64_t cols,
                          const wina_gguf_tensor **out) {
    const wina_gguf_tensor *t = wina_gguf_find_tensor(gguf, name);
    if (!t)
        return wina_fail(WINA_E_FORMAT, "tensor %s is missing", name);
    uint64_t want_rows = rows ? (uint64_t)rows : 1;
    if (t->ne[0] != (uint64_t)cols || t->ne[1] != want_rows || t->ne[2] != 1 || t->ne[3] != 1)
        return wina_fail(WINA_E_FORMAT,
                         "tensor %s has shape (%llu, %llu, %llu, %llu), expected (%lld, %llu)",
                         name, (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
                         (unsigned long long)t->ne[2], (unsigned long long)t->ne[3],
                         (long long)cols, (unsigned long long)want_rows);
    *out = t;
    return WINA_OK;
}

/* A matrix of a group: a tensor, or the rows of one that holds several (*out is then a view). */
static int32_t get_matrix(const wina_gguf *gguf, const wina_config *c, int32_t layer, int group,
                          int i, wina_gguf_tensor *out) {
    const shape s = group_shape(c, group);
    const bool fused = c->arch->fused && GROUP_TENSORS[group][1];
    const char *role = GROUP_TENSORS[group][i];
    int64_t row0 = 0, n_rows = s.n_out[i];
    if (fused) {
        role = group == WINA_GROUP_QKV ? "attn_qkv" : "ffn_up";
        n_rows = 0;
        for (int k = 0; k < WINA_MAX_PROJECTIONS; k++) {
            row0 += k < i ? s.n_out[k] : 0;
            n_rows += s.n_out[k];
        }
    }
    char name[64];
    const wina_gguf_tensor *t;
    layer_name(name, sizeof name, layer, role, "weight");
    WINA_TRY(get_tensor(gguf, name, n_rows, s.n_in, &t));
    *out = *t;
    if (fused) {
        out->ne[1] = (uint64_t)s.n_out[i];
        if (!t->data)
            return wina_fail(WINA_E_UNSUPPORTED,
                             "tensor %s: packed files with fused matrices are "
                             "not supported",
                             name);
        out->data += (uint64_t)row0 * t->row_bytes;
        out->n_bytes = out->ne[1] * t->row_bytes;
    }
    return WINA_OK;
}

static int32_t plan_group(const wina_gguf *gguf, const wina_config *c, int32_t layer, int group,
                          wina_group_weights *g) {
    shape s = group_shape(c, group);
    g->n_in = s.n_in;
    int64_t panel_rows[WINA_MAX_PROJECTIONS] = {0};
    uint32_t dtypes[WINA_MAX_PROJECTIONS] = {0};
    for (int i = 0; i < WINA_MAX_PROJECTIONS && GROUP_TENSORS[group][i]; i++) {
        wina_gguf_tensor t;
        WINA_TRY(get_matrix(gguf, c, layer, group, i, &t));
        const wina_layout *l = wina_layout_find(t.dtype->id);
        if (!l)
            return wina_fail(WINA_E_UNSUPPORTED,
                             "tensor blk.%d.%s.weight: type %s is not "
                             "supported here",
                             layer, GROUP_TENSORS[group][i], t.dtype->name);
        if (i == 0 || dtypes[g->n_panels - 1] != t.dtype->id)
            dtypes[g->n_panels++] = t.dtype->id;
        wina_projection *p = &g->projections[g->n_projections++];
        p->n_rows = s.n_out[i];
        p->row0 = g->n_out;
        p->panel = g->n_panels - 1;
        p->panel_row0 = (int32_t)panel_rows[p->panel];
        p->row_bits = wina_layout_bits(l);
        int32_t padded = (s.n_out[i] + WINA_STRIP - 1) / WINA_STRIP * WINA_STRIP;
        panel_rows[p->panel] += padded;
        g->n_out += padded;
    }
    for (int32_t i = 0, row0 = 0; i < g->n_panels; i++) {
        WINA_TRY(wina_panel_plan(dtypes[i], panel_rows[i], s.n_in, &g->panels[i]));
        g->panel_row0[i] = row0;
        row0 += g->panels[i].n_rows;
    }
    return WINA_OK;
}

static const char *const SITE_TENSORS[WINA_N_SITES] = {"attn_rot", "ffn_rot"};

/* A rotation as a group of one projection; none is fine. */
static int32_t plan_rotation(const wina_gguf *gguf, const wina_config *c, int32_t layer, int site,
                             wina_group_weights *g) {
    char name[64];
    const wina_gguf_tensor *t;
    layer_name(name, sizeof name, layer, SITE_TENSORS[site], "weight");
    if (!wina_gguf_find_tensor(gguf, name))
        return WINA_OK;
    WINA_TRY(get_tensor(gguf, name, c->n_embd, c->n_embd, &t));
    const wina_layout *l = wina_layout_find(t->dtype->id);
    if (!l)
        return wina_fail(WINA_E_UNSUPPORTED, "tensor %s: type %s is not supported here", name,
                         t->dtype->name);
    WINA_TRY(wina_panel_plan(t->dtype->id, c->n_embd, c->n_embd, &g->panels[0]));
    g->n_in = c->n_embd;
    g->n_out = g->panels[0].n_rows;
    g->n_projections = g->n_panels = 1;
    g->projections[0] = (wina_projection){.n_rows = c->n_embd, .row_bits = wina_layout_bits(l)};
    return WINA_OK;
}

static int32_t plan_layer(const wina_gguf *gguf, const wina_config *c, int32_t i, wina_weights *w) {
    wina_layer *layer = &w->layers[i];
    for (int group = 0; group < WINA_N_GROUPS; group++) {
        wina_group_weights *g = &layer->groups[group];
        WINA_TRY(plan_group(gguf, c, i, group, g));
        for (int32_t p = 0; p < g->n_panels; p++) {
            w->sparse_bytes += g->panels[p].n_bytes;
            w->total_bytes += g->panels[p].n_bytes;
        }
    }
    for (int site = 0; site < WINA_N_SITES; site++) {
        WINA_TRY(plan_rotation(gguf, c, i, site, &layer->rotations[site]));
        w->total_bytes += layer->rotations[site].panels[0].n_bytes;
    }
    return WINA_OK;
}

/* One block for all panels: small ones would each lie in small pages, and walking columns in those
 * costs a page walk at every other step. */
static uint64_t place_panel(wina_panel *p, uint8_t *arena, uint64_t at) {
    p->data = arena ? arena + at : NULL;
    return at + (p->n_bytes + 63) / 64 * 64;
}

static uint64_t place_panels(wina_weights *w) {
    uint64_t at = place_panel(&w->output, w->arena, 0);
    for (int32_t i = 0; i < w->n_layer; i++) {
        wina_layer *layer = &w->layers[i];
        layer->offset = at;
        for (int group = 0; group < WINA_N_GROUPS; group++)
            for (int32_t p = 0; p < layer->groups[group].n_panels; p++)
                at = place_panel(&layer->groups[group].panels[p], w->arena, at);
        for (int site = 0; site < WINA_N_SITES; site++)
            if (layer->rotations[site].n_panels)
                at = place_panel(&layer->rotations[site].panels[0], w->arena, at);
    }
    return at;
}

int32_t wina_weights_plan(const wina_gguf *gguf, const wina_config *c, wina_weights *out) {
    wina_weights w = {.n_layer = c->n_layer};
    const wina_gguf_tensor *t;
    WINA_TRY(get_tensor(gguf, "token_embd.weight", c->n_vocab, c->n_embd, &t));
    if (!c->tied_output) {
        if (!t->data)
            return wina_fail(WINA_E_FORMAT, "tensor token_embd.weight must not be packed here");
        w.token_embd = t;
        WINA_TRY(get_tensor(gguf, "output.weight", c->n_vocab, c->n_embd, &t));
    }
    WINA_TRY(wina_panel_plan(t->dtype->id, c->n_vocab, c->n_embd, &w.output));
    WINA_TRY(wina_mem_create((uint64_t)c->n_layer, sizeof *w.layers, "layers", &w.layers));
    w.total_bytes = w.output.n_bytes;
    for (int32_t i = 0; i < c->n_layer; i++) {
        int32_t status = plan_layer(gguf, c, i, &w);
        if (status != WINA_OK) {
            free(w.layers);
            return status;
        }
    }
    w.arena_bytes = place_panels(&w);
    *out = w;
    return WINA_OK;
}

/* ---- packing ------------------------------------------------------------------------------ */

enum { N_CHUNKS = 16 };

/* One matrix on its way into a panel. It is cut into N_CHUNKS row ranges whatever the number of
 * threads, each with its own sums of squares, so that norms do not depend on the threads. */
typedef struct packing {
    const wina_gguf_tensor *tensor;
    wina_panel *panel;
    int64_t panel_row0;
    double *sums;    /* (N_CHUNKS, n_cols) or NULL: no norms wanted */
    float *scratch;  /* (N_CHUNKS, n_cols) */
    atomic_int next; /* chunk to be taken */
} packing;

static void pack_chunks(void *arg, int32_t thread, int32_t n_threads) {
    packing *k = arg;
    const wina_gguf_tensor *t = k->tensor;
    (void)thread, (void)n_threads;
    int64_t n_rows = (int64_t)t->ne[1], n_cols = (int64_t)t->ne[0];
    int64_t n_strips = (n_rows + WINA_STRIP - 1) / WINA_STRIP;
    for (int i; (i = atomic_fetch_add(&k->next, 1)) < N_CHUNKS;) {
        int64_t begin, end;
        wina_threads_share(n_strips, i, N_CHUNKS, &begin, &end);
        float *row = k->scratch + (int64_t)i * n_cols;
        for (int64_t s = begin; s < end; s++) {
            int64_t r0 = s * WINA_STRIP;
            int64_t r1 = r0 + WINA_STRIP < n_rows ? r0 + WINA_STRIP : n_rows;
            wina_panel_fill(k->panel, k->panel_row0 + r0, t->data + (uint64_t)r0 * t->row_bytes,
                            t->row_bytes, r1 - r0);
            for (int64_t r = r0; r < r1 && k->sums; r++) {
                t->dtype->decode(t->data + (uint64_t)r * t->row_bytes, row,
                                 (uint64_t)n_cols / t->dtype->block);
                wina_norms_add_row(k->sums + (int64_t)i * n_cols, row, n_cols);
            }
        }
    }
}

/* Packs one matrix; total (n_cols) receives its sums of squared columns if not NULL. */
static int32_t pack_matrix(const wina_gguf *gguf, wina_threads *threads, const wina_gguf_tensor *t,
                           wina_panel *panel, int64_t panel_row0, double *total) {
    packing k = {.tensor = t, .panel = panel, .panel_row0 = panel_row0};
    int32_t status = wina_mem_create(N_CHUNKS * t->ne[0], sizeof(float), "packing", &k.scratch);
    if (status == WINA_OK && total)
        status = wina_mem_create(N_CHUNKS * t->ne[0], sizeof(double), "packing", &k.sums);
    if (status == WINA_OK) {
        wina_threads_run(threads, pack_chunks, &k);
        for (uint64_t i = 0; i < t->ne[0] && total; i++)
            for (int j = 0; j < N_CHUNKS; j++)
                total[i] += k.sums[(uint64_t)j * t->ne[0] + i];
        wina_gguf_release(gguf, t);
    }
    free(k.scratch);
    free(k.sums);
    return status;
}

/* A vector of floats (any type that decodes), (n); padded to n_alloc with zeros. */
static int32_t load_vector(const wina_gguf *gguf, const char *name, int32_t n, float *out) {
    const wina_gguf_tensor *t = NULL;
    WINA_TRY(get_tensor(gguf, name, 0, n, &t));
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

static int32_t load_group(const wina_gguf *gguf, const wina_config *c, wina_threads *threads,
                          int32_t layer, int group, wina_group_weights *g) {
    uint64_t n = (uint64_t)g->n_in;
    WINA_TRY(wina_mem_create(n, sizeof(float), "norms", &g->norms));
    double *sums = NULL; /* (2, n_in): of one matrix, of the group */
    WINA_TRY(wina_mem_create(2 * n, sizeof(double), "norms", &sums));
    int32_t status = WINA_OK;
    for (int32_t i = 0; i < g->n_projections && status == WINA_OK; i++) {
        wina_projection *p = &g->projections[i];
        wina_gguf_tensor t = {0};
        memset(sums, 0, n * sizeof *sums);
        status = get_matrix(gguf, c, layer, group, i, &t);
        if (status == WINA_OK)
            status = pack_matrix(gguf, threads, &t, &g->panels[p->panel], p->panel_row0, sums);
        if (status == WINA_OK)
            status = wina_mem_create(n, sizeof(float), "norms", &p->norms);
        if (status == WINA_OK)
            wina_norms_finish(sums, p->norms, g->n_in);
        for (uint64_t j = 0; j < n; j++)
            sums[n + j] += sums[j];
    }
    if (status == WINA_OK)
        wina_norms_finish(sums + n, g->norms, g->n_in);
    free(sums);
    return status;
}

static int32_t load_rotation(const wina_gguf *gguf, wina_threads *threads, int32_t layer, int site,
                             wina_group_weights *g) {
    char name[64];
    layer_name(name, sizeof name, layer, SITE_TENSORS[site], "weight");
    return pack_matrix(gguf, threads, wina_gguf_find_tensor(gguf, name), &g->panels[0], 0, NULL);
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

static int32_t load_layer(const wina_gguf *gguf, const wina_config *c, wina_threads *threads,
                          int32_t i, wina_layer *layer) {
    bool packed = wina_packed_find(gguf);
    WINA_TRY(load_gains(gguf, c, i, layer));
    for (int group = 0; group < WINA_N_GROUPS && !packed; group++)
        WINA_TRY(load_group(gguf, c, threads, i, group, &layer->groups[group]));
    for (int site = 0; site < WINA_N_SITES && !packed; site++)
        if (layer->rotations[site].n_panels)
            WINA_TRY(load_rotation(gguf, threads, i, site, &layer->rotations[site]));
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
        WINA_TRY(pack_matrix(gguf, how->threads, wina_gguf_find_tensor(gguf, head), &w->output, 0,
                             NULL));
    uint64_t done = w->output.n_bytes;
    for (int32_t i = 0; i < c->n_layer; i++) {
        if (how->stop && how->stop((float)done / (float)w->total_bytes, how->user))
            return wina_fail(WINA_E_CANCELLED, "loading was cancelled");
        WINA_TRY(load_layer(gguf, c, how->threads, i, &w->layers[i]));
        for (int g = 0; g < WINA_N_GROUPS; g++)
            for (int32_t p = 0; p < w->layers[i].groups[g].n_panels; p++)
                done += w->layers[i].groups[g].panels[p].n_bytes;
    }
    if (how->stop && how->stop(1.0f, how->user))
        return wina_fail(WINA_E_CANCELLED, "loading was cancelled");
    return WINA_OK;
}

const wina_panel *wina_weights_find_panel(const wina_weights *w, const char *name, int64_t *row0) {
    *row0 = 0;
    if (strcmp(name, w->token_embd ? "output.weight" : "token_embd.weight") == 0)
        return &w->output;
    for (int32_t i = 0; i < w->n_layer; i++) {
        char own[64];
        int n = snprintf(own, sizeof own, "blk.%d.", i);
        if (strncmp(name, own, (size_t)n) != 0)
            continue;
        const wina_layer *layer = &w->layers[i];
        for (int group = 0; group < WINA_N_GROUPS; group++)
            for (int32_t p = 0; p < layer->groups[group].n_projections; p++) {
                /* NOLINTNEXTLINE(clang-analyzer-core*): there are no more than the table has */
                layer_name(own, sizeof own, i, GROUP_TENSORS[group][p], "weight");
                *row0 = layer->groups[group].projections[p].panel_row0;
                if (strcmp(name, own) == 0)
                    return &layer->groups[group].panels[layer->groups[group].projections[p].panel];
            }
        *row0 = 0;
        for (int site = 0; site < WINA_N_SITES; site++) {
            layer_name(own, sizeof own, i, SITE_TENSORS[site], "weight");
            if (layer->rotations[site].n_panels && strcmp(name, own) == 0)
                return &layer->rotations[site].panels[0];
        }
    }
    return NULL;
}

int32_t wina_weights_each_norms(wina_weights *w,
                                int32_t (*visit)(float **norms, int32_t n, void *user),
                                void *user) {
    for (int32_t i = 0; i < w->n_layer; i++)
        for (int group = 0; group < WINA_N_GROUPS; group++) {
            wina_group_weights *g = &w->layers[i].groups[group];
            WINA_TRY(visit(&g->norms, g->n_in, user));
            for (int32_t p = 0; p < g->n_projections; p++)
                WINA_TRY(visit(&g->projections[p].norms, g->n_in, user));
        }
    return WINA_OK;
}

void wina_weights_free(wina_weights *w) {
    for (int32_t i = 0; i < w->n_layer && w->layers; i++) {
        wina_layer *layer = &w->layers[i];
        for (int group = 0; group < WINA_N_GROUPS; group++) {
            wina_group_weights *g = &layer->groups[group];
            for (int32_t p = 0; p < g->n_projections; p++)
                free(g->projections[p].norms);
            free(g->norms);
            free(g->bias);
        }
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

void wina_weights_embed(const wina_weights *w, int32_t token, float *out) {
    const wina_gguf_tensor *t = w->token_embd;
    if (t)
        t->dtype->decode(t->data + (uint64_t)token * t->row_bytes, out, t->ne[0] / t->dtype->block);
    else
        wina_panel_decode_row(&w->output, token, out);
}

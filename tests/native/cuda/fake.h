/* fake: a model with random weights, made in memory, so that kernels can be checked and timed at
 * any shape without a file. Weights are drawn in the file's own row-major blocks and packed by
 * the library, or (for timing) written straight into the panels. */
#ifndef FAKE_H
#define FAKE_H

#include <math.h>
#include <stdlib.h>

#include "../check.h"
#include "fill.h"
#include "mem.h"
#include "model.h"
#include "sparse/norms.h"

typedef struct fake_spec {
    uint32_t dtype; /* of every matrix */
    int32_t n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab, n_ctx;
    bool bias, halves;
    int32_t kind; /* of fake_kind: how the model differs from plain llama and qwen2 ones */
    bool fast;    /* panels filled with a repeated pool: for timing */
} fake_spec;

static inline float fake_normal(unsigned long long *state) {
    double u = ((double)(check_random(state) >> 11) + 1) * 0x1p-53;
    double v = (double)(check_random(state) >> 11) * 0x1p-53;
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

/* A row of n inputs as blocks of dtype with weights of about standard deviation sd. Quantised
 * blocks get random bytes and plausible scales. */
static inline void fake_row(uint32_t dtype, uint8_t *row, int32_t n, float sd,
                            unsigned long long *state) {
    const wina_dtype *d = wina_dtype_find(dtype);
    uint64_t n_blocks = (uint64_t)n / d->block;
    for (uint64_t b = 0; b < n_blocks; b++) {
        uint8_t *p = row + b * d->block_bytes;
        if (d->block == 1) {
            float f = sd * fake_normal(state);
            uint16_t h = wina_f32_to_f16(f);
            uint32_t bits;
            memcpy(&bits, &f, 4);
            if (dtype == WINA_DTYPE_F32)
                memcpy(p, &f, 4);
            else if (dtype == WINA_DTYPE_F16)
                memcpy(p, &h, 2);
            else
                h = (uint16_t)(bits >> 16), memcpy(p, &h, 2);
            continue;
        }
        for (uint32_t i = 0; i < d->block_bytes; i++)
            p[i] = (uint8_t)(check_random(state) >> 32);
        float u = 0.5f + (float)(check_random(state) >> 40) * 0x1p-24f;
        float range = dtype == WINA_DTYPE_Q8_0     ? 74.0f
                      : dtype == WINA_DTYPE_Q5_0   ? 9.2f
                      : dtype == WINA_DTYPE_Q5_1   ? 9.2f
                      : dtype == WINA_DTYPE_Q4_K   ? 4.6f * 32
                      : dtype == WINA_DTYPE_Q5_K   ? 9.2f * 32
                      : dtype == WINA_DTYPE_Q6_K   ? 18.5f * 74
                      : dtype == WINA_DTYPE_Q2_K   ? 1.1f * 8.8f
                      : dtype == WINA_DTYPE_Q3_K   ? 2.3f * 18.5f
                      : dtype == WINA_DTYPE_IQ4_NL ? 70.0f
                      : dtype == WINA_DTYPE_IQ4_XS ? 70.0f * 18.5f
                      : dtype == WINA_DTYPE_TQ1_0  ? 0.8f
                      : dtype == WINA_DTYPE_TQ2_0  ? 0.9f
                                                   : 4.6f;
        uint16_t scale = wina_f32_to_f16(sd * u / range);
        uint16_t low = wina_f32_to_f16(-sd * u * 1.6f), k_low = wina_f32_to_f16(sd * u * 1.6f / 32);
        switch (dtype) {
        case WINA_DTYPE_Q6_K:
            memcpy(p + 208, &scale, 2);
            break;
        case WINA_DTYPE_Q2_K:
            low = wina_f32_to_f16(1.5f * sd * u / range);
            memcpy(p + 80, &scale, 2);
            memcpy(p + 82, &low, 2);
            break;
        case WINA_DTYPE_Q3_K:
            memcpy(p + 108, &scale, 2);
            break;
        case WINA_DTYPE_MXFP4:
            p[0] = (uint8_t)(128 + (int)lrintf(log2f(sd * u / 6)));
            break;
        case WINA_DTYPE_TQ1_0:
            memcpy(p + 52, &scale, 2);
            break;
        case WINA_DTYPE_TQ2_0:
            memcpy(p + 64, &scale, 2);
            break;
        case WINA_DTYPE_Q4_1:
        case WINA_DTYPE_Q5_1:
            memcpy(p, &scale, 2);
            memcpy(p + 2, &low, 2);
            break;
        case WINA_DTYPE_Q4_K:
        case WINA_DTYPE_Q5_K:
            memcpy(p, &scale, 2);
            memcpy(p + 2, &k_low, 2);
            break;
        default:
            memcpy(p, &scale, 2);
        }
    }
}

static inline float *fake_vector(int32_t n, float mean, float sd, unsigned long long *state) {
    float *v = NULL;
    if (wina_mem_create((uint64_t)n, sizeof *v, "vector", &v) != WINA_OK)
        abort();
    for (int32_t i = 0; i < n; i++)
        v[i] = mean + sd * fake_normal(state);
    return v;
}

/* Rows [row0, row0 + n_rows) of a planned panel; adds squares (n_cols) if not NULL. */
static inline void fake_fill(wina_panel *p, int32_t row0, int32_t n_rows, double *squares,
                             unsigned long long *state) {
    const wina_dtype *d = wina_dtype_find(p->layout->dtype);
    uint64_t row_bytes = (uint64_t)p->n_cols / d->block * d->block_bytes;
    uint8_t *rows = malloc(row_bytes * WINA_STRIP);
    float *values = malloc((size_t)p->n_cols * sizeof *values);
    float sd = 1.0f / sqrtf((float)p->n_cols);
    for (int32_t r = 0; r < n_rows; r += WINA_STRIP) {
        int32_t n = n_rows - r < WINA_STRIP ? n_rows - r : WINA_STRIP;
        for (int32_t i = 0; i < n; i++) {
            fake_row(p->layout->dtype, rows + (uint64_t)i * row_bytes, p->n_cols, sd, state);
            d->decode(rows + (uint64_t)i * row_bytes, values, (uint64_t)p->n_cols / d->block);
            if (squares)
                wina_norms_add_row(squares, values, p->n_cols);
        }
        wina_fill_rows(&wina_fill_ops_c, p, row0 + r, rows, row_bytes, n, NULL);
    }
    free(rows);
    free(values);
}

/* For timing: memory is filled with columns of a small panel of 512 rows and 256 inputs of the same
 * type. Every 512 rows and every 256 inputs take them in another order, so that no two rows are
 * equal: equal sums would be equal scores, which cost the selection more than a real model's. */
static inline void fake_fill_fast(wina_panel *p, double *squares, unsigned long long *state) {
    wina_panel small;
    if (wina_panel_plan(p->layout->dtype, 512, 256, &small) != WINA_OK)
        abort();
    small.data = calloc(1, small.n_bytes + 64);
    /* weights as small as those of p: scale by building with its number of inputs */
    const wina_dtype *d = wina_dtype_find(p->layout->dtype);
    uint64_t row_bytes = 256 / d->block * d->block_bytes;
    uint8_t *row = malloc(row_bytes * WINA_STRIP);
    for (int32_t r = 0; r < 512; r += WINA_STRIP) {
        for (int32_t i = 0; i < WINA_STRIP; i++)
            fake_row(p->layout->dtype, row + (uint64_t)i * row_bytes, 256,
                     1.0f / sqrtf((float)p->n_cols), state);
        wina_fill_rows(&wina_fill_ops_c, &small, r, row, row_bytes, WINA_STRIP, NULL);
    }
    const wina_layout *l = p->layout;
    uint64_t rows = (uint64_t)p->n_rows;
    for (int32_t b = 0; b < p->n_blocks; b++) {
        uint8_t *to = (uint8_t *)wina_panel_block(p, b);
        for (int c = 0; c < WINA_BLOCK; c++)
            for (int plane = 0; plane < 2; plane++) {
                uint64_t bits = plane ? l->high_bits : l->low_bits;
                uint64_t unit = 512 * bits / 8, n = rows * bits / 8;
                uint8_t *col =
                    to + (uint64_t)c * p->col_bytes + (plane ? rows * l->low_bits / 8 : 0);
                const uint64_t offset = plane ? 512u * l->low_bits / 8 : 0;
                for (uint64_t at = 0; at < n && unit; at += unit) {
                    const uint64_t shift = (73 * (at / unit) + 29 * (uint64_t)(b / 8)) % 256;
                    const uint8_t *other = wina_panel_block(&small, (b + (int)(shift % 8)) % 8);
                    const uint64_t from_col = ((uint64_t)c + shift / 8) % WINA_BLOCK;
                    memcpy(col + at, other + from_col * small.col_bytes + offset,
                           n - at < unit ? n - at : unit);
                }
            }
        for (int part = 0; part < 2; part++) { /* scales: one or two rows of them */
            uint64_t width = l->scales == WINA_SCALES_DM ? 2 : l->scales == WINA_SCALES_D ? 2 : 1;
            uint64_t parts = l->scale_bytes / (width ? width : 1);
            for (uint64_t k = 0; k < parts && part == 0; k++)
                for (uint64_t at = 0; at < rows; at += 512)
                    memcpy((uint8_t *)wina_panel_scales(p, b) + (k * rows + at) * width,
                           wina_panel_scales(&small, b % 8) + k * 512 * width,
                           (rows - at < 512 ? rows - at : 512) * width);
        }
        for (uint64_t k = 0; k < (uint64_t)l->super_bytes / 2 && b % 8 == 0; k++)
            for (uint64_t at = 0; at < rows; at += 512)
                memcpy((uint8_t *)wina_panel_super(p, b) + (k * rows + at) * 2,
                       wina_panel_super(&small, 0) + k * 1024,
                       (rows - at < 512 ? rows - at : 512) * 2);
    }
    for (int32_t i = 0; i < p->n_cols && squares; i++)
        squares[i] = 1.0 + 0.3 * fabs((double)fake_normal(state));
    free(row);
    free(small.data);
}

static inline void fake_group(const fake_spec *s, wina_group_weights *g, int32_t n_in,
                              const int32_t *n_rows, int32_t n_projections,
                              unsigned long long *state) {
    *g = (wina_group_weights){.n_in = n_in, .n_projections = n_projections, .n_panels = 1};
    for (int32_t i = 0; i < n_projections; i++) {
        wina_projection *p = &g->projections[i];
        p->n_rows = n_rows[i];
        p->row0 = p->panel_row0 = g->n_out;
        p->row_bits = wina_layout_bits(wina_layout_find(s->dtype));
        g->n_out += (n_rows[i] + WINA_STRIP - 1) / WINA_STRIP * WINA_STRIP;
    }
    if (wina_panel_plan(s->dtype, g->n_out, n_in, &g->panels[0]) != WINA_OK ||
        wina_mem_create_big(g->panels[0].n_bytes, "panel", &g->panels[0].data) != WINA_OK)
        abort();
    double *sums = calloc(2 * (size_t)n_in, sizeof *sums);
    g->norms = malloc((size_t)n_in * sizeof(float));
    for (int32_t i = 0; i < n_projections; i++) {
        memset(sums, 0, (size_t)n_in * sizeof *sums);
        if (!s->fast)
            fake_fill(&g->panels[0], g->projections[i].panel_row0, n_rows[i], sums, state);
        else
            fake_fill_fast(&g->panels[0], sums, state);
        g->projections[i].norms = malloc((size_t)n_in * sizeof(float));
        wina_norms_finish(sums, g->projections[i].norms, n_in);
        for (int32_t j = 0; j < n_in; j++)
            sums[n_in + j] += sums[j];
    }
    wina_norms_finish(sums + n_in, g->norms, n_in);
    free(sums);
    if (s->bias && n_projections == 3)
        g->bias = fake_vector(g->n_out, 0, 0.1f, state);
}

/* Rules of a uniform sparsity. */
static inline wina_rules fake_rules(const wina_model *m, float sparsity, int32_t method,
                                    int32_t mask) {
    static uint64_t version;
    wina_sparsity s = {.sparsity = sparsity,
                       .method = method,
                       .mask = mask,
                       .budget = WINA_BUDGET_UNIFORM,
                       .exponent = -1};
    const wina_rule_model rm = wina_model_rules(m, NULL);
    wina_rules rules;
    if (wina_rules_create(&rm, &s, &rules) != WINA_OK) {
        fprintf(stderr, "%s\n", wina_error());
        abort();
    }
    rules.version = ++version;
    return rules;
}

/* Like the architectures that have these traits. */
typedef enum fake_kind {
    FAKE_PLAIN,
    FAKE_QWEN3,
    FAKE_GEMMA2,
    FAKE_GEMMA3,
    FAKE_OLMO2,
    FAKE_SMOLLM3,
    FAKE_N_KINDS
} fake_kind;
static const char *const FAKE_NAMES[] = {"plain", "qwen3", "gemma2", "gemma3", "olmo2", "smollm3"};
static const wina_arch FAKE_ARCHS[] = {
    [FAKE_QWEN3] = {.name = "qwen3", .rope = WINA_ROPE_HALVES, .qk_norm = WINA_QK_NORM_HEAD},
    [FAKE_GEMMA2] = {.name = "gemma2",
                     .rope = WINA_ROPE_HALVES,
                     .activation = WINA_ACT_GELU,
                     .post_norm = true,
                     .scale_embd = true,
                     .window_step = 2},
    [FAKE_GEMMA3] = {.name = "gemma3",
                     .rope = WINA_ROPE_HALVES,
                     .activation = WINA_ACT_GELU,
                     .qk_norm = WINA_QK_NORM_HEAD,
                     .post_norm = true,
                     .scale_embd = true,
                     .window_step = 2},
    [FAKE_OLMO2] = {.name = "olmo2",
                    .rope = WINA_ROPE_HALVES,
                    .qk_norm = WINA_QK_NORM_ALL,
                    .no_pre_norm = true,
                    .post_norm = true},
    [FAKE_SMOLLM3] = {.name = "smollm3", .rope = WINA_ROPE_INTERLEAVED, .rope_step = 2},
};

/* What the kinds add to a plain model whose panels are there. */
static inline void fake_traits(wina_model *m, int32_t kind, unsigned long long *state) {
    wina_config *c = &m->config;
    const wina_arch *a = &FAKE_ARCHS[kind];
    c->arch = a;
    c->rope_theta_window = kind == FAKE_GEMMA3 ? 1000 : c->rope_theta;
    c->window = a->window_step ? 5 : 0; /* less than a test's tokens */
    if (kind == FAKE_GEMMA2)
        c->attn_softcap = 2, c->logit_softcap = 3, c->attn_scale *= 2;
    if (kind == FAKE_SMOLLM3)
        c->residual_scale = 0.7f, c->logit_scale = 0.3f, c->rope_scale = 0.5f;
    if (a->scale_embd)
        c->embd_scale = sqrtf((float)c->n_embd);
    for (int32_t i = 0; i < c->n_layer; i++) {
        wina_layer *l = &m->weights.layers[i];
        if (a->no_pre_norm)
            l->attn_norm = l->ffn_norm = NULL;
        for (int s = 0; s < WINA_N_SITES && a->post_norm; s++)
            l->exit_norms[s] = fake_vector(c->n_embd, 1, 0.1f, state);
        const bool all = a->qk_norm == WINA_QK_NORM_ALL;
        if (a->qk_norm) {
            l->q_norm = fake_vector((all ? c->n_head : 1) * c->head_dim, 1, 0.1f, state);
            l->k_norm = fake_vector((all ? c->n_head_kv : 1) * c->head_dim, 1, 0.1f, state);
        }
    }
}

/* Embeddings as rows of a tensor of their own, of any type, in place of those of the output matrix.
 */
static inline void fake_rows(wina_model *m, uint32_t dtype, unsigned long long seed) {
    const wina_config *c = &m->config;
    const wina_dtype *d = wina_dtype_find(dtype);
    wina_gguf_tensor *t = calloc(1, sizeof *t);
    t->dtype = d;
    t->ne[0] = (uint64_t)c->n_embd, t->ne[1] = (uint64_t)c->n_vocab;
    t->row_bytes = (uint64_t)c->n_embd / d->block * d->block_bytes;
    uint8_t *rows = malloc(t->row_bytes * t->ne[1]);
    for (uint64_t r = 0; r < t->ne[1]; r++)
        fake_row(dtype, rows + r * t->row_bytes, c->n_embd, 1, &seed);
    t->data = rows;
    m->weights.token_embd = t;
    m->config.tied_output = false;
}

static const wina_arch FAKE_LLAMA = {.name = "llama", .rope = WINA_ROPE_INTERLEAVED};
static const wina_arch FAKE_QWEN = {.name = "qwen2", .rope = WINA_ROPE_HALVES, .qkv_bias = true};

/* Never freed: the process ends with it. With `fast`, embeddings are a float16 tensor of their own
 * as in a file; else they come from the output matrix (tied). */
static inline wina_model *fake_model(const fake_spec *s, unsigned long long seed) {
    wina_model *m = calloc(1, sizeof *m);
    unsigned long long state = seed;
    m->config = (wina_config){.arch = s->halves ? &FAKE_QWEN : &FAKE_LLAMA,
                              .n_vocab = s->n_vocab,
                              .n_ctx_train = s->n_ctx,
                              .n_embd = s->n_embd,
                              .n_layer = s->n_layer,
                              .n_head = s->n_head,
                              .n_head_kv = s->n_head_kv,
                              .head_dim = s->head_dim,
                              .n_ff = s->n_ff,
                              .rope_dim = s->head_dim,
                              .rope_theta = 10000,
                              .rope_theta_window = 10000,
                              .rope_scale = 1,
                              .rope_gain = 1,
                              .embd_scale = 1,
                              .residual_scale = 1,
                              .attn_scale = 1.0f / sqrtf((float)s->head_dim),
                              .logit_scale = 1,
                              .rms_eps = 1e-5f,
                              .tied_output = true};
    wina_weights *w = &m->weights;
    w->n_layer = s->n_layer;
    w->layers = calloc((size_t)s->n_layer, sizeof *w->layers);
    const int32_t q = s->n_head * s->head_dim, kv = s->n_head_kv * s->head_dim;
    for (int32_t i = 0; i < s->n_layer; i++) {
        wina_layer *l = &w->layers[i];
        l->attn_norm = fake_vector(s->n_embd, 1, 0.1f, &state);
        l->ffn_norm = fake_vector(s->n_embd, 1, 0.1f, &state);
        fake_group(s, &l->groups[WINA_GROUP_QKV], s->n_embd, (int32_t[]){q, kv, kv}, 3, &state);
        fake_group(s, &l->groups[WINA_GROUP_O], q, (int32_t[]){s->n_embd}, 1, &state);
        fake_group(s, &l->groups[WINA_GROUP_GATE_UP], s->n_embd, (int32_t[]){s->n_ff, s->n_ff}, 2,
                   &state);
        fake_group(s, &l->groups[WINA_GROUP_DOWN], s->n_ff, (int32_t[]){s->n_embd}, 1, &state);
        if (s->fast && i == 0) /* the other layers share the host memory of the first */
            for (int32_t k = 1; k < s->n_layer; k++)
                w->layers[k] = *l;
        if (s->fast)
            break;
    }
    w->output_norm = fake_vector(s->n_embd, 1, 0.1f, &state);
    if (wina_panel_plan(s->dtype, s->n_vocab, s->n_embd, &w->output) != WINA_OK ||
        wina_mem_create_big(w->output.n_bytes, "head", &w->output.data) != WINA_OK)
        abort();
    if (s->fast)
        fake_fill_fast(&w->output, NULL, &state);
    else
        fake_fill(&w->output, 0, s->n_vocab, NULL, &state);
    if (s->fast) {
        wina_gguf_tensor *t = calloc(1, sizeof *t);
        t->dtype = wina_dtype_find(WINA_DTYPE_F16);
        t->ne[0] = (uint64_t)s->n_embd, t->ne[1] = (uint64_t)s->n_vocab;
        t->row_bytes = 2 * (uint64_t)s->n_embd;
        uint8_t *rows = malloc(t->row_bytes * t->ne[1]);
        fake_row(WINA_DTYPE_F16, rows, s->n_embd, 1.0f, &state);
        for (uint64_t r = 1; r < t->ne[1]; r++) /* every row starts elsewhere in the first */
            for (uint64_t i = 0; i < t->ne[0]; i++)
                memcpy(rows + r * t->row_bytes + 2 * i, rows + 2 * ((i + 37 * r) % t->ne[0]), 2);
        t->data = rows;
        m->weights.token_embd = t;
    }
    m->config.tied_output = !s->fast;
    if (s->kind != FAKE_PLAIN)
        fake_traits(m, s->kind, &state);
    m->has_plan = true;
    if (wina_tuning_groups(&m->weights, &m->groups) != WINA_OK)
        abort();
    return m;
}

#endif

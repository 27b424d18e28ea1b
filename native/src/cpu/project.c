/* project: select the inputs that are kept, then multiply by their columns only. */
#include <string.h>

#include "../sparse/rule.h"
#include "../sparse/select.h"
#include "cpu.h"

/* One call of wina_cpu_project. */
typedef struct job {
    wina_cpu *cpu;
    const wina_group_weights *group;
    const float *in; /* (n_tokens, in_stride) */
    int64_t in_stride;
    float *out; /* (n_tokens, out_stride), rows as in the group */
    int64_t out_stride;
    bool residual;           /* the result is added to x */
    int32_t n_masks;         /* kept lists per token: 1, or one per projection */
    const wina_rule *rules;  /* (n_masks) for sparse tokens; NULL: never sparse */
    int32_t mask;            /* under way in a batch */
    bool floats, by32, by16; /* kinds of activations its panels read */
} job;

static bool is_sparse(const wina_cpu *c, int32_t token) {
    return token >= c->n_dense && c->rules->sparse;
}

/* (n_ff) outputs of the gate for one token, before they are activated. */
static const float *gate_of(const wina_cpu *c, int32_t token) {
    const wina_layer *layer = &c->base.model->weights.layers[0];
    return c->gate_up + token * (int64_t)layer->groups[WINA_GROUP_GATE_UP].n_out;
}

/* Lists the inputs of one token that mask number `mask` keeps; returns how many. */
static int32_t select_inputs(const job *j, wina_cpu_scratch *s, const float *x, int32_t token,
                             int32_t mask, int32_t *kept) {
    const wina_cpu *c = j->cpu;
    const wina_rule *r = is_sparse(c, token) ? &j->rules[mask] : NULL;
    int32_t n = j->group->n_in, n_keep = r ? r->n_keep : n;
    if (r && r->from_gate)
        wina_score_gate(gate_of(c, token), n, s->score);
    else if (r && (n_keep < n || r->threshold > 0))
        c->kernels.score(x, r->norms, n, s->score);
    if (r && r->threshold > 0)
        return wina_select_from(s->score, n, r->threshold, kept);
    c->kernels.select(s->score, n, n_keep, kept, s->bits);
    return n_keep;
}

/* Which projections a mask covers: [*first, *last). */
static void mask_projections(const job *j, int32_t mask, int32_t *first, int32_t *last) {
    *first = j->n_masks > 1 ? mask : 0;
    *last = j->n_masks > 1 ? mask + 1 : j->group->n_projections;
}

static void count(const job *j, int32_t token, int32_t mask, int32_t n_kept) {
    const wina_group_weights *g = j->group;
    wina_counters *n = &j->cpu->base.counters;
    int32_t first, last;
    mask_projections(j, mask, &first, &last);
    for (int32_t i = first; i < last; i++) {
        const wina_projection *p = &g->projections[i];
        const wina_layout *l = g->panels[p->panel].layout;
        uint64_t rows = (uint64_t)p->n_rows, bits = rows * p->row_bits;
        if (is_sparse(j->cpu, token)) {
            n->sparse_read += bits * (uint64_t)n_kept;
            n->sparse_total += bits * (uint64_t)g->n_in;
        }
        if (token == j->cpu->n_tokens - 1) {
            uint64_t blocks = (uint64_t)g->panels[p->panel].n_blocks;
            n->token_bytes += bits * (uint64_t)n_kept / 8 + blocks * rows * l->scale_bytes +
                              (blocks + 7) / 8 * rows * l->super_bytes;
        }
    }
}

static void add_residual(const job *j, int32_t token, int64_t row0, int64_t row1) {
    wina_cpu *c = j->cpu;
    int64_t n = c->base.model->config.n_embd;
    if (row1 > n)
        row1 = n;
    if (row0 < row1)
        c->kernels.add(c->x + token * n + row0, j->out + token * j->out_stride + row0,
                       (int32_t)(row1 - row0));
}

static void add_bias(const job *j, int32_t token, int64_t row0, int64_t row1) {
    if (j->group->bias)
        j->cpu->kernels.add(j->out + token * j->out_stride + row0, j->group->bias + row0,
                            (int32_t)(row1 - row0));
}

/* Calls part(panel, strips, first output row) for the strips [s0, s1) of the group that belong to
 * the projections of one mask. */
typedef void (*panel_fn)(const job *j, const wina_panel *panel, int32_t mask, int32_t strip0,
                         int32_t strip1, int64_t row0);

static void each_panel(const job *j, int32_t mask, int64_t s0, int64_t s1, panel_fn part) {
    const wina_group_weights *g = j->group;
    int32_t first, last;
    mask_projections(j, mask, &first, &last);
    int64_t m0 = g->projections[first].row0 / WINA_STRIP;
    int64_t m1 = (last < g->n_projections ? g->projections[last].row0 : g->n_out) / WINA_STRIP;
    for (int32_t i = 0; i < g->n_panels; i++) {
        int64_t p0 = g->panel_row0[i] / WINA_STRIP, p1 = p0 + g->panels[i].n_rows / WINA_STRIP;
        int64_t a = s0 > p0 ? s0 : p0, b = s1 < p1 ? s1 : p1;
        a = a > m0 ? a : m0, b = b < m1 ? b : m1;
        if (a < b)
            part(j, &g->panels[i], mask, (int32_t)(a - p0), (int32_t)(b - p0), g->panel_row0[i]);
    }
}

/* ---- one token ---------------------------------------------------------------------------- */

static void prepare_act(const job *j, int32_t mask) {
    wina_cpu *c = j->cpu;
    wina_act *a = &c->acts[mask];
    int32_t n = j->group->n_in;
    a->n_kept = select_inputs(j, &c->scratch[0], j->in, 0, mask, c->kept[mask]);
    a->kept = c->kept[mask];
    a->x = j->in;
    if (j->by32)
        c->kernels.quantize(j->in, a->kept, a->n_kept, n, 32, &a->by32);
    if (j->by16)
        c->kernels.quantize(j->in, a->kept, a->n_kept, n, 16, &a->by16);
    count(j, 0, mask, a->n_kept);
}

static void gemv_panel(const job *j, const wina_panel *panel, int32_t mask, int32_t strip0,
                       int32_t strip1, int64_t row0) {
    j->cpu->kernels.gemv(panel, &j->cpu->acts[mask], strip0, strip1, j->out + row0);
}

static void multiply_one(void *arg, int32_t thread, int32_t n_threads) {
    const job *j = arg;
    int64_t s0, s1;
    wina_threads_share(j->group->n_out / WINA_STRIP, thread, n_threads, &s0, &s1);
    if (s0 == s1)
        return;
    for (int32_t mask = 0; mask < j->n_masks; mask++)
        each_panel(j, mask, s0, s1, gemv_panel);
    add_bias(j, 0, s0 * WINA_STRIP, s1 * WINA_STRIP);
    if (j->residual)
        add_residual(j, 0, s0 * WINA_STRIP, s1 * WINA_STRIP);
}

/* ---- several tokens ----------------------------------------------------------------------- */

static void prepare_batch(void *arg, int32_t thread, int32_t n_threads) {
    const job *j = arg;
    wina_cpu *c = j->cpu;
    wina_cpu_scratch *s = &c->scratch[thread];
    int32_t n = j->group->n_in;
    int64_t t0, t1;
    wina_threads_share(c->n_tokens, thread, n_threads, &t0, &t1);
    for (int64_t t = t0; t < t1; t++) {
        const float *x = j->in + t * j->in_stride;
        int32_t n_kept = select_inputs(j, s, x, (int32_t)t, j->mask, s->kept);
        c->n_kept[t] = n_kept;
        float *row = c->batch.x + t * c->batch.stride;
        if (n_kept == n) {
            memcpy(row, x, (size_t)n * sizeof *row);
            memset(row + n, 0, (size_t)(c->batch.stride - n) * sizeof *row);
        } else {
            memset(row, 0, (size_t)c->batch.stride * sizeof *row);
            for (int32_t i = 0; i < n_kept; i++)
                row[s->kept[i]] = x[s->kept[i]];
        }
        if (j->by32)
            c->kernels.quantize_row(&c->batch, (int32_t)t, 0);
        if (j->by16)
            c->kernels.quantize_row(&c->batch, (int32_t)t, 1);
    }
}

static void gemm_panel(const job *j, const wina_panel *panel, int32_t mask, int32_t strip0,
                       int32_t strip1, int64_t row0) {
    (void)mask;
    j->cpu->kernels.gemm(panel, &j->cpu->batch, strip0, strip1, j->out + row0, j->out_stride);
}

static void multiply_batch(void *arg, int32_t thread, int32_t n_threads) {
    const job *j = arg;
    int64_t s0, s1;
    wina_threads_share(j->group->n_out / WINA_STRIP, thread, n_threads, &s0, &s1);
    each_panel(j, j->mask, s0, s1, gemm_panel);
    if (j->mask != j->n_masks - 1)
        return;
    for (int32_t t = 0; t < j->cpu->n_tokens && s0 < s1; t++) {
        add_bias(j, t, s0 * WINA_STRIP, s1 * WINA_STRIP);
        if (j->residual)
            add_residual(j, t, s0 * WINA_STRIP, s1 * WINA_STRIP);
    }
}

/* ---- steps -------------------------------------------------------------------------------- */

static void find_kinds(job *j) {
    for (int32_t i = 0; i < j->group->n_panels; i++) {
        const wina_layout *l = j->group->panels[i].layout;
        j->floats |= l->low_bits >= 16;
        j->by32 |= l->low_bits < 16 && l->sub == 32;
        j->by16 |= l->low_bits < 16 && l->sub == 16;
    }
}

static void run(job *j) {
    wina_cpu *c = j->cpu;
    find_kinds(j);
    if (c->n_tokens == 1) {
        for (int32_t mask = 0; mask < j->n_masks; mask++)
            prepare_act(j, mask);
        wina_threads_run(c->threads, multiply_one, j);
        return;
    }
    c->batch.n_tokens = c->n_tokens;
    c->batch.stride = (j->group->n_in + WINA_BLOCK - 1) / WINA_BLOCK * WINA_BLOCK;
    for (j->mask = 0; j->mask < j->n_masks; j->mask++) {
        wina_threads_run(c->threads, prepare_batch, j);
        for (int32_t t = 0; t < c->n_tokens; t++)
            count(j, t, j->mask, c->n_kept[t]);
        wina_threads_run(c->threads, multiply_batch, j);
    }
}

const float *wina_cpu_input(wina_backend *backend, wina_group group) {
    const wina_cpu *c = (const wina_cpu *)backend;
    return group == WINA_GROUP_O ? c->att : group == WINA_GROUP_DOWN ? c->ff : c->h;
}

void wina_cpu_project(wina_backend *backend, int32_t layer, wina_group group) {
    wina_cpu *c = (wina_cpu *)backend;
    const wina_group_weights *g = &backend->model->weights.layers[layer].groups[group];
    job j = {.cpu = c, .group = g, .in_stride = g->n_in, .out_stride = g->n_out};
    j.n_masks = is_sparse(c, c->n_tokens - 1) ? c->rules->n_masks[group] : 1;
    j.rules = wina_rules_get(c->rules, layer, group, 0);
    j.in = wina_cpu_input(backend, group);
    j.residual = group == WINA_GROUP_O || group == WINA_GROUP_DOWN;
    j.out = group == WINA_GROUP_QKV ? c->qkv : group == WINA_GROUP_GATE_UP ? c->gate_up : c->out;
    run(&j);
}

/* The output matrix is a group of one projection that is never sparse. */
static wina_group_weights output_group(const wina_model *model) {
    const wina_weights *w = &model->weights;
    wina_group_weights g = {.n_in = model->config.n_embd,
                            .n_out = w->output.n_rows,
                            .n_projections = 1,
                            .n_panels = 1,
                            .panels = {w->output}};
    g.projections[0] = (wina_projection){.n_rows = model->config.n_vocab,
                                         .row_bits = wina_layout_bits(w->output.layout)};
    return g;
}

void wina_cpu_logits(wina_backend *backend, int32_t from, float *out) {
    wina_cpu *c = (wina_cpu *)backend;
    const wina_config *f = &backend->model->config;
    const wina_group_weights g = output_group(backend->model);
    const int32_t n_all = c->n_tokens;
    for (int32_t begin = from, n; begin < n_all; begin += n) {
        n = n_all - begin < WINA_HEAD_BATCH ? n_all - begin : WINA_HEAD_BATCH;
        for (int32_t t = 0; t < n; t++)
            c->kernels.rms_norm(c->h + (int64_t)t * f->n_embd,
                                c->x + (int64_t)(begin + t) * f->n_embd,
                                backend->model->weights.output_norm, f->n_embd, f->rms_eps);
        c->n_tokens = c->n_dense = n;
        job j = {.cpu = c,
                 .group = &g,
                 .in = c->h,
                 .in_stride = f->n_embd,
                 .out = c->out,
                 .out_stride = g.n_out,
                 .n_masks = 1};
        run(&j);
        for (int32_t t = 0; t < n; t++)
            memcpy(out + (int64_t)(begin - from + t) * f->n_vocab, c->out + (int64_t)t * g.n_out,
                   (size_t)f->n_vocab * sizeof *out);
    }
    c->n_tokens = n_all;
}

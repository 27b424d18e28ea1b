#include "cpu.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../mem.h"
#include "../status.h"

static wina_cpu *cpu_of(wina_backend *b) {
    return (wina_cpu *)b;
}

/* ---- memory ------------------------------------------------------------------------------- */

/* The arena is laid out twice by the same code: first to count (memory NULL), then to place. */
typedef struct layout {
    uint8_t *memory;
    uint64_t n_bytes;
    bool overflow;
} layout;

static void *place(layout *a, uint64_t count, uint64_t size) {
    uint64_t bytes, end;
    if (!wina_mem_mul(count, size, &bytes) || !wina_mem_add(a->n_bytes, bytes + 64, &end)) {
        a->overflow = true;
        return NULL;
    }
    void *p = a->memory ? a->memory + a->n_bytes : NULL;
    a->n_bytes += (bytes + 63) / 64 * 64;
    return p;
}

static void place_quads(layout *a, uint64_t n_in, wina_quads *q) {
    /* Sub-blocks of 16 or more, each padded to fours by at most three entries. */
    uint64_t n_sub = n_in / 16 + 2, n = n_in + 3 * n_sub + 64;
    q->first = place(a, n_sub + 1, sizeof *q->first);
    q->col = place(a, n, 1);
    q->hi = place(a, n, 1);
    q->lo = place(a, n, 1);
    q->x = place(a, n, sizeof *q->x);
    q->scale = place(a, n_sub, sizeof *q->scale);
    q->sum = place(a, n_sub, sizeof *q->sum);
}

static void place_all(wina_cpu *c, layout *a) {
    const wina_config *f = &c->base.model->config;
    const wina_weights *weights = &c->base.model->weights;
    const wina_group_weights *g = weights->layers[0].groups;
    uint64_t b = (uint64_t)c->n_batch, w = (uint64_t)c->n_widest;
    uint64_t n_threads = (uint64_t)c->n_threads;
    const bool by32 = wina_weights_round_by(weights, 32), by16 = wina_weights_round_by(weights, 16);
    c->x = place(a, b * (uint64_t)f->n_embd, sizeof(float));
    c->h = place(a, b * (uint64_t)f->n_embd, sizeof(float));
    /* Attention is over when the feed-forward block begins: they share memory. */
    const uint64_t shared = a->n_bytes;
    c->qkv = place(a, b * (uint64_t)g[WINA_GROUP_QKV].n_out, sizeof(float));
    c->att = place(a, b * (uint64_t)g[WINA_GROUP_O].n_in, sizeof(float));
    const uint64_t attention = a->n_bytes;
    a->n_bytes = shared;
    c->gate_up =
        place(a, b * (uint64_t)wina_weights_widest_out(weights, WINA_GROUP_GATE_UP), sizeof(float));
    a->n_bytes = a->n_bytes > attention ? a->n_bytes : attention;
    c->ff = place(a, b * (uint64_t)wina_weights_widest_in(weights, WINA_GROUP_DOWN), sizeof(float));
    uint64_t vocab = (uint64_t)weights->output.n_rows;
    uint64_t width = (uint64_t)g[WINA_GROUP_O].n_out;
    uint64_t n_out = WINA_HEAD_BATCH * vocab > b * width ? WINA_HEAD_BATCH * vocab : b * width;
    c->out = place(a, n_out, sizeof(float));
    uint64_t n_parts = weights->output.n_parts > 1 ? WINA_PARTS * vocab : vocab;
    const uint64_t router = (uint64_t)weights->layers[0].mixture.router.n_out;
    for (int i = 0; i <= WINA_N_GROUPS; i++) {
        const uint64_t n =
            i < WINA_N_GROUPS ? (uint64_t)wina_weights_widest_out(weights, i) : router;
        n_parts = WINA_PARTS * n > n_parts ? WINA_PARTS * n : n_parts;
    }
    c->parts = place(a, n_parts, sizeof(float));
    if (f->n_expert) {
        c->mixed = place(a, b * (uint64_t)f->n_embd, sizeof(float));
        c->gathered = place(a, b * (uint64_t)f->n_embd, sizeof(float));
        c->router = place(a, b * router, sizeof(float));
        c->chosen = place(a, b * (uint64_t)f->n_expert_used, sizeof(int32_t));
        c->share = place(a, b * (uint64_t)f->n_expert_used, sizeof(float));
        c->visitors = place(a, b, sizeof(int32_t));
    }
    for (int i = 0; i < 2; i++) {
        c->cos[i] = place(a, b * (uint64_t)f->rope_dim / 2, sizeof(float));
        c->sin[i] = place(a, b * (uint64_t)f->rope_dim / 2, sizeof(float));
    }
    uint64_t chunks = (uint64_t)c->n_ctx / WINA_ATTENTION_CHUNK + 1;
    c->partial =
        place(a, (uint64_t)f->n_head * chunks * ((uint64_t)f->head_dim + 2), sizeof(float));
    for (int i = 0; i < WINA_MAX_PROJECTIONS; i++) {
        c->kept[i] = place(a, w, sizeof(int32_t));
        place_quads(a, by32 ? w : 0, &c->acts[i].by32);
        place_quads(a, by16 ? w : 0, &c->acts[i].by16);
    }
    c->n_kept = place(a, b, sizeof(int32_t));
    c->batch.stride = c->n_widest;
    c->batch.x = place(a, b * w, sizeof(float));
    for (int i = 0; i < 2; i++) {
        const uint64_t n = (i ? by16 : by32) ? b * w : 0;
        c->batch.hi[i] = place(a, n, 1);
        c->batch.lo[i] = place(a, n, 1);
        c->batch.x16[i] = place(a, n, sizeof(int16_t));
        c->batch.scale[i] = place(a, n / 16, sizeof(float));
        c->batch.sum[i] = place(a, n / 16, sizeof(int32_t));
    }
    for (uint64_t i = 0; i < n_threads; i++) {
        wina_cpu_scratch none = {0}, *s = a->memory ? &c->scratch[i] : &none;
        s->score = place(a, w, sizeof(float));
        s->bits = place(a, w, sizeof(uint32_t));
        s->kept = place(a, w, sizeof(int32_t));
        s->attention =
            place(a, (uint64_t)WINA_ATTENTION_QUERIES * WINA_ATTENTION_CHUNK, sizeof(float));
        s->parts =
            place(a, WINA_ATTENTION_QUERIES * chunks * ((uint64_t)f->head_dim + 2), sizeof(float));
        s->tile = place(a, (uint64_t)c->tile_rows * (uint64_t)f->head_dim, sizeof(float));
        s->part_sums = place(a, WINA_GEMM_STRIPS * b * WINA_STRIP, sizeof(float));
    }
}

/* Sizes that everything else follows from; the cache is not placed in the arena, since its pages
 * are taken as the context fills. */
static int32_t plan(wina_cpu *c, const wina_model *model, const wina_backend_params *p, layout *a) {
    const int32_t rows = WINA_ATTENTION_TILE / model->config.head_dim / 8 * 8;
    c->base.model = model;
    c->n_ctx = p->n_ctx;
    c->n_batch = p->n_batch;
    c->n_threads = p->n_threads;
    c->tile_rows = rows < 8 ? 8 : rows > 64 ? 64 : rows;
    for (int g = 0; g < WINA_N_GROUPS; g++) {
        int32_t n = wina_weights_widest_in(&model->weights, g);
        c->n_widest = n > c->n_widest ? n : c->n_widest;
    }
    c->n_widest = (c->n_widest + WINA_BLOCK - 1) / WINA_BLOCK * WINA_BLOCK;
    WINA_TRY(wina_kvcache_plan(model, p, &c->cache));
    place_all(c, a);
    if (a->overflow)
        return wina_fail(WINA_E_ARGUMENT, "n_ctx %d is too large", c->n_ctx);
    return WINA_OK;
}

int32_t wina_cpu_backend_plan(const wina_model *model, const wina_backend_params *params,
                              uint64_t *cache_bytes, uint64_t *buffer_bytes) {
    const uint64_t vocab = (uint64_t)model->weights.output.n_rows;
    const uint64_t width = (uint64_t)params->n_batch * (uint64_t)model->config.n_embd;
    wina_cpu c = {0};
    layout a = {0};
    const int32_t status = plan(&c, model, params, &a);
    *cache_bytes = c.cache.n_bytes;
    *buffer_bytes = a.n_bytes;
    /* Logits of one token are wanted at a time: the other rows of `out` are never touched, but for
     * huge pages that reach into them. */
    const uint64_t used = width > vocab ? width : vocab;
    const uint64_t untouched =
        WINA_HEAD_BATCH * vocab > used ? (WINA_HEAD_BATCH * vocab - used) * sizeof(float) : 0;
    if (untouched > WINA_MEM_HUGE_PAGE)
        *buffer_bytes -= untouched - WINA_MEM_HUGE_PAGE;
    wina_kvcache_free(&c.cache);
    return status;
}

static void cpu_free(wina_backend *b) {
    wina_cpu *c = cpu_of(b);
    wina_threads_free(c->threads);
    wina_mem_free_big(c->arena, c->arena_bytes);
    wina_kvcache_free(&c->cache);
    wina_columns_free(c->columns);
    free(c->scratch);
    free(c);
}

/* ---- simple steps ------------------------------------------------------------------------- */

/* Angles of one token; `windowed` says for which layers. */
static void fill_angles(wina_cpu *c, int32_t t, bool windowed) {
    const wina_config *f = &c->base.model->config;
    const wina_weights *w = &c->base.model->weights;
    const bool is_long = f->n_ctx_short && c->n_ctx > f->n_ctx_short;
    const float *factors = is_long ? w->rope_factors_long : w->rope_factors;
    const double theta = (double)(windowed ? f->rope_theta_window : f->rope_theta);
    /* A second base comes with positions as they are. */
    const bool plain = windowed && f->rope_theta_window != f->rope_theta;
    const double scale = plain ? 1.0 : (double)f->rope_scale;
    for (int32_t i = 0; i < f->rope_dim / 2; i++) {
        double rate = pow(theta, -2.0 * i / f->rope_dim);
        double angle = (double)(c->pos + t) * scale * rate;
        if (factors)
            angle /= (double)factors[i];
        c->cos[windowed][t * f->rope_dim / 2 + i] = (float)cos(angle) * f->rope_gain;
        c->sin[windowed][t * f->rope_dim / 2 + i] = (float)sin(angle) * f->rope_gain;
    }
}

static void begin(wina_backend *b, const int32_t *tokens, int32_t n_tokens, int32_t pos,
                  int32_t n_dense, const wina_rules *rules) {
    wina_cpu *c = cpu_of(b);
    const wina_config *f = &b->model->config;
    c->n_tokens = n_tokens;
    c->pos = pos;
    c->n_dense = n_dense;
    c->rules = rules;
    c->members = NULL;
    b->status = WINA_OK;
    b->counters = (wina_counters){0};
    wina_kvcache_begin(&c->cache, f->n_layer, pos, n_tokens);
    for (int32_t t = 0; t < n_tokens; t++) {
        float *x = c->x + (int64_t)t * f->n_embd;
        wina_weights_embed(&b->model->weights, tokens[t], x);
        for (int32_t i = 0; i < f->n_embd && f->embd_scale != 1.0f; i++)
            x[i] *= f->embd_scale;
        fill_angles(c, t, false);
        if (f->window)
            fill_angles(c, t, true);
    }
    /* A table in the file is read a row here and there, and every row brings its neighbours. */
    c->n_embedded += n_tokens;
    if (b->model->weights.token_embd && c->n_embedded >= WINA_EMBEDDED) {
        wina_gguf_release(b->model->gguf, b->model->weights.token_embd);
        c->n_embedded = 0;
    }
}

typedef struct norm_job {
    wina_cpu *cpu;
    const float *gain;
} norm_job;

static void norm_tokens(void *arg, int32_t thread, int32_t n_threads) {
    const norm_job *j = arg;
    const wina_cpu *c = j->cpu;
    const wina_config *f = &c->base.model->config;
    int64_t begin, end;
    wina_threads_share(c->n_tokens, thread, n_threads, &begin, &end);
    for (int64_t t = begin; t < end; t++)
        c->kernels.rms_norm(c->h + t * f->n_embd, c->x + t * f->n_embd, j->gain, f->n_embd,
                            f->rms_eps);
}

static void norm(wina_cpu *c, const float *gain) {
    norm_job j = {c, gain};
    if (!gain) {
        memcpy(c->h, c->x,
               (size_t)c->n_tokens * (size_t)c->base.model->config.n_embd * sizeof *c->h);
        return;
    }
    if (c->n_tokens == 1)
        norm_tokens(&j, 0, 1);
    else
        wina_threads_run(c->threads, norm_tokens, &j);
}

static void attn_norm(wina_backend *b, int32_t layer) {
    norm(cpu_of(b), b->model->weights.layers[layer].attn_norm);
}

static void ffn_norm(wina_backend *b, int32_t layer) {
    norm(cpu_of(b), b->model->weights.layers[layer].ffn_norm);
}

typedef struct leave_job {
    wina_cpu *cpu;
    float *add; /* (n_tokens, stride) */
    int64_t stride;
    const float *gain;
} leave_job;

static void leave_tokens(void *arg, int32_t thread, int32_t n_threads) {
    const leave_job *j = arg;
    wina_cpu *c = j->cpu;
    const wina_config *f = &c->base.model->config;
    int64_t begin, end;
    wina_threads_share(c->n_tokens, thread, n_threads, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        float *add = j->add + t * j->stride;
        if (j->gain) {
            float *normed = c->h + t * f->n_embd; /* no longer needed */
            c->kernels.rms_norm(normed, add, j->gain, f->n_embd, f->rms_eps);
            add = normed;
        }
        for (int32_t i = 0; i < f->n_embd && f->residual_scale != 1.0f; i++)
            add[i] *= f->residual_scale;
        c->kernels.add(c->x + t * f->n_embd, add, f->n_embd);
    }
}

void wina_cpu_add_block(wina_cpu *c, int32_t layer, wina_site site, float *add, int64_t stride) {
    leave_job j = {c, add, stride, c->base.model->weights.layers[layer].exit_norms[site]};
    if (c->n_tokens > 1)
        wina_threads_run(c->threads, leave_tokens, &j);
    else
        leave_tokens(&j, 0, 1);
}

void wina_cpu_leave(wina_cpu *c, int32_t layer, wina_group group) {
    const wina_group_weights *g = &c->base.model->weights.layers[layer].groups[group];
    if (c->n_tokens == 1)
        wina_cpu_join_parts(c, g, 0, g->n_out, c->out);
    wina_cpu_add_block(c, layer, group == WINA_GROUP_O ? WINA_SITE_ATTN : WINA_SITE_FFN, c->out,
                       g->n_out);
}

typedef struct swiglu_job {
    wina_cpu *cpu;
    const wina_group_weights *group;
} swiglu_job;

typedef void (*activation_fn)(float *y, const float *gate, const float *up, int32_t n);

static activation_fn activation(const wina_cpu *c) {
    const bool gelu = c->base.model->config.arch->activation == WINA_ACT_GELU;
    return gelu ? c->kernels.geglu : c->kernels.swiglu;
}

/* One token: rows are shared; the parts of gate and up are joined on the way. */
static void swiglu_rows(void *arg, int32_t thread, int32_t n_threads) {
    const swiglu_job *j = arg;
    wina_cpu *c = j->cpu;
    const int32_t n = j->group->projections[0].n_rows, up = j->group->projections[1].row0;
    int64_t begin, end;
    wina_threads_share((n + WINA_STRIP - 1) / WINA_STRIP, thread, n_threads, &begin, &end);
    begin *= WINA_STRIP, end *= WINA_STRIP;
    end = end < n ? end : n;
    if (begin >= end)
        return;
    float *gate = c->gate_up + begin;
    wina_cpu_join_parts(c, j->group, begin, end, gate);
    wina_cpu_join_parts(c, j->group, up + begin, up + end, gate + up);
    activation(c)(c->ff + begin, gate, gate + up, (int32_t)(end - begin));
}

static void swiglu_tokens(void *arg, int32_t thread, int32_t n_threads) {
    const swiglu_job *j = arg;
    wina_cpu *c = j->cpu;
    const int32_t n = j->group->projections[0].n_rows;
    int64_t begin, end;
    wina_threads_share(c->n_tokens, thread, n_threads, &begin, &end);
    for (int64_t t = begin; t < end; t++) {
        const float *gate = c->gate_up + t * j->group->n_out;
        activation(c)(c->ff + t * n, gate, gate + j->group->projections[1].row0, n);
    }
}

void wina_cpu_activate(wina_cpu *c, const wina_group_weights *gate_up) {
    swiglu_job j = {c, gate_up};
    wina_threads_run(c->threads, c->n_tokens == 1 ? swiglu_rows : swiglu_tokens, &j);
}

static void swiglu(wina_backend *b, int32_t layer) {
    wina_cpu_activate(cpu_of(b), &b->model->weights.layers[layer].groups[WINA_GROUP_GATE_UP]);
}

static void hidden(wina_backend *b, float *out) {
    wina_cpu *c = cpu_of(b);
    const wina_config *f = &b->model->config;
    for (int64_t t = 0; t < c->n_tokens; t++)
        c->kernels.rms_norm(out + t * f->n_embd, c->x + t * f->n_embd,
                            b->model->weights.output_norm, f->n_embd, f->rms_eps);
}

static void copy_cache(wina_backend *b, int32_t layer, int32_t head, bool value, int32_t pos,
                       int32_t n, void *rows, bool to_cache) {
    const wina_cpu *c = cpu_of(b);
    uint8_t *other = rows;
    for (int32_t done = 0, some; done < n; done += some) {
        uint8_t *own = wina_kvcache_at(&c->cache, c->n_ctx, layer, head, value, pos + done, &some);
        some = some < n - done ? some : n - done;
        const uint64_t n_bytes = (uint64_t)some * c->cache.row_bytes[value];
        memcpy(to_cache ? own : other, to_cache ? other : own, n_bytes);
        other += n_bytes;
    }
}

static int32_t cache_rows(const wina_backend *b, int32_t layer) {
    return ((const wina_cpu *)b)->cache.layers[layer].n_rows;
}

static int32_t held_from(const wina_backend *b) {
    return ((const wina_cpu *)b)->cache.held_from;
}

static void set_held_from(wina_backend *b, int32_t pos) {
    cpu_of(b)->cache.held_from = pos;
}

static const float *residual(wina_backend *b) {
    return cpu_of(b)->x;
}

static void rope_store(wina_backend *b, int32_t layer) {
    if (!cpu_of(b)->members)
        wina_cpu_rope_store(b, layer);
}

static void attend(wina_backend *b, int32_t layer) {
    if (cpu_of(b)->members)
        wina_cpu_attend_members(cpu_of(b), layer);
    else
        wina_cpu_attend(b, layer);
}

static const wina_backend_ops CPU_OPS = {
    .name = "cpu",
    .free = cpu_free,
    .begin = begin,
    .rotate = wina_cpu_rotate,
    .attn_norm = attn_norm,
    .ffn_norm = ffn_norm,
    .project = wina_cpu_project,
    .input = wina_cpu_input,
    .rope_store = rope_store,
    .attend = attend,
    .swiglu = swiglu,
    .experts = wina_cpu_experts,
    .residual = residual,
    .logits = wina_cpu_logits,
    .hidden = hidden,
    .copy_cache = copy_cache,
    .cache_rows = cache_rows,
    .begin_members = wina_cpu_begin_members,
    .logits_members = wina_cpu_logits_members,
    .held_from = held_from,
    .set_held_from = set_held_from,
};

int32_t wina_cpu_backend_create(const wina_model *model, const wina_backend_params *params,
                                wina_backend **out) {
    *out = NULL;
    wina_cpu *c = NULL;
    WINA_TRY(wina_mem_create(1, sizeof *c, "session", &c));
    c->base.ops = &CPU_OPS;
    layout a = {0};
    int32_t status = wina_kernels_detect(&c->kernels);
    if (status == WINA_OK)
        status = plan(c, model, params, &a);
    if (status == WINA_OK)
        status = wina_threads_create(c->n_threads, &c->threads);
    if (status == WINA_OK)
        status =
            wina_mem_create((uint64_t)c->n_threads, sizeof *c->scratch, "session", &c->scratch);
    if (status == WINA_OK)
        status = wina_kvcache_create(&c->cache);
    if (status == WINA_OK)
        status = wina_mem_create_big(a.n_bytes, "session buffers", &c->arena);
    if (status == WINA_OK && model->resident)
        status = wina_columns_create(model, (uint64_t)model->resident, &c->columns);
    if (status != WINA_OK) {
        cpu_free(&c->base);
        return status;
    }
    c->arena_bytes = a.n_bytes;
    c->base.n_bytes = a.n_bytes + c->cache.n_bytes;
    place_all(c, &(layout){.memory = c->arena});
    *out = &c->base;
    return WINA_OK;
}

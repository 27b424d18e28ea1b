#include "chain.h"

#include <stdlib.h>

#include "cuda/plugin.h"
#include "mem.h"
#include "status.h"

enum { MAX_PARTS = WINA_MAX_GPUS + 1 };

typedef struct part {
    wina_backend *backend;
    int32_t first; /* layer */
    bool recorded; /* runs its layers by itself in this batch */
} part;

typedef struct chain {
    wina_backend base;
    int32_t n_parts;
    part parts[MAX_PARTS];
    int32_t entered; /* parts that have begun on the batch under way */
} chain;

static chain *chain_of(wina_backend *b) {
    return (chain *)b;
}

static void chain_free(wina_backend *b) {
    chain *c = chain_of(b);
    for (int32_t i = 0; i < c->n_parts; i++)
        c->parts[i].backend->ops->free(c->parts[i].backend);
    free(c);
}

static void take_status(chain *c, const part *p) {
    if (c->base.status == WINA_OK)
        c->base.status = p->backend->status;
}

static void start_part(chain *c, part *p) {
    wina_backend *b = p->backend;
    p->recorded = b->ops->recorded && b->ops->recorded(b);
    c->entered++;
}

static void begin(wina_backend *b, const int32_t *tokens, int32_t n_tokens, int32_t pos,
                  int32_t n_dense, const wina_rules *rules) {
    chain *c = chain_of(b);
    b->status = WINA_OK;
    b->late = false;
    b->counters = (wina_counters){0};
    c->entered = 0;
    for (int32_t i = c->n_parts; i-- > 0;) { /* the first part's GPU is the current one then */
        part *p = &c->parts[i];
        p->backend->tapped = b->tapped;
        p->backend->ops->begin(p->backend, tokens, n_tokens, pos, n_dense, rules);
        take_status(c, p);
    }
    start_part(c, &c->parts[0]);
}

/* The backend that has a layer and is to be told of it, or NULL. */
static wina_backend *has_layer(wina_backend *b, int32_t layer) {
    chain *c = chain_of(b);
    if (c->entered < c->n_parts && layer == c->parts[c->entered].first) {
        const part *before = &c->parts[c->entered - 1];
        part *p = &c->parts[c->entered];
        const float *x = before->backend->ops->residual(before->backend);
        take_status(c, before);
        p->backend->ops->enter(p->backend, x);
        start_part(c, p);
    }
    const part *p = &c->parts[c->entered - 1];
    return p->recorded || b->status != WINA_OK ? NULL : p->backend;
}

static void rotate(wina_backend *b, int32_t layer, wina_site site) {
    wina_backend *p = has_layer(b, layer);
    if (p && p->ops->rotate)
        p->ops->rotate(p, layer, site);
}

static void attn_norm(wina_backend *b, int32_t layer) {
    wina_backend *p = has_layer(b, layer);
    if (p)
        p->ops->attn_norm(p, layer);
}

static void ffn_norm(wina_backend *b, int32_t layer) {
    wina_backend *p = has_layer(b, layer);
    if (p)
        p->ops->ffn_norm(p, layer);
}

static void project(wina_backend *b, int32_t layer, wina_group group) {
    wina_backend *p = has_layer(b, layer);
    if (p)
        p->ops->project(p, layer, group);
}

/* Of the layer whose norm was the last step: its part has begun. */
static const float *input(wina_backend *b, wina_group group) {
    chain *c = chain_of(b);
    const part *p = &c->parts[c->entered - 1];
    const float *x = b->status == WINA_OK ? p->backend->ops->input(p->backend, group) : NULL;
    take_status(c, p);
    return x;
}

static void rope_store(wina_backend *b, int32_t layer) {
    wina_backend *p = has_layer(b, layer);
    if (p)
        p->ops->rope_store(p, layer);
}

static void attend(wina_backend *b, int32_t layer) {
    wina_backend *p = has_layer(b, layer);
    if (p)
        p->ops->attend(p, layer);
}

static void swiglu(wina_backend *b, int32_t layer) {
    wina_backend *p = has_layer(b, layer);
    if (p)
        p->ops->swiglu(p, layer);
}

static void logits(wina_backend *b, int32_t from, float *out) {
    chain *c = chain_of(b);
    const part *last = &c->parts[c->n_parts - 1];
    if (b->status == WINA_OK)
        last->backend->ops->logits(last->backend, from, out);
    for (int32_t i = 0; i < c->n_parts; i++) {
        const wina_counters *n = &c->parts[i].backend->counters;
        b->counters.sparse_read += n->sparse_read;
        b->counters.sparse_total += n->sparse_total;
        b->counters.token_bytes += n->token_bytes;
        take_status(c, &c->parts[i]);
    }
    b->late = last->backend->late;
}

static void fetch_logits(wina_backend *b, float *out) {
    chain *c = chain_of(b);
    const part *last = &c->parts[c->n_parts - 1];
    last->backend->ops->fetch_logits(last->backend, out);
    take_status(c, last);
    b->late = last->backend->late;
}

static const wina_best *best(wina_backend *b) {
    const part *last = &chain_of(b)->parts[chain_of(b)->n_parts - 1];
    return last->backend->ops->best(last->backend);
}

static wina_backend *part_of(wina_backend *b, int32_t layer) {
    chain *c = chain_of(b);
    int32_t i = c->n_parts - 1;
    while (i > 0 && layer < c->parts[i].first)
        i--;
    return c->parts[i].backend;
}

static void copy_cache(wina_backend *b, int32_t layer, int32_t head, bool value, int32_t pos,
                       int32_t n, void *rows, bool to_cache) {
    wina_backend *p = part_of(b, layer);
    if (b->status != WINA_OK)
        return;
    p->status = WINA_OK;
    p->ops->copy_cache(p, layer, head, value, pos, n, rows, to_cache);
    b->status = p->status;
}

static int32_t cache_rows(const wina_backend *b, int32_t layer) {
    const wina_backend *p = part_of((wina_backend *)(uintptr_t)b, layer);
    return p->ops->cache_rows(p, layer);
}

/* A part without layers that have a window has all positions. */
static int32_t held_from(const wina_backend *b) {
    const chain *c = (const chain *)b;
    int32_t pos = 0;
    for (int32_t i = 0; i < c->n_parts; i++) {
        const wina_backend *p = c->parts[i].backend;
        const int32_t own = p->ops->held_from(p);
        pos = own > pos ? own : pos;
    }
    return pos;
}

static void set_held_from(wina_backend *b, int32_t pos) {
    for (int32_t i = 0; i < chain_of(b)->n_parts; i++) {
        wina_backend *p = chain_of(b)->parts[i].backend;
        p->ops->set_held_from(p, pos);
    }
}

static void hidden(wina_backend *b, float *out) {
    chain *c = chain_of(b);
    const part *last = &c->parts[c->n_parts - 1];
    last->backend->ops->hidden(last->backend, out);
    take_status(c, last);
}

static const wina_backend_ops CHAIN_OPS = {
    .name = "chain",
    .free = chain_free,
    .begin = begin,
    .rotate = rotate,
    .attn_norm = attn_norm,
    .ffn_norm = ffn_norm,
    .project = project,
    .input = input,
    .rope_store = rope_store,
    .attend = attend,
    .swiglu = swiglu,
    .logits = logits,
    .fetch_logits = fetch_logits,
    .best = best,
    .hidden = hidden,
    .copy_cache = copy_cache,
    .cache_rows = cache_rows,
    .held_from = held_from,
    .set_held_from = set_held_from,
};

static void add_part(chain *c, wina_backend *backend, int32_t first) {
    c->parts[c->n_parts++] = (part){.backend = backend, .first = first};
    c->base.n_bytes += backend->n_bytes;
}

static int32_t create_parts(chain *c, const wina_backend_params *p) {
    const wina_model *m = c->base.model;
    wina_backend *b = NULL;
    if (m->cuda_first > 0) {
        WINA_TRY(wina_cpu_backend_create(m, p, &b));
        add_part(c, b, 0);
    }
    for (int32_t i = -1; i < WINA_MAX_GPUS - 1; i++) {
        wina_cuda_model *gpu = i < 0 ? m->cuda : m->more_cuda[i];
        if (!gpu)
            break;
        wina_cuda_info info;
        m->cuda_plugin->model_info(gpu, &info);
        WINA_TRY(m->cuda_plugin->backend_create(gpu, p, &b));
        add_part(c, b, info.first);
    }
    return WINA_OK;
}

int32_t wina_chain_create(const wina_model *model, const wina_backend_params *params,
                          wina_backend **out) {
    *out = NULL;
    if (model->cuda_first == 0 && !model->more_cuda[0])
        return model->cuda_plugin->backend_create(model->cuda, params, out);
    chain *c = NULL;
    WINA_TRY(wina_mem_create(1, sizeof *c, "session", &c));
    c->base.ops = &CHAIN_OPS;
    c->base.model = model;
    int32_t status = create_parts(c, params);
    if (status != WINA_OK) {
        chain_free(&c->base);
        return status;
    }
    *out = &c->base;
    return WINA_OK;
}

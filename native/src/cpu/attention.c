/* attention: rotation, the key/value cache, softmax(q k / sqrt(d)) v.
 *
 * Positions are attended to in chunks of a fixed number; a chunk yields its maximum, its sum of
 * exponentials and its weighted values, and chunks are combined in rising order. Rows of the cache
 * become floats a tile at a time, small enough for the first-level cache, for all queries of a head
 * of keys at once: heads that share it, and tokens of a batch. Heads, tokens and chunks are shared
 * among threads; what is added to what never depends on how. */
#include <math.h>
#include <string.h>

#include "cpu.h"

/* Rotates one head in place; cos and sin hold n_rot / 2 values. */
static void rotate(float *x, const float *cos, const float *sin, int32_t n_rot, wina_rope kind) {
    int32_t half = n_rot / 2;
    for (int32_t i = 0; i < half; i++) {
        float *a = kind == WINA_ROPE_INTERLEAVED ? &x[2 * i] : &x[i];
        float *b = kind == WINA_ROPE_INTERLEAVED ? &x[2 * i + 1] : &x[i + half];
        float u = *a, v = *b;
        *a = u * cos[i] - v * sin[i];
        *b = u * sin[i] + v * cos[i];
    }
}

typedef struct job {
    wina_cpu *cpu;
    int32_t layer;
    int32_t first_chunk, n_chunks; /* that the token sees, if there is one only */
} job;

/* One head of q, k or v of one token: heads are numbered through all three. */
static void rope_head(const wina_cpu *c, int32_t layer, int32_t token, int32_t head) {
    const wina_config *f = &c->base.model->config;
    const wina_layer *w = &c->base.model->weights.layers[layer];
    const wina_group_weights *g = &w->groups[WINA_GROUP_QKV];
    const int32_t which = head < f->n_head ? 0 : head < f->n_head + f->n_head_kv ? 1 : 2;
    const int32_t i = which == 0 ? head : (head - f->n_head) % f->n_head_kv;
    const int64_t row0 = g->projections[which].row0 + (int64_t)i * f->head_dim;
    float *x = c->qkv + (int64_t)token * g->n_out + row0;
    const bool done = which < 2 && f->arch->qk_norm == WINA_QK_NORM_ALL; /* see norm_whole */
    if (c->n_tokens == 1 && !c->joined && !done)
        wina_cpu_join_parts(c, g, row0, row0 + f->head_dim, x);
    if (which < 2 && f->arch->qk_norm == WINA_QK_NORM_HEAD)
        c->kernels.rms_norm(x, x, which == 0 ? w->q_norm : w->k_norm, f->head_dim, f->rms_eps);
    if (which < 2 && wina_config_has_rope(f, layer)) {
        const bool windowed = wina_config_has_window(f, layer);
        const int64_t angle = (int64_t)token * f->rope_dim / 2;
        rotate(x, c->cos[windowed] + angle, c->sin[windowed] + angle, f->rope_dim, f->arch->rope);
    }
    if (which == 0)
        return;
    int32_t n_rows;
    void *row = wina_kvcache_at(&c->cache, c->n_ctx, layer, i, which == 2, c->pos + token, &n_rows);
    c->kernels.cache_store[c->cache.types[which - 1]](row, x, f->head_dim);
}

/* Norms of q and k over all heads: before heads are shared among threads. */
static void norm_whole(void *arg, int32_t thread, int32_t n_threads) {
    const job *j = arg;
    const wina_cpu *c = j->cpu;
    const wina_layer *w = &c->base.model->weights.layers[j->layer];
    const wina_group_weights *g = &w->groups[WINA_GROUP_QKV];
    int64_t begin, end;
    wina_threads_share((int64_t)c->n_tokens * 2, thread, n_threads, &begin, &end);
    for (int64_t i = begin; i < end; i++) {
        const wina_projection *p = &g->projections[i % 2];
        float *x = c->qkv + i / 2 * g->n_out + p->row0;
        if (c->n_tokens == 1 && !c->joined)
            wina_cpu_join_parts(c, g, p->row0, p->row0 + p->n_rows, x);
        c->kernels.rms_norm(x, x, i % 2 == 0 ? w->q_norm : w->k_norm, p->n_rows,
                            c->base.model->config.rms_eps);
    }
}

static void rope_heads(void *arg, int32_t thread, int32_t n_threads) {
    const job *j = arg;
    const wina_cpu *c = j->cpu;
    const int32_t n_heads = c->base.model->config.n_head + 2 * c->base.model->config.n_head_kv;
    int64_t begin, end;
    wina_threads_share((int64_t)c->n_tokens * n_heads, thread, n_threads, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        rope_head(c, j->layer, (int32_t)(i / n_heads), (int32_t)(i % n_heads));
}

void wina_cpu_rope_store(wina_backend *backend, int32_t layer) {
    wina_cpu *c = (wina_cpu *)backend;
    job j = {.cpu = c, .layer = layer};
    if (backend->model->config.arch->qk_norm == WINA_QK_NORM_ALL)
        wina_threads_run(c->threads, norm_whole, &j);
    wina_threads_run(c->threads, rope_heads, &j);
}

/* Joins the chunks of one head, in order, and normalises. parts: (n_chunks, head_dim + 2). */
static void join_chunks(const wina_cpu *c, float *out, const float *parts, int32_t n_chunks) {
    const int32_t head_dim = c->base.model->config.head_dim;
    const float *p = parts;
    float max = p[head_dim];
    for (int32_t i = 1; i < n_chunks; i++) {
        float m = parts[(int64_t)i * (head_dim + 2) + head_dim];
        max = m > max ? m : max;
    }
    float sum = 0.0f;
    memset(out, 0, (size_t)head_dim * sizeof *out);
    for (int32_t i = 0; i < n_chunks; i++, p += head_dim + 2) {
        const float w = p[head_dim] == max ? 1.0f : expf(p[head_dim] - max);
        sum = fmaf(w, p[head_dim + 1], sum);
        c->kernels.attend_add(out, &w, p, head_dim, head_dim, 1);
    }
    for (int32_t d = 0; d < head_dim; d++)
        out[d] /= sum;
}

/* The first position that a token sees. */
static int32_t first_seen(const job *j, int32_t token) {
    const wina_config *f = &j->cpu->base.model->config;
    const int32_t n = j->cpu->pos + token + 1;
    return wina_config_has_window(f, j->layer) && n > f->window ? n - f->window : 0;
}

/* Chunks are the same for all tokens; a window only cuts the first of them. */
static int32_t count_chunks(const job *j, int32_t token, int32_t *first) {
    const int32_t n = j->cpu->pos + token + 1;
    *first = first_seen(j, token) / WINA_ATTENTION_CHUNK;
    return (n + WINA_ATTENTION_CHUNK - 1) / WINA_ATTENTION_CHUNK - *first;
}

/* What one head of one token does with a chunk. */
typedef struct query {
    const float *q;     /* (head_dim) */
    float *scores;      /* (WINA_ATTENTION_CHUNK) */
    float *part;        /* (head_dim + 2): weighted values, maximum, sum of exponentials */
    int32_t begin, end; /* positions it sees in the chunk; begin >= end: none */
} query;

static query make_query(const job *j, wina_cpu_scratch *s, int32_t i, int32_t token, int32_t head,
                        int32_t chunk, float *part) {
    const wina_config *f = &j->cpu->base.model->config;
    const wina_group_weights *g = &j->cpu->base.model->weights.layers[j->layer].groups[0];
    const int32_t n = j->cpu->pos + token + 1, seen = first_seen(j, token);
    const int32_t begin = chunk * WINA_ATTENTION_CHUNK, end = begin + WINA_ATTENTION_CHUNK;
    return (query){.q = j->cpu->qkv + (int64_t)token * g->n_out + (int64_t)head * f->head_dim,
                   .scores = s->attention + (int64_t)i * WINA_ATTENTION_CHUNK,
                   .part = part,
                   .begin = begin > seen ? begin : seen,
                   .end = end < n ? end : n};
}

/* The tile of rows that begins at a position: floats, and how many rows before `end` they are. */
static const float *load_tile(const job *j, wina_cpu_scratch *s, int32_t kv_head, bool value,
                              int32_t at, int32_t end, int32_t *n) {
    const wina_cpu *c = j->cpu;
    int32_t n_rows;
    const void *rows = wina_kvcache_at(&c->cache, c->n_ctx, j->layer, kv_head, value, at, &n_rows);
    *n = n_rows < c->tile_rows ? n_rows : c->tile_rows;
    *n = end - at < *n ? end - at : *n;
    const int32_t type = c->cache.types[value];
    if (type == WINA_CACHE_F32)
        return rows;
    c->kernels.cache_load[type](s->tile, rows, c->base.model->config.head_dim, *n);
    return s->tile;
}

/* Queries of one head of keys and values, over one chunk. */
static void attend_chunk(const job *j, wina_cpu_scratch *s, int32_t kv_head, int32_t chunk,
                         const query *queries, int32_t n_queries) {
    const wina_cpu *c = j->cpu;
    const wina_config *f = &c->base.model->config;
    const int32_t chunk0 = chunk * WINA_ATTENTION_CHUNK;
    int32_t begin = INT32_MAX, end = 0;
    for (const query *q = queries; q < queries + n_queries; q++)
        if (q->begin < q->end) {
            begin = q->begin < begin ? q->begin : begin;
            end = q->end > end ? q->end : end;
        }
    for (int pass = 0; pass < 2; pass++) { /* scores from keys, then sums of values */
        for (int32_t at = begin, n; at < end; at += n) {
            const float *tile = load_tile(j, s, kv_head, pass == 1, at, end, &n);
            for (const query *q = queries; q < queries + n_queries; q++) {
                const int32_t a = at > q->begin ? at : q->begin;
                const int32_t b = at + n < q->end ? at + n : q->end;
                const float *rows = tile + (int64_t)(a - at) * f->head_dim;
                if (a < b && pass == 0)
                    c->kernels.attend_dots(q->q, rows, f->head_dim, b - a, f->attn_scale,
                                           q->scores + a - chunk0);
                else if (a < b)
                    c->kernels.attend_add(q->part, q->scores + a - chunk0, rows, f->head_dim,
                                          f->head_dim, b - a);
            }
        }
        for (const query *q = queries; q < queries + n_queries && pass == 0; q++) {
            if (q->begin >= q->end)
                continue;
            float *scores = q->scores + q->begin - chunk0;
            const int32_t n = q->end - q->begin;
            for (int32_t i = 0; i < n && f->attn_softcap > 0; i++)
                scores[i] = f->attn_softcap * tanhf(scores[i] / f->attn_softcap);
            q->part[f->head_dim] = c->kernels.softmax_part(scores, n, &q->part[f->head_dim + 1]);
            memset(q->part, 0, (size_t)f->head_dim * sizeof *q->part);
        }
    }
}

/* One token: its (head of keys, chunk, head) triples are shared. */
static void attend_one(void *arg, int32_t thread, int32_t n_threads) {
    const job *j = arg;
    const wina_config *f = &j->cpu->base.model->config;
    wina_cpu_scratch *s = &j->cpu->scratch[thread];
    const int32_t n_shared = f->n_head / f->n_head_kv;
    int64_t begin, end;
    wina_threads_share((int64_t)f->n_head * j->n_chunks, thread, n_threads, &begin, &end);
    while (begin < end) {
        const int32_t kv_head = (int32_t)(begin / n_shared / j->n_chunks);
        const int32_t chunk = (int32_t)(begin / n_shared % j->n_chunks);
        query queries[WINA_ATTENTION_QUERIES];
        int32_t n = 0;
        do {
            const int32_t head = kv_head * n_shared + (int32_t)(begin % n_shared);
            float *part =
                j->cpu->partial + ((int64_t)head * j->n_chunks + chunk) * (f->head_dim + 2);
            queries[n] = make_query(j, s, n, 0, head, j->first_chunk + chunk, part);
            n++, begin++;
        } while (begin < end && begin % n_shared != 0 && n < WINA_ATTENTION_QUERIES);
        attend_chunk(j, s, kv_head, j->first_chunk + chunk, queries, n);
    }
}

static void join_heads(void *arg, int32_t thread, int32_t n_threads) {
    const job *j = arg;
    const wina_config *f = &j->cpu->base.model->config;
    int64_t begin, end;
    wina_threads_share(f->n_head, thread, n_threads, &begin, &end);
    for (int64_t head = begin; head < end; head++)
        join_chunks(j->cpu, j->cpu->att + head * f->head_dim,
                    j->cpu->partial + head * j->n_chunks * (f->head_dim + 2), j->n_chunks);
}

/* Heads [head0, head0 + n_heads) of tokens [t0, t1), which share a head of keys. */
static void attend_block(const job *j, wina_cpu_scratch *s, int32_t t0, int32_t t1, int32_t head0,
                         int32_t n_heads) {
    const wina_config *f = &j->cpu->base.model->config;
    const int64_t width = f->head_dim + 2, room = j->cpu->n_ctx / WINA_ATTENTION_CHUNK + 1;
    const int32_t n = (t1 - t0) * n_heads, kv_head = head0 / (f->n_head / f->n_head_kv);
    int32_t first, last_first;
    count_chunks(j, t0, &first); /* no later token sees an earlier chunk */
    const int32_t end = count_chunks(j, t1 - 1, &last_first) + last_first;
    for (int32_t chunk = first; chunk < end; chunk++) {
        query queries[WINA_ATTENTION_QUERIES];
        for (int32_t i = 0; i < n; i++) {
            int32_t own;
            count_chunks(j, t0 + i / n_heads, &own);
            queries[i] = make_query(j, s, i, t0 + i / n_heads, head0 + i % n_heads, chunk,
                                    s->parts + (i * room + chunk - own) * width);
        }
        attend_chunk(j, s, kv_head, chunk, queries, n);
    }
    for (int32_t i = 0; i < n; i++) {
        const int32_t token = t0 + i / n_heads, n_chunks = count_chunks(j, token, &first);
        join_chunks(j->cpu,
                    j->cpu->att + ((int64_t)token * f->n_head + head0 + i % n_heads) * f->head_dim,
                    s->parts + i * room * width, n_chunks);
    }
}

/* Several tokens: blocks of them times heads of keys go round the threads, since later blocks see
 * more. */
static void attend_batch(void *arg, int32_t thread, int32_t n_threads) {
    const job *j = arg;
    const wina_config *f = &j->cpu->base.model->config;
    const int32_t n_shared = f->n_head / f->n_head_kv;
    const int32_t n_heads = n_shared < WINA_ATTENTION_QUERIES ? n_shared : WINA_ATTENTION_QUERIES;
    const int32_t n_tokens = WINA_ATTENTION_QUERIES / n_heads;
    int32_t n = 0;
    for (int32_t t = 0; t < j->cpu->n_tokens; t += n_tokens)
        for (int32_t head = 0; head < f->n_head; head += n_shared)
            for (int32_t i = 0; i < n_shared; i += n_heads, n++) {
                const int32_t end = t + n_tokens, more = n_shared - i;
                if (n % n_threads == thread)
                    attend_block(j, &j->cpu->scratch[thread], t,
                                 end < j->cpu->n_tokens ? end : j->cpu->n_tokens, head + i,
                                 more < n_heads ? more : n_heads);
            }
}

void wina_cpu_attend(wina_backend *backend, int32_t layer) {
    wina_cpu *c = (wina_cpu *)backend;
    job j = {.cpu = c, .layer = layer};
    if (c->n_tokens > 1) {
        wina_threads_run(c->threads, attend_batch, &j);
        return;
    }
    j.n_chunks = count_chunks(&j, 0, &j.first_chunk);
    wina_threads_run(c->threads, attend_one, &j);
    if (j.n_chunks > 1)
        wina_threads_run(c->threads, join_heads, &j);
    else
        join_heads(&j, 0, 1);
}

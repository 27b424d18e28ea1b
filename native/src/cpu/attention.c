/* attention: rotation, the key/value cache, softmax(q k / sqrt(d)) v.
 *
 * Positions are attended to in chunks of a fixed number; a chunk yields its maximum, its sum of
 * exponentials and its weighted values, and chunks are combined in rising order. Heads and chunks
 * are shared among threads; what is added to what never depends on how. */
#include <math.h>
#include <string.h>

#include "cpu.h"

static int64_t head_offset(const wina_cpu *c, int32_t layer, int32_t kv_head) {
    const wina_config *f = &c->base.model->config;
    return ((int64_t)layer * f->n_head_kv + kv_head) * c->n_ctx * f->head_dim;
}

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
    int32_t token;                 /* of the batch, when one token is shared among threads */
    int32_t first_chunk, n_chunks; /* that this token sees */
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
    const int64_t at = head_offset(c, layer, i) + (int64_t)(c->pos + token) * f->head_dim;
    if (which > 0)
        c->kernels.to_f16((which == 1 ? c->k : c->v) + at, x, f->head_dim);
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

/* Attends one head of one token to positions [begin, end): o (head_dim), unnormalised. */
static void attend_chunk(const job *j, wina_cpu_scratch *s, int32_t token, int32_t head,
                         int32_t begin, int32_t end, float *o, float *max, float *sum) {
    wina_cpu *c = j->cpu;
    const wina_config *f = &c->base.model->config;
    const wina_group_weights *g = &c->base.model->weights.layers[j->layer].groups[WINA_GROUP_QKV];
    const float *q = c->qkv + (int64_t)token * g->n_out + (int64_t)head * f->head_dim;
    const int64_t at = head_offset(c, j->layer, head / (f->n_head / f->n_head_kv));
    for (int32_t i = begin; i < end; i++)
        s->attention[i - begin] =
            c->kernels.dot_f16(q, c->k + at + (int64_t)i * f->head_dim, f->head_dim) *
            f->attn_scale;
    for (int32_t i = 0; i < end - begin && f->attn_softcap > 0; i++)
        s->attention[i] = f->attn_softcap * tanhf(s->attention[i] / f->attn_softcap);
    *max = c->kernels.softmax_part(s->attention, end - begin, sum);
    memset(o, 0, (size_t)f->head_dim * sizeof *o);
    for (int32_t i = begin; i < end; i++)
        c->kernels.add_f16(o, s->attention[i - begin], c->v + at + (int64_t)i * f->head_dim,
                           f->head_dim);
}

/* Joins the chunks of one head, in order, and normalises. parts: (n_chunks, head_dim + 2). */
static void join_chunks(float *out, const float *parts, int32_t n_chunks, int32_t head_dim) {
    const float *p = parts;
    float max = p[head_dim];
    for (int32_t i = 1; i < n_chunks; i++) {
        float m = parts[(int64_t)i * (head_dim + 2) + head_dim];
        max = m > max ? m : max;
    }
    float sum = 0.0f;
    memset(out, 0, (size_t)head_dim * sizeof *out);
    for (int32_t i = 0; i < n_chunks; i++, p += head_dim + 2) {
        float w = p[head_dim] == max ? 1.0f : expf(p[head_dim] - max);
        sum = fmaf(w, p[head_dim + 1], sum);
        for (int32_t d = 0; d < head_dim; d++)
            out[d] = fmaf(w, p[d], out[d]);
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

static void attend_piece(const job *j, wina_cpu_scratch *s, int32_t token, int32_t head,
                         int32_t chunk, float *part) {
    const int32_t head_dim = j->cpu->base.model->config.head_dim;
    int32_t n = j->cpu->pos + token + 1, begin = chunk * WINA_ATTENTION_CHUNK;
    const int32_t end = begin + WINA_ATTENTION_CHUNK < n ? begin + WINA_ATTENTION_CHUNK : n;
    const int32_t seen = first_seen(j, token);
    begin = begin > seen ? begin : seen;
    attend_chunk(j, s, token, head, begin, end, part, &part[head_dim], &part[head_dim + 1]);
}

/* One token: (head, chunk) pairs are shared. */
static void attend_one(void *arg, int32_t thread, int32_t n_threads) {
    const job *j = arg;
    const wina_config *f = &j->cpu->base.model->config;
    int64_t begin, end;
    wina_threads_share((int64_t)f->n_head * j->n_chunks, thread, n_threads, &begin, &end);
    for (int64_t i = begin; i < end; i++)
        attend_piece(j, &j->cpu->scratch[thread], 0, (int32_t)(i / j->n_chunks),
                     j->first_chunk + (int32_t)(i % j->n_chunks),
                     j->cpu->partial + i * (f->head_dim + 2));
}

/* Several tokens: heads are shared; a thread's chunks of a head use that head's partial sums. */
static void attend_batch(void *arg, int32_t thread, int32_t n_threads) {
    const job *j = arg;
    wina_cpu *c = j->cpu;
    const wina_config *f = &c->base.model->config;
    const int64_t width = f->head_dim + 2, room = c->n_ctx / WINA_ATTENTION_CHUNK + 1;
    int64_t begin, end;
    wina_threads_share(f->n_head, thread, n_threads, &begin, &end);
    for (int64_t head = begin; head < end; head++) {
        float *parts = c->partial + head * room * width;
        for (int32_t t = 0; t < c->n_tokens; t++) {
            int32_t first, n_chunks = count_chunks(j, t, &first);
            for (int32_t i = 0; i < n_chunks; i++)
                attend_piece(j, &c->scratch[thread], t, (int32_t)head, first + i,
                             parts + i * width);
            join_chunks(c->att + ((int64_t)t * f->n_head + head) * f->head_dim, parts, n_chunks,
                        f->head_dim);
        }
    }
}

void wina_cpu_attend(wina_backend *backend, int32_t layer) {
    wina_cpu *c = (wina_cpu *)backend;
    const wina_config *f = &backend->model->config;
    job j = {.cpu = c, .layer = layer};
    if (c->n_tokens > 1) {
        wina_threads_run(c->threads, attend_batch, &j);
        return;
    }
    j.n_chunks = count_chunks(&j, 0, &j.first_chunk);
    wina_threads_run(c->threads, attend_one, &j);
    for (int32_t head = 0; head < f->n_head; head++)
        join_chunks(c->att + (int64_t)head * f->head_dim,
                    c->partial + (int64_t)head * j.n_chunks * (f->head_dim + 2), j.n_chunks,
                    f->head_dim);
}

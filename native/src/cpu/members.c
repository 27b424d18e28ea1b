/* members: one token of each of several sessions, stepped together by the backend of one of them.
 *
 * Norms, projections and activations do not care whose tokens a batch holds: they run in the
 * buffers of the backend that leads, and share every read of the weights. A member's own are its
 * position, its rule, its counters and its cache: each attends alone, to the bit as it would in a
 * step of its own. */
#include <string.h>

#include "cpu.h"

void wina_cpu_begin_members(wina_backend *backend, const wina_member *members, int32_t n) {
    wina_cpu *c = (wina_cpu *)backend;
    const int64_t n_embd = backend->model->config.n_embd;
    for (int32_t t = 0; t < n; t++) {
        wina_backend *b = members[t].backend;
        b->ops->begin(b, &members[t].token, 1, members[t].pos, 0, members[t].rules);
        if (t > 0) /* the first is the leader */
            memcpy(c->x + t * n_embd, ((const wina_cpu *)b)->x, (size_t)n_embd * sizeof *c->x);
    }
    c->n_tokens = n;
    c->members = members;
}

typedef struct job {
    const wina_cpu *cpu;
    int32_t layer;
} job;

/* One member, as a batch of one token over its row of the common buffers. */
static void attend_member(const job *j, int32_t token, wina_threads *threads) {
    const wina_cpu *c = j->cpu;
    const wina_group_weights *g = c->base.model->weights.layers[j->layer].groups;
    wina_cpu view = *wina_cpu_owner(c, token);
    view.threads = threads;
    view.members = NULL;
    view.n_tokens = 1;
    view.joined = true;
    view.qkv = c->qkv + (int64_t)token * g[WINA_GROUP_QKV].n_out;
    view.att = c->att + (int64_t)token * g[WINA_GROUP_O].n_in;
    wina_cpu_rope_store(&view.base, j->layer);
    wina_cpu_attend(&view.base, j->layer);
}

static void attend_share(void *arg, int32_t thread, int32_t n_threads) {
    const job *j = arg;
    int64_t begin, end;
    wina_threads_share(j->cpu->n_tokens, thread, n_threads, &begin, &end);
    for (int64_t t = begin; t < end; t++)
        attend_member(j, (int32_t)t, wina_threads_solo());
}

void wina_cpu_attend_members(wina_cpu *c, int32_t layer) {
    const int32_t n_threads = wina_threads_count(c->threads);
    job j = {.cpu = c, .layer = layer};
    if (c->n_tokens >= n_threads) {
        wina_threads_run(c->threads, attend_share, &j);
        return;
    }
    /* Fewer members than threads: all threads attend for each, in its scratch. */
    for (int32_t t = 0; t < c->n_tokens; t++) {
        wina_threads *own = wina_cpu_owner(c, t)->threads;
        attend_member(&j, t, wina_threads_count(own) >= n_threads ? c->threads : own);
    }
}

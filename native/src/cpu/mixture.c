/* mixture: the feed-forward block of a layer with experts.
 *
 * Tokens are gathered by expert, so that an expert's weights are read once for all that go through
 * it; experts come in rising order. A token's sum therefore has the same order whatever it is
 * batched with, and the same bits. */
#include <math.h>
#include <string.h>

#include "cpu.h"

/* ---- router ------------------------------------------------------------------------------- */

/* The n_used experts with the largest logits, rising; of equals the lower number. */
static void choose(const float *logits, int32_t n, int32_t n_used, int32_t *chosen) {
    for (int32_t k = 0; k < n_used; k++) {
        int32_t best = -1, at = 0; /* chosen[0 .. k) is rising */
        for (int32_t e = 0; e < n; e++) {
            if (at < k && chosen[at] == e)
                at++;
            else if (best < 0 || logits[e] > logits[best])
                best = e;
        }
        int32_t i = k;
        for (; i > 0 && chosen[i - 1] > best; i--)
            chosen[i] = chosen[i - 1];
        chosen[i] = best;
    }
}

/* share (n_used) = softmax(logits) of the chosen ones, with their sum divided out or not. */
static void weigh(const wina_config *f, const float *logits, const int32_t *chosen, float *share) {
    float top = logits[0];
    for (int32_t e = 1; e < f->n_expert; e++)
        top = logits[e] > top ? logits[e] : top;
    double all = 0, sum = 0;
    for (int32_t e = 0; e < f->n_expert; e++)
        all += exp((double)logits[e] - (double)top);
    for (int32_t i = 0; i < f->n_expert_used; i++)
        sum += exp((double)logits[chosen[i]] - (double)top);
    for (int32_t i = 0; i < f->n_expert_used; i++)
        share[i] =
            (float)(exp((double)logits[chosen[i]] - (double)top) / (f->expert_norm ? sum : all));
}

static void route(wina_cpu *c, const wina_group_weights *router) {
    const wina_config *f = &c->base.model->config;
    wina_cpu_multiply_joined(c, &(wina_cpu_product){.group = router, .in = c->h, .out = c->router});
    for (int64_t t = 0; t < c->n_tokens; t++) {
        const float *logits = c->router + t * router->n_out;
        choose(logits, f->n_expert, f->n_expert_used, c->chosen + t * f->n_expert_used);
        weigh(f, logits, c->chosen + t * f->n_expert_used, c->share + t * f->n_expert_used);
    }
}

/* ---- one expert --------------------------------------------------------------------------- */

/* c->out (c->n_tokens, n_out of down) = the expert's block of in; the tokens are those of the batch
 * under way as far as rules are concerned. */
static void run_expert(wina_cpu *c, int32_t layer, int32_t index, const float *in, bool no_last) {
    const wina_expert *e = &c->base.model->weights.layers[layer].mixture.experts[index];
    wina_cpu_product p = {.group = &e->gate_up,
                          .in = in,
                          .out = c->gate_up,
                          .rules = wina_rules_expert(c->rules, layer, index, WINA_GROUP_GATE_UP, 0),
                          .n_masks = c->rules->n_masks[WINA_GROUP_GATE_UP],
                          .no_last = no_last};
    wina_cpu_multiply(c, &p);
    wina_cpu_activate(c, &e->gate_up);
    p = (wina_cpu_product){.group = &e->down,
                           .in = c->ff,
                           .out = c->out,
                           .rules = wina_rules_expert(c->rules, layer, index, WINA_GROUP_DOWN, 0),
                           .n_masks = c->rules->n_masks[WINA_GROUP_DOWN],
                           .gate = c->gate_up,
                           .gate_stride = e->gate_up.n_out,
                           .no_last = no_last};
    wina_cpu_multiply_joined(c, &p);
}

static void add_share(wina_cpu *c, int64_t token, float *row, float share) {
    const int32_t n = c->base.model->config.n_embd;
    for (int32_t i = 0; i < n; i++)
        row[i] *= share;
    c->kernels.add(c->mixed + token * n, row, n);
}

/* Weight that a token gives an expert, NULL if it does not go through it. */
static const float *share_of(const wina_cpu *c, int64_t token, int32_t expert) {
    const int32_t n = c->base.model->config.n_expert_used;
    for (int64_t i = token * n; i < (token + 1) * n; i++)
        if (c->chosen[i] == expert)
            return &c->share[i];
    return NULL;
}

/* All tokens of the batch that chose an expert. */
static void visit(wina_cpu *c, int32_t layer, int32_t expert) {
    const int32_t n_embd = c->base.model->config.n_embd;
    const int32_t n_all = c->n_tokens, n_dense_all = c->n_dense;
    const int64_t stride = c->base.model->weights.layers[layer].mixture.experts[expert].down.n_out;
    int32_t n = 0, n_dense = 0;
    for (int32_t t = 0; t < n_all; t++)
        if (share_of(c, t, expert)) {
            c->visitors[n++] = t;
            n_dense += t < n_dense_all;
        }
    if (n == 0)
        return;
    for (int32_t i = 0; i < n && n < n_all; i++)
        memcpy(c->gathered + (int64_t)i * n_embd, c->h + (int64_t)c->visitors[i] * n_embd,
               (size_t)n_embd * sizeof *c->h);
    c->n_tokens = n;
    c->n_dense = n_dense;
    run_expert(c, layer, expert, n < n_all ? c->gathered : c->h, c->visitors[n - 1] != n_all - 1);
    c->n_tokens = n_all;
    c->n_dense = n_dense_all;
    for (int32_t i = 0; i < n; i++)
        add_share(c, c->visitors[i], c->out + i * stride, *share_of(c, c->visitors[i], expert));
}

/* ---- all of them -------------------------------------------------------------------------- */

void wina_cpu_experts(wina_backend *backend, int32_t layer) {
    wina_cpu *c = (wina_cpu *)backend;
    const wina_config *f = &backend->model->config;
    const wina_experts_layer *m = &backend->model->weights.layers[layer].mixture;
    memset(c->mixed, 0, (size_t)c->n_tokens * (size_t)f->n_embd * sizeof *c->mixed);
    route(c, &m->router);
    for (int32_t e = 0; e < f->n_expert; e++)
        visit(c, layer, e);
    if (m->n > f->n_expert) {
        run_expert(c, layer, f->n_expert, c->h, false);
        for (int64_t t = 0; t < c->n_tokens; t++) {
            float share = 1;
            if (f->arch->shared == WINA_SHARED_GATED) {
                const int64_t at = t * m->router.n_out + m->router.projections[1].row0;
                share = (float)(1 / (1 + exp(-(double)c->router[at])));
            }
            add_share(c, t, c->out + t * m->experts[f->n_expert].down.n_out, share);
        }
    }
    wina_cpu_add_block(c, layer, WINA_SITE_FFN, c->mixed, f->n_embd);
}

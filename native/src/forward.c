#include "forward.h"

#include "status.h"

/* x += ... or ... = W x: one group, shown to the tap before. */
static void project(wina_backend *b, const wina_forward *f, int32_t layer, wina_group group) {
    const float *x = f->tap ? b->ops->input(b, group) : NULL;
    if (x)
        f->tap(layer, (int32_t)group, x, f->n_tokens,
               b->model->weights.layers[layer].groups[group].n_in, f->tap_user);
    b->ops->project(b, layer, group);
}

/* x = R x where the model has such a matrix. */
static int32_t rotate(wina_backend *b, int32_t layer, wina_site site) {
    if (!b->model->weights.layers[layer].rotations[site].n_panels)
        return WINA_OK;
    if (!b->ops->rotate)
        return wina_fail(WINA_E_UNSUPPORTED, "backend %s cannot run models whose basis changes",
                         b->ops->name);
    b->ops->rotate(b, layer, site);
    return WINA_OK;
}

/* x += down(activated gate * up), of the layer's own matrices or of those its experts have. */
static int32_t feed_forward(wina_backend *b, const wina_forward *f, int32_t layer) {
    if (b->model->weights.layers[layer].mixture.n) {
        if (!b->ops->experts)
            return wina_fail(WINA_E_UNSUPPORTED, "backend %s cannot run mixtures of experts",
                             b->ops->name);
        b->ops->experts(b, layer);
        return WINA_OK;
    }
    project(b, f, layer, WINA_GROUP_GATE_UP);
    b->ops->swiglu(b, layer);
    project(b, f, layer, WINA_GROUP_DOWN);
    return WINA_OK;
}

static int32_t walk_layers(wina_backend *b, const wina_forward *f) {
    const wina_backend_ops *op = b->ops;
    for (int32_t layer = 0; layer < b->model->config.n_layer; layer++) {
        if (atomic_load_explicit(f->cancel, memory_order_relaxed))
            return wina_fail(WINA_E_CANCELLED, "the evaluation was cancelled");
        WINA_TRY(rotate(b, layer, WINA_SITE_ATTN));
        op->attn_norm(b, layer);
        project(b, f, layer, WINA_GROUP_QKV);
        op->rope_store(b, layer);
        op->attend(b, layer);
        project(b, f, layer, WINA_GROUP_O);

        WINA_TRY(rotate(b, layer, WINA_SITE_FFN));
        op->ffn_norm(b, layer);
        WINA_TRY(feed_forward(b, f, layer));
    }
    return WINA_OK;
}

int32_t wina_forward_run(wina_backend *b, const wina_forward *f) {
    const wina_backend_ops *op = b->ops;
    if (f->tap && !op->input)
        return wina_fail(WINA_E_UNSUPPORTED, "activations cannot be seen on backend %s", op->name);
    b->tapped = f->tap != NULL;
    op->begin(b, f->tokens, f->n_tokens, f->pos, f->n_dense, f->rules);
    WINA_TRY(b->status);
    if (!op->recorded || !op->recorded(b))
        WINA_TRY(walk_layers(b, f));
    if (f->hidden && !op->hidden)
        return wina_fail(WINA_E_UNSUPPORTED, "embeddings cannot be read on backend %s: use the CPU",
                         op->name);
    if (f->hidden)
        op->hidden(b, f->hidden);
    op->logits(b, f->logits_from, f->logits);
    return b->status;
}

int32_t wina_forward_run_members(wina_backend *b, const wina_member *members, int32_t n) {
    const atomic_bool never = false; /* a step lasts no longer than a token */
    const wina_forward f = {.n_tokens = n, .cancel = &never};
    b->ops->begin_members(b, members, n);
    WINA_TRY(b->status);
    WINA_TRY(walk_layers(b, &f));
    b->ops->logits_members(b);
    return b->status;
}

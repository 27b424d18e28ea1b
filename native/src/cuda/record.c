/* record: the steps of one token written down as phases of a program, while the graph is walked for
 * the first time. */
#include "decode_state.h"

static wina_cuda_ahead scales_of(const wina_cuda_panel *p) {
    const uint64_t columns = 32 * p->col_bytes;
    if (p->block_bytes == columns)
        return (wina_cuda_ahead){0};
    return (wina_cuda_ahead){.data = p->data,
                             .super_bytes = p->super_bytes,
                             .block_bytes = p->block_bytes,
                             .super_head = p->super_head,
                             .scales_at = (uint32_t)(p->super_head + columns),
                             .scale_bytes = (uint32_t)(p->block_bytes - columns),
                             .n_blocks = (p->n_cols + 31) / 32};
}

static void record(cuda_backend *c, wina_cuda_phase *phase) {
    const int32_t bytes = wina_cuda_plan_phase(phase, c->m->n_sms);
    if (bytes < 0)
        note(c, cudaErrorInvalidConfiguration, "a projection too wide for this GPU");
    c->shared_bytes = bytes > c->shared_bytes ? bytes : c->shared_bytes;
    if (phase->kind == WINA_CUDA_GEMV)
        c->formats |= 1u << phase->u.gemv.panel.format;
    if (c->n_phases > 0 && phase->kind == WINA_CUDA_GEMV)
        c->phases[c->n_phases - 1].next_keep = phase->u.gemv.keep;
    if (c->n_phases > 1 && phase->kind == WINA_CUDA_GEMV)
        c->phases[c->n_phases - 2].ahead = scales_of(&phase->u.gemv.panel);
    if (c->n_phases < c->max_phases)
        c->phases[c->n_phases++] = *phase;
}

/* Norms are the first step of the projection kernels. */ static wina_cuda_gemv
gemv_of(const cuda_backend *c, int32_t layer, wina_group group, int32_t panel, int32_t list) {
    const wina_cuda_layer *l = &c->m->layers[layer];
    const wina_cuda_group *g = &l->groups[group];
    const int32_t slot = wina_cuda_slot(layer, (int32_t)group, list);
    wina_cuda_gemv out = {.panel = g->panels[panel],
                          .eps = c->base.model->config.rms_eps,
                          .norms = c->slot_norms[slot],
                          .keep = c->keep + slot,
                          .hint = c->hints ? c->hints + slot : NULL,
                          .n_kept = c->kept + slot,
                          .overflow = c->kept + overflow_slot(c),
                          .partial = c->partial,
                          .arrived = c->arrived};
    out.n_rows = out.n_valid = out.panel.n_rows;
    out.out_scale = 1.0f;
    wina_cuda_fixed *residual = wina_config_has_exit(&c->base.model->config) ? c->exit : c->x;
    switch (group) {
    case WINA_GROUP_QKV:
        out.fixed_in = c->x, out.gain = l->attn_norm;
        out.sums = c->qkv[layer & 1], out.epilogue = WINA_CUDA_ADD;
        break;
    case WINA_GROUP_O:
        out.in = c->att, out.sums = residual, out.epilogue = WINA_CUDA_ADD;
        break;
    case WINA_GROUP_GATE_UP:
        out.fixed_in = c->x, out.gain = l->ffn_norm, out.out = c->gate_up;
        break;
    case WINA_GROUP_DOWN:
        out.in = c->ff, out.sums = residual, out.epilogue = WINA_CUDA_ADD;
        break;
    }
    if (group == WINA_GROUP_O || group == WINA_GROUP_DOWN)
        out.n_valid = c->base.model->config.n_embd;
    return out;
}

/* gate and up in one panel under one mask: their product is formed in the same kernel. */
static bool is_fused(const cuda_backend *c, int32_t layer) {
    return c->graph == 0 && c->m->layers[layer].groups[WINA_GROUP_GATE_UP].n_panels == 1;
}

static void record_gemv(cuda_backend *c, const wina_cuda_gemv *g, int32_t stage) {
    wina_cuda_phase phase = {.kind = WINA_CUDA_GEMV, .stage = stage, .u.gemv = *g};
    const bool reads_residual = stage == WINA_GROUP_QKV || stage == WINA_GROUP_GATE_UP;
    if (reads_residual && wina_config_has_exit(&c->base.model->config)) {
        phase.zero = c->exit; /* what the block adds was taken before */
        phase.n_zero = c->base.model->config.n_embd;
    }
    record(c, &phase);
}

/* What a block adds to the residual stream, normed or scaled. */
static void record_leave(cuda_backend *c, int32_t layer, wina_group group) {
    const wina_config *f = &c->base.model->config;
    const wina_site site = group == WINA_GROUP_O ? WINA_SITE_ATTN : WINA_SITE_FFN;
    wina_cuda_phase phase = {.kind = WINA_CUDA_LEAVE,
                             .stage = WINA_CUDA_STAGE_ACTIVATE,
                             .u.leave = {.add = c->exit,
                                         .x = c->x,
                                         .gain = c->m->layers[layer].exit_norms[site],
                                         .eps = f->rms_eps,
                                         .scale = f->residual_scale,
                                         .n = f->n_embd,
                                         .overflow = c->kept + overflow_slot(c)}};
    record(c, &phase);
}

static bool uses_gelu(const cuda_backend *c) {
    return c->base.model->config.arch->activation == WINA_ACT_GELU;
}

void wina_cuda_record_project(wina_backend *b, int32_t layer, wina_group group) {
    cuda_backend *c = cuda_of(b);
    const wina_group_weights *w = &b->model->weights.layers[layer].groups[group];

    if (c->batch) {
        note(c, wina_cuda_prompt_project(c->prompt, layer, group), "prompt");
        return;
    }
    if (group == WINA_GROUP_GATE_UP && is_fused(c, layer)) {
        wina_cuda_gemv g = gemv_of(c, layer, group, 0, 0);
        g.up_row0 = w->projections[1].panel_row0;
        g.n_rows = g.up_row0;
        g.n_valid = b->model->config.n_ff;
        g.out = c->ff;
        g.gelu = uses_gelu(c);
        g.epilogue = WINA_CUDA_SWIGLU;
        record_gemv(c, &g, (int32_t)group);
        return;
    }
    const int32_t n = c->graph ? w->n_projections : w->n_panels;
    for (int32_t i = 0; i < n; i++) {
        const wina_projection *p = &w->projections[i];
        wina_cuda_gemv g = gemv_of(c, layer, group, c->graph ? p->panel : i, c->graph ? i : 0);
        int32_t row0 = c->graph ? p->row0 : w->panel_row0[i];
        if (c->graph) {
            g.row0 = p->panel_row0;
            g.n_rows = (p->n_rows + WINA_STRIP - 1) / WINA_STRIP * WINA_STRIP;
            g.n_valid = g.n_valid < g.n_rows ? g.n_valid : g.n_rows;
        }
        if (g.epilogue == WINA_CUDA_ADD)
            g.sums += row0;
        else
            g.out += row0;
        record_gemv(c, &g, (int32_t)group);
    }
    if ((group == WINA_GROUP_O || group == WINA_GROUP_DOWN) &&
        wina_config_has_exit(&b->model->config))
        record_leave(c, layer, group);
}

/* Rotation and the store to the cache are the first step of attention. */ static wina_cuda_attend
describe_attention(const cuda_backend *c) {
    const wina_config *f = &c->base.model->config;
    const wina_group_weights *g = &c->base.model->weights.layers[0].groups[WINA_GROUP_QKV];
    return (wina_cuda_attend){.step = c->step,
                              .qkv_stride = g->n_out,
                              .k_row0 = g->projections[1].row0,
                              .v_row0 = g->projections[2].row0,
                              .n_head = f->n_head,
                              .n_head_kv = f->n_head_kv,
                              .head_dim = f->head_dim,
                              .interleaved = f->arch->rope == WINA_ROPE_INTERLEAVED,
                              .scale = f->attn_scale,
                              .cap = f->attn_softcap,
                              .norm_all = f->arch->qk_norm == WINA_QK_NORM_ALL,
                              .eps = f->rms_eps,
                              .out = c->att,
                              .partial = c->attend_partial,
                              .arrived = c->attend_arrived,
                              .n_splits = c->n_splits,
                              .n_tokens = 1};
}

static void set_layer(const cuda_backend *c, int32_t layer, wina_cuda_attend *a) {
    const wina_config *f = &c->base.model->config;
    const bool windowed = wina_config_has_window(f, layer);
    a->window = windowed ? f->window : 0;
    a->angles = c->angles[windowed];
    a->rope_dim = wina_config_has_rope(f, layer) ? f->rope_dim : 0;
    a->q_norm = c->m->layers[layer].q_norm;
    a->k_norm = c->m->layers[layer].k_norm;
    wina_cuda_cache_describe(&c->cache, layer, a);
}

static void record_qk_norm(cuda_backend *c, int32_t layer, const wina_cuda_attend *a) {
    wina_cuda_phase phase = {.kind = WINA_CUDA_QK_NORM,
                             .stage = WINA_CUDA_STAGE_ATTEND,
                             .u.qk_norm = {.sums = c->qkv[layer & 1],
                                           .bias = a->bias,
                                           .q_norm = a->q_norm,
                                           .k_norm = a->k_norm,
                                           .norm_all = a->norm_all,
                                           .k_row0 = a->k_row0,
                                           .n_head = a->n_head,
                                           .n_head_kv = a->n_head_kv,
                                           .head_dim = a->head_dim,
                                           .eps = a->eps}};
    record(c, &phase);
}

void wina_cuda_record_attend(wina_backend *b, int32_t layer) {
    cuda_backend *c = cuda_of(b);
    wina_cuda_attend a = describe_attention(c);
    set_layer(c, layer, &a);
    if (c->batch) {
        note(c, wina_cuda_prompt_attend(c->prompt, a), "prompt");
        return;
    }
    a.sums = c->qkv[layer & 1];
    a.bias = c->m->layers[layer].groups[WINA_GROUP_QKV].bias;
    if (a.q_norm)
        record_qk_norm(c, layer, &a);
    wina_cuda_phase phase = {.kind = WINA_CUDA_ATTEND,
                             .stage = WINA_CUDA_STAGE_ATTEND,
                             .zero = c->qkv[~layer & 1], /* free since the layer before */
                             .n_zero = b->model->weights.layers[layer].groups[WINA_GROUP_QKV].n_out,
                             .u.attend = a};
    record(c, &phase);
}

void wina_cuda_record_swiglu(wina_backend *b, int32_t layer) {
    cuda_backend *c = cuda_of(b);
    const wina_group_weights *g = &b->model->weights.layers[layer].groups[WINA_GROUP_GATE_UP];
    wina_cuda_phase phase = {.kind = WINA_CUDA_ACTIVATE,
                             .stage = WINA_CUDA_STAGE_ACTIVATE,
                             .u.swiglu = {.gate = c->gate_up,
                                          .up = c->gate_up + g->projections[1].row0,
                                          .out = c->ff,
                                          .n = b->model->config.n_ff,
                                          .gelu = uses_gelu(c)}};
    if (!c->batch && !is_fused(c, layer))
        record(c, &phase);
}

void wina_cuda_record_head(cuda_backend *c) {
    const wina_config *f = &c->base.model->config;
    wina_cuda_gemv g = {.panel = c->m->output,
                        .n_rows = c->m->output.n_rows,
                        .n_valid = c->m->output.n_rows,
                        .fixed_in = c->x,
                        .gain = c->m->output_norm,
                        .eps = f->rms_eps,
                        .out_scale = f->logit_scale,
                        .out_cap = f->logit_softcap,
                        .out = c->logits,
                        .partial = c->partial,
                        .arrived = c->arrived};
    record_gemv(c, &g, WINA_CUDA_STAGE_HEAD);
}

/* The head; then the graph: embedding, program, copies of what the host wants to know. */

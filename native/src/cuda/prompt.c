#include "prompt.h"

#include <stdlib.h>
#include <string.h>

#include "cublas.h"

enum {
    PIECE_BYTES = 64 << 20,     /* of decoded weights */
    WORKSPACE_BYTES = 32 << 20, /* of cuBLAS */
    HEAD_BATCH = 16             /* tokens whose logits are computed together */
};

struct wina_cuda_prompt {
    wina_cuda_model *m;
    cudaStream_t stream;
    wina_cublas *cublas; /* or NULL: our own kernel */
    wina_cuda_lists lists;
    int32_t most;

    int32_t n_tokens, pos, n_dense;
    bool masks;

    float *host_x;             /* (most, n_embd) page-locked, if layers elsewhere come first */
    int32_t *host_ids, *ids;   /* (most) tokens: page-locked, and on the device */
    float *x, *qkv, *att, *ff; /* (most, width) */
    float *y;                  /* (most, widest output), or (HEAD_BATCH, n_vocab padded) */
    uint16_t *act;             /* (most, widest input rounded up to 32) float16 */
    float *scale;              /* (most) */
    uint16_t *piece;           /* decoded weights */
    void *workspace;
    uint8_t *arena;
    uint64_t arena_bytes;
};

static int32_t round_up(int32_t n, int32_t unit) {
    return (n + unit - 1) / unit * unit;
}

static int32_t widest_input(const wina_model *model) {
    int32_t most = 0;
    for (int32_t k = 0; k < WINA_N_GROUPS; k++)
        if (model->weights.layers[0].groups[k].n_in > most)
            most = model->weights.layers[0].groups[k].n_in;
    return most;
}

/* ---- memory ------------------------------------------------------------------------------- */

static void *place(wina_cuda_prompt *p, uint64_t n, uint64_t size) {
    uint64_t at = p->arena_bytes;
    p->arena_bytes += (n * size + 255) / 256 * 256;
    return p->arena ? p->arena + at : NULL;
}

/* Called twice: first to count (arena NULL). */
static void place_all(wina_cuda_prompt *p) {
    const wina_model *model = p->m->model;
    const wina_config *f = &model->config;
    const wina_group_weights *g = model->weights.layers[0].groups;
    const uint64_t b = (uint64_t)p->most;
    uint64_t widest = 0;
    for (int32_t k = 0; k < WINA_N_GROUPS; k++)
        widest = (uint64_t)g[k].n_out > widest ? (uint64_t)g[k].n_out : widest;
    uint64_t head = HEAD_BATCH * (uint64_t)model->weights.output.n_rows;
    p->arena_bytes = 0;
    p->x = place(p, b * (uint64_t)f->n_embd + 4, sizeof(float));
    p->qkv = place(p, b * (uint64_t)g[WINA_GROUP_QKV].n_out, sizeof(float));
    p->att = place(p, b * (uint64_t)g[WINA_GROUP_O].n_in + 4, sizeof(float));
    p->ff = place(p, b * (uint64_t)f->n_ff + 4, sizeof(float));
    p->y = place(p, b * widest > head ? b * widest : head, sizeof(float));
    p->act = place(p, b * (uint64_t)round_up(widest_input(model), 32), sizeof *p->act);
    p->scale = place(p, b, sizeof(float));
    p->ids = place(p, b, sizeof *p->ids);
    p->piece = place(p, PIECE_BYTES, 1);
    p->workspace = place(p, WORKSPACE_BYTES, 1);
}

int32_t wina_cuda_prompt_create(wina_cuda_model *m, const wina_cuda_lists *lists, int32_t n_batch,
                                cudaStream_t stream, wina_cuda_prompt **out) {
    *out = NULL;
    int most_shared = 0;
    CUDA_TRY(m->host,
             cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
             "asking for shared memory");
    /* Widths that are not multiples of 4 cannot be read in fours, row after row. */
    const wina_config *f = &m->model->config;
    if (widest_input(m->model) > (most_shared - 12 * 1024) / 8 || f->n_embd % 4 || f->n_ff % 4 ||
        (f->n_head * f->head_dim) % 4 || n_batch < WINA_CUDA_PROMPT_LEAST)
        return WINA_OK;
    wina_cuda_prompt *p = calloc(1, sizeof *p);
    if (!p)
        return m->host->fail(WINA_E_MEMORY, "out of memory: session");
    *p = (wina_cuda_prompt){.m = m, .stream = stream, .lists = *lists};
    p->most = round_up(n_batch, 16);
    place_all(p);
    cudaError_t e = wina_cuda_batch_prepare();
    if (e == cudaSuccess)
        e = cudaMalloc((void **)&p->arena, p->arena_bytes);
    if (e == cudaSuccess)
        e = cudaMemsetAsync(p->arena, 0, p->arena_bytes, stream);
    if (e == cudaSuccess)
        e = cudaMallocHost((void **)&p->host_ids, (size_t)p->most * sizeof *p->host_ids);
    if (e == cudaSuccess && m->first > 0)
        e = cudaMallocHost((void **)&p->host_x,
                           (size_t)p->most * (size_t)f->n_embd * sizeof(float));
    if (e != cudaSuccess) {
        wina_cuda_prompt_free(p);
        return wina_cuda_fail(m->host, e, "memory for prompts");
    }
    place_all(p);
    p->cublas = wina_cublas_open(stream, p->workspace, WORKSPACE_BYTES);
    *out = p;
    return WINA_OK;
}

void wina_cuda_prompt_free(wina_cuda_prompt *p) {
    if (!p)
        return;
    wina_cublas_close(p->cublas);
    cudaFreeHost(p->host_x);
    cudaFreeHost(p->host_ids);
    cudaFree(p->arena);
    free(p);
}

uint64_t wina_cuda_prompt_bytes(const wina_cuda_prompt *p) {
    return p ? p->arena_bytes : 0;
}

int32_t wina_cuda_prompt_most(const wina_cuda_prompt *p) {
    return p->most;
}

/* ---- steps -------------------------------------------------------------------------------- */

#define STEP(call)                                                                                 \
    do {                                                                                           \
        cudaError_t step_error = (call);                                                           \
        if (step_error != cudaSuccess)                                                             \
            return step_error;                                                                     \
    } while (0)

cudaError_t wina_cuda_prompt_begin(wina_cuda_prompt *p, const int32_t *tokens, int32_t n_tokens,
                                   int32_t pos, int32_t n_dense, bool masks) {
    p->n_tokens = n_tokens;
    p->pos = pos;
    p->n_dense = n_dense;
    p->masks = masks;
    STEP(cudaStreamSynchronize(p->stream)); /* host_x and host_ids may still be read */
    if (p->m->first > 0)                    /* enter() follows */
        return cudaSuccess;
    memcpy(p->host_ids, tokens, (size_t)n_tokens * sizeof *tokens);
    STEP(cudaMemcpyAsync(p->ids, p->host_ids, (size_t)n_tokens * sizeof *tokens,
                         cudaMemcpyHostToDevice, p->stream));
    return wina_cuda_embed_launch(&p->m->embeddings, p->ids, n_tokens, p->x,
                                  p->m->model->config.n_embd, p->stream);
}

cudaError_t wina_cuda_prompt_enter(wina_cuda_prompt *p, const float *x) {
    const size_t n = (size_t)p->n_tokens * (size_t)p->m->model->config.n_embd;
    memcpy(p->host_x, x, n * sizeof *x);
    return cudaMemcpyAsync(p->x, p->host_x, n * sizeof *x, cudaMemcpyHostToDevice, p->stream);
}

cudaError_t wina_cuda_prompt_leave(wina_cuda_prompt *p, float *x) {
    const size_t n = (size_t)p->n_tokens * (size_t)p->m->model->config.n_embd;
    STEP(cudaMemcpyAsync(x, p->x, n * sizeof *x, cudaMemcpyDeviceToHost, p->stream));
    return cudaStreamSynchronize(p->stream);
}

/* y (m, ldy) = act (m, n_cols) times rows [row0, row0 + n_rows) of a panel. */
static cudaError_t multiply(wina_cuda_prompt *p, const wina_cuda_panel *panel, int32_t row0,
                            int32_t n_rows, int32_t m, float *y, int64_t ldy) {
    const int32_t k = panel->n_cols, stride = round_up(k, 32);
    int32_t most = (int32_t)(PIECE_BYTES / 2 / k / WINA_STRIP * WINA_STRIP);
    for (int32_t done = 0, n; done < n_rows; done += n) {
        n = n_rows - done < most ? n_rows - done : most;
        const uint16_t *w = p->piece;
        int64_t ldw = n;
        if (panel->format == WINA_CUDA_F16) { /* a panel of float16 is a matrix as it stands */
            w = (const uint16_t *)(const void *)panel->data + row0 + done;
            ldw = (int64_t)(panel->col_bytes / 2);
            n = n_rows - done;
        } else
            STEP(wina_cuda_decode_launch(panel, row0 + done, n, p->piece, p->stream));
        if (p->cublas) {
            if (!wina_cublas_multiply(p->cublas, p->act, stride, w, ldw, y + done, ldy, m, n, k))
                return cudaErrorUnknown;
        } else
            STEP(wina_cuda_matmul_launch(p->act, stride, w, ldw, y + done, ldy, round_up(m, 16), n,
                                         stride < k ? stride : k, p->stream));
    }
    return cudaSuccess;
}

/* Activations of all tokens under one list of kept inputs. */
static cudaError_t prepare(wina_cuda_prompt *p, int32_t layer, wina_group group, int32_t list) {
    const wina_model *model = p->m->model;
    const wina_cuda_layer *l = &p->m->layers[layer];
    const wina_cuda_group *g = &l->groups[group];
    const int32_t slot = wina_cuda_slot(layer, (int32_t)group, list);
    const bool residual = group == WINA_GROUP_QKV || group == WINA_GROUP_GATE_UP;
    wina_cuda_prepare a = {.gemv = {.panel = g->panels[0],
                                    .in = residual                ? p->x
                                          : group == WINA_GROUP_O ? p->att
                                                                  : p->ff,
                                    .gain = group == WINA_GROUP_QKV       ? l->attn_norm
                                            : group == WINA_GROUP_GATE_UP ? l->ffn_norm
                                                                          : NULL,
                                    .eps = model->config.rms_eps,
                                    .norms = p->lists.norms[slot],
                                    .keep = p->lists.keep + slot,
                                    .in_shared = 1},
                           .in_stride = g->panels[0].n_cols,
                           .n_dense = p->n_dense,
                           .out = p->act,
                           .out_stride = round_up(g->panels[0].n_cols, 32),
                           .scale = p->scale,
                           .kept_last = p->lists.kept + slot,
                           .kept_sum = p->lists.kept_sum + slot};
    return wina_cuda_prepare_launch(&a, p->n_tokens, p->stream);
}

/* What becomes of y (n_tokens, n_out). */
static cudaError_t finish(wina_cuda_prompt *p, int32_t layer, wina_group group,
                          const wina_group_weights *w) {
    const wina_config *f = &p->m->model->config;
    switch (group) {
    case WINA_GROUP_QKV:
        return wina_cuda_batch_scale(p->qkv, w->n_out, p->y, w->n_out, p->scale,
                                     p->m->layers[layer].groups[group].bias, w->n_out, p->n_tokens,
                                     p->stream);
    case WINA_GROUP_GATE_UP:
        return wina_cuda_batch_gate(p->ff, f->n_ff, p->y, w->n_out, p->scale,
                                    w->projections[1].row0, f->n_ff,
                                    f->arch->activation == WINA_ACT_GELU, p->n_tokens, p->stream);
    default:
        if (wina_config_has_exit(f))
            return wina_cuda_batch_leave(
                p->x, f->n_embd, p->y, w->n_out, p->scale,
                p->m->layers[layer]
                    .exit_norms[group == WINA_GROUP_O ? WINA_SITE_ATTN : WINA_SITE_FFN],
                f->rms_eps, f->residual_scale, f->n_embd, p->n_tokens, p->stream);
        return wina_cuda_batch_add(p->x, f->n_embd, p->y, w->n_out, p->scale, f->n_embd,
                                   p->n_tokens, p->stream);
    }
}

cudaError_t wina_cuda_prompt_project(wina_cuda_prompt *p, int32_t layer, wina_group group) {
    const wina_group_weights *w = &p->m->model->weights.layers[layer].groups[group];
    const wina_cuda_group *g = &p->m->layers[layer].groups[group];
    if (!p->masks) {
        STEP(prepare(p, layer, group, 0));
        for (int32_t i = 0; i < g->n_panels; i++)
            STEP(multiply(p, &g->panels[i], 0, g->panels[i].n_rows, p->n_tokens,
                          p->y + w->panel_row0[i], w->n_out));
        return finish(p, layer, group, w);
    }
    /* The scale of a token is that of its whole input, the same under every mask. */
    for (int32_t i = 0; i < w->n_projections; i++) {
        const wina_projection *q = &w->projections[i];
        STEP(prepare(p, layer, group, i));
        STEP(multiply(p, &g->panels[q->panel], q->panel_row0, round_up(q->n_rows, WINA_STRIP),
                      p->n_tokens, p->y + q->row0, w->n_out));
    }
    return finish(p, layer, group, w);
}

cudaError_t wina_cuda_prompt_attend(wina_cuda_prompt *p, wina_cuda_attend a) {
    a.qkv = p->qkv;
    a.out = p->att;
    a.n_tokens = p->n_tokens;
    return wina_cuda_batch_attend(&a, p->pos, p->stream);
}

cudaError_t wina_cuda_prompt_logits(wina_cuda_prompt *p, int32_t from, float *out) {
    const wina_config *f = &p->m->model->config;
    const size_t n_vocab = (size_t)f->n_vocab, rows = (size_t)p->m->output.n_rows;
    for (int32_t t = from, n; t < p->n_tokens; t += n) {
        n = p->n_tokens - t < HEAD_BATCH ? p->n_tokens - t : HEAD_BATCH;
        wina_cuda_prepare a = {.gemv = {.panel = p->m->output,
                                        .in = p->x + (size_t)t * (size_t)f->n_embd,
                                        .gain = p->m->output_norm,
                                        .eps = f->rms_eps,
                                        .in_shared = 1},
                               .in_stride = f->n_embd,
                               .n_dense = n,
                               .out = p->act,
                               .out_stride = round_up(f->n_embd, 32),
                               .scale = p->scale};
        STEP(wina_cuda_prepare_launch(&a, n, p->stream));
        STEP(multiply(p, &p->m->output, 0, (int32_t)rows, n, p->y, (int64_t)rows));
        STEP(wina_cuda_batch_scale(p->y, (int64_t)rows, p->y, (int64_t)rows, p->scale, NULL,
                                   f->n_vocab, n, p->stream));
        if (f->logit_scale != 1.0f || f->logit_softcap > 0)
            STEP(wina_cuda_batch_cap(p->y, (int64_t)rows, f->logit_scale, f->logit_softcap,
                                     f->n_vocab, n, p->stream));
        STEP(cudaMemcpy2DAsync(out + (size_t)(t - from) * n_vocab, n_vocab * sizeof(float), p->y,
                               rows * sizeof(float), n_vocab * sizeof(float), (size_t)n,
                               cudaMemcpyDeviceToHost, p->stream));
    }
    return cudaStreamSynchronize(p->stream);
}

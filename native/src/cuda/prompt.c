#include "prompt.h"

#include <stdlib.h>
#include <string.h>

#include "cublas.h"

enum {
#ifdef WINA_CUDA_EMULATE /* small models are cut in both ways, too */
    PIECE_BYTES = 128 << 10,
    PIECE_ROWS = 128,
#else
    PIECE_BYTES = 32 << 20, /* of decoded weights: most of them are still in L2 when used */
    PIECE_ROWS = 4096,
#endif
    WORKSPACE_BYTES = 16 << 20, /* of cuBLAS */
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

    float *host_x;           /* (most, n_embd) page-locked, if layers elsewhere come first */
    int32_t *host_ids, *ids; /* (most) tokens: page-locked, and on the device */
    float *x, *att;          /* (most, width) */
    float *y;                /* (most, widest output), or (HEAD_BATCH, n_vocab padded) */
    uint16_t *act;           /* (most, widest input rounded up to 32) float16 */
    float *scale;            /* (most) */
    uint16_t *piece;         /* (piece_bytes) decoded weights; none if all are float16 */
    uint64_t piece_bytes;
    void *workspace;
    uint8_t *arena;
    uint64_t arena_bytes;
};

static int32_t round_up(int32_t n, int32_t unit) {
    return (n + unit - 1) / unit * unit;
}

/* Room for the largest panel that is decoded, at most PIECE_BYTES; in whole blocks of columns, as
 * pieces are cut. */
static void size_piece(wina_cuda_prompt *p, const wina_cuda_panel *panel) {
    const uint64_t n_cols = (uint64_t)round_up(panel->n_cols, WINA_BLOCK);
    const uint64_t n = (uint64_t)panel->n_rows * n_cols * sizeof *p->piece;
    if (panel->format != WINA_CUDA_F16 && n > p->piece_bytes)
        p->piece_bytes = n < PIECE_BYTES ? n : PIECE_BYTES;
}

static void size_pieces(wina_cuda_prompt *p) {
    for (int32_t i = p->m->first; i < p->m->end; i++)
        for (int32_t k = 0; k < WINA_N_GROUPS; k++)
            for (int32_t n = 0; n < p->m->layers[i].groups[k].n_panels; n++)
                size_piece(p, &p->m->layers[i].groups[k].panels[n]);
    if (p->m->end == p->m->model->config.n_layer)
        size_piece(p, &p->m->output);
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
    p->y = place(p, (b * widest > head ? b * widest : head) + 4, sizeof(float));
    /* Attention's output lies behind what it is rounded to, where no other input is then. */
    const uint64_t o = (uint64_t)g[WINA_GROUP_O].n_in;
    const uint64_t att_at = b * (uint64_t)round_up(g[WINA_GROUP_O].n_in, 32);
    const uint64_t att_end = att_at + (b * o + 4) * (sizeof *p->att / sizeof *p->act);
    const uint64_t most = b * (uint64_t)round_up(widest_input(model), 32);
    p->act = place(p, most > att_end ? most : att_end, sizeof *p->act);
    p->att = p->act ? (float *)(void *)(p->act + att_at) : NULL;
    p->scale = place(p, b, sizeof(float));
    p->ids = place(p, b, sizeof *p->ids);
    p->piece = place(p, p->piece_bytes, 1);
    p->workspace = place(p, WORKSPACE_BYTES, 1);
}

/* Whether prompts can run as batches here. */
static int32_t find_out(const wina_cuda_model *m, int32_t n_batch, bool *can) {
    int most_shared = 0;
    CUDA_TRY(m->host,
             cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
             "asking for shared memory");
    /* Widths that are not multiples of 4 cannot be read in fours, row after row. */
    const wina_config *f = &m->model->config;
    *can = widest_input(m->model) <= (most_shared - 12 * 1024) / 8 && f->n_embd % 4 == 0 &&
           f->n_ff % 4 == 0 && f->n_head * f->head_dim % 4 == 0 &&
           n_batch >= WINA_CUDA_PROMPT_LEAST;
    return WINA_OK;
}

/* Sizes only. */
static void plan(wina_cuda_prompt *p, wina_cuda_model *m, int32_t n_batch) {
    p->m = m;
    p->most = round_up(n_batch, 16);
    size_pieces(p);
    place_all(p);
}

int32_t wina_cuda_prompt_plan(wina_cuda_model *m, int32_t n_batch, uint64_t *n_bytes) {
    wina_cuda_prompt p = {.m = m};
    bool can = false;
    const int32_t status = find_out(m, n_batch, &can);
    if (can)
        plan(&p, m, n_batch);
    *n_bytes = p.arena_bytes;
    return status;
}

int32_t wina_cuda_prompt_create(wina_cuda_model *m, const wina_cuda_lists *lists, int32_t n_batch,
                                cudaStream_t stream, wina_cuda_prompt **out) {
    *out = NULL;
    bool can = false;
    const int32_t status = find_out(m, n_batch, &can);
    if (status != WINA_OK || !can)
        return status;
    wina_cuda_prompt *p = calloc(1, sizeof *p);
    if (!p)
        return m->host->fail(WINA_E_MEMORY, "out of memory: session");
    *p = (wina_cuda_prompt){.stream = stream, .lists = *lists};
    plan(p, m, n_batch);
    cudaError_t e = wina_cuda_batch_prepare();
    if (e == cudaSuccess)
        e = cudaMalloc((void **)&p->arena, p->arena_bytes);
    if (e == cudaSuccess)
        e = cudaMemsetAsync(p->arena, 0, p->arena_bytes, stream);
    if (e == cudaSuccess)
        e = cudaMallocHost((void **)&p->host_ids, (size_t)p->most * sizeof *p->host_ids);
    if (e == cudaSuccess && m->first > 0)
        e = cudaMallocHost((void **)&p->host_x,
                           (size_t)p->most * (size_t)m->model->config.n_embd * sizeof(float));
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

/* y (m, ldy) = (y +) columns [col0, col0 + k) of act times w (k, n). */
static cudaError_t multiply_piece(wina_cuda_prompt *p, const wina_cuda_panel *panel, int32_t col0,
                                  int32_t k, const uint16_t *w, int64_t ldw, int32_t n, int32_t m,
                                  float *y, int64_t ldy) {
    const int32_t stride = round_up(panel->n_cols, 32);
    if (!p->cublas)
        return wina_cuda_matmul_launch(p->act + col0, stride, w, ldw, y, ldy, round_up(m, 16), n, k,
                                       col0 > 0, p->stream);
    return wina_cublas_multiply(p->cublas, p->act + col0, stride, w, ldw, y, ldy, m, n, k, col0 > 0)
               ? cudaSuccess
               : cudaErrorUnknown;
}

/* y (m, ldy) = act (m, n_cols) times rows [row0, row0 + n_rows) of a panel. Pieces have at least
 * PIECE_ROWS rows, as products of fewer leave much of the device idle, and all columns if those
 * fit.
 */
static cudaError_t multiply(wina_cuda_prompt *p, const wina_cuda_panel *panel, int32_t row0,
                            int32_t n_rows, int32_t m, float *y, int64_t ldy) {
    const int32_t n_cols = panel->n_cols;
    if (panel->format == WINA_CUDA_F16) /* a matrix as it stands */
        return multiply_piece(p, panel, 0, n_cols,
                              (const uint16_t *)(const void *)panel->data + row0,
                              (int64_t)(panel->col_bytes / 2), n_rows, m, y, ldy);
    const int64_t room = (int64_t)(p->piece_bytes / sizeof *p->piece);
    int32_t most = (int32_t)(room / round_up(n_cols, WINA_BLOCK) / WINA_STRIP * WINA_STRIP);
    most = most > PIECE_ROWS ? most : PIECE_ROWS;
    for (int32_t done = 0, n; done < n_rows; done += n) {
        n = n_rows - done < most ? n_rows - done : most;
        const int32_t most_k = (int32_t)(room / n / WINA_BLOCK * WINA_BLOCK);
        for (int32_t col = 0, k; col < n_cols; col += k) {
            k = n_cols - col < most_k ? n_cols - col : most_k;
            STEP(wina_cuda_decode_launch(panel, row0 + done, n, col, k, p->piece, p->stream));
            STEP(multiply_piece(p, panel, col, k, p->piece, n, n, m, y + done, ldy));
        }
    }
    return cudaSuccess;
}

/* Between the activated products of two tokens, which take the place of the gates in y. */
static int32_t activated_stride(const wina_cuda_prompt *p) {
    return p->m->model->weights.layers[0].groups[WINA_GROUP_GATE_UP].n_out;
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
                                                                  : p->y,
                                    .gain = group == WINA_GROUP_QKV       ? l->attn_norm
                                            : group == WINA_GROUP_GATE_UP ? l->ffn_norm
                                                                          : NULL,
                                    .eps = model->config.rms_eps,
                                    .norms = p->lists.norms[slot],
                                    .keep = p->lists.keep + slot,
                                    .in_shared = 1},
                           .in_stride =
                               group == WINA_GROUP_DOWN ? activated_stride(p) : g->panels[0].n_cols,
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
        return wina_cuda_batch_scale(p->y, w->n_out, p->y, w->n_out, p->scale,
                                     p->m->layers[layer].groups[group].bias, w->n_out, p->n_tokens,
                                     p->stream);
    case WINA_GROUP_GATE_UP:
        return wina_cuda_batch_gate(p->y, activated_stride(p), p->y, w->n_out, p->scale,
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
    a.qkv = p->y;
    a.out = p->att;
    a.n_tokens = p->n_tokens;
    return wina_cuda_batch_attend(&a, p->pos, p->stream);
}

/* rms_norm(x) gain into host memory, by way of y. */
static cudaError_t copy_normed(wina_cuda_prompt *p, const float *gain, float *out) {
    const wina_config *f = &p->m->model->config;
    const size_t n = (size_t)p->n_tokens * (size_t)f->n_embd;
    const wina_cuda_hidden h = {
        .x = p->x, .gain = gain, .out = p->y, .eps = f->rms_eps, .n = f->n_embd};
    STEP(wina_cuda_hidden_launch(&h, p->n_tokens, p->stream));
    STEP(cudaMemcpyAsync(out, p->y, n * sizeof *out, cudaMemcpyDeviceToHost, p->stream));
    return cudaStreamSynchronize(p->stream);
}

cudaError_t wina_cuda_prompt_hidden(wina_cuda_prompt *p, float *out) {
    return copy_normed(p, p->m->output_norm, out);
}

cudaError_t wina_cuda_prompt_input(wina_cuda_prompt *p, int32_t layer, wina_group group,
                                   float *out) {
    const wina_cuda_layer *l = &p->m->layers[layer];
    if (group == WINA_GROUP_QKV || group == WINA_GROUP_GATE_UP)
        return copy_normed(p, group == WINA_GROUP_QKV ? l->attn_norm : l->ffn_norm, out);
    const size_t n_in = (size_t)p->m->model->weights.layers[layer].groups[group].n_in;
    const bool down = group == WINA_GROUP_DOWN;
    const size_t stride = (down ? (size_t)activated_stride(p) : n_in) * sizeof(float);
    STEP(cudaMemcpy2DAsync(out, n_in * sizeof *out, down ? p->y : p->att, stride,
                           n_in * sizeof *out, (size_t)p->n_tokens, cudaMemcpyDeviceToHost,
                           p->stream));
    return cudaStreamSynchronize(p->stream);
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

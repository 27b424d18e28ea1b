/* decode: the operations of the graph on the device. The steps of one token are written down once,
 * as a program that one kernel runs (program.cu), and with the copies around it are a CUDA graph
 * from then on: what changes from token to token (position, embedding, how many inputs are kept) is
 * read from device memory. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "decode_state.h"
#include "profile.h"

/* ---- rules -------------------------------------------------------------------------------- */

static void place_norms(cuda_backend *c, const float *norms) {
    c->norms_floats = 0;
    for (int32_t i = 0; i < c->base.model->config.n_layer; i++)
        for (int32_t k = 0; k < WINA_N_GROUPS; k++)
            for (int32_t list = 0; list < group_lists(c, k); list++) {
                uint64_t n = (uint64_t)c->base.model->weights.layers[0].groups[k].n_in;
                c->slot_norms[wina_cuda_slot(i, k, list)] = norms ? norms + c->norms_floats : NULL;
                c->norms_floats += (n + 63) / 64 * 64;
            }
}

/* The one place where rules come in: numbers to keep and factors, by slot. */
static void take_rules(cuda_backend *c, const float *device_norms) {
    float *norms = c->host_norms;
    for (int32_t i = 0; i < c->base.model->config.n_layer; i++)
        for (int32_t k = 0; k < WINA_N_GROUPS; k++)
            for (int32_t list = 0; list < group_lists(c, k); list++) {
                const wina_rule *r = wina_rules_get(c->rules, i, k, list);
                uint64_t n = (uint64_t)c->base.model->weights.layers[0].groups[k].n_in;
                if (list < c->rules->n_masks[k]) {
                    c->host_keep[1][wina_cuda_slot(i, k, list)] =
                        (wina_cuda_keep){r->n_keep, r->threshold > 0 ? r->threshold : 0};
                    for (uint64_t j = 0; j < n; j++)
                        norms[j] = r->norms ? r->norms[j] : 1.0f;
                    if (r->from_gate && c->base.status == WINA_OK)
                        c->base.status = c->m->host->fail(
                            WINA_E_UNSUPPORTED, "CUDA: the method cats runs on the CPU only");
                }
                norms += (n + 63) / 64 * 64;
            }
    note(c,
         cudaMemcpyAsync((void *)(uintptr_t)device_norms, c->host_norms,
                         c->norms_floats * sizeof(float), cudaMemcpyHostToDevice, c->stream),
         "rules");
    note(c, cudaStreamSynchronize(c->stream), "rules");
    c->version = c->rules->version;
    c->keep_is = -1;
}

/* Bytes of scales that a token reads of `rows` rows, whatever is kept. */
static uint64_t scale_bytes(const wina_panel *p, bool converted, uint64_t rows) {
    const uint64_t blocks = (uint64_t)p->n_blocks;
    return converted ? 0
                     : blocks * rows * p->layout->scale_bytes +
                           (blocks + 7) / 8 * rows * p->layout->super_bytes;
}

/* Counts what n_sparse tokens read, and (last) the last token; from the numbers that the kernels
 * counted. sums: of the sparse tokens. */
static void count(cuda_backend *c, const int32_t *sums, int32_t n_sparse, bool last) {
    wina_counters *n = &c->base.counters;
    for (int32_t i = c->m->first; i < c->m->end; i++)
        for (int32_t k = 0; k < WINA_N_GROUPS; k++) {
            const wina_group_weights *g = &c->base.model->weights.layers[i].groups[k];
            for (int32_t j = 0; j < g->n_projections; j++) {
                const wina_projection *p = &g->projections[j];
                const bool converted = c->m->layers[i].groups[k].converted[p->panel];
                const int32_t slot = wina_cuda_slot(i, k, c->graph ? j : 0);
                uint64_t rows = (uint64_t)p->n_rows, bits = rows * (converted ? 16 : p->row_bits);
                n->sparse_read += n_sparse ? bits * (uint64_t)sums[slot] : 0;
                n->sparse_total += bits * (uint64_t)g->n_in * (uint64_t)n_sparse;
                if (last)
                    n->token_bytes += bits * (uint64_t)c->host_kept[slot] / 8 +
                                      scale_bytes(&g->panels[p->panel], converted, rows);
            }
        }
    if (!last || !has_head(c))
        return;
    const wina_panel *head = &c->base.model->weights.output;
    const uint64_t rows = (uint64_t)c->base.model->config.n_vocab;
    const bool converted = c->m->output_converted;
    const uint64_t bits = converted ? 16 : wina_layout_bits(head->layout);
    n->token_bytes += rows * bits * (uint64_t)head->n_cols / 8 + scale_bytes(head, converted, rows);
}

/* The budgets of dense or sparse tokens into device memory. */
static void use_budgets(cuda_backend *c, bool sparse) {
    if (c->keep_is != sparse)
        note(c,
             cudaMemcpyAsync(c->keep, c->host_keep[sparse], keep_bytes(c), cudaMemcpyHostToDevice,
                             c->stream),
             "budgets");
    c->keep_is = sparse;
}

/* ---- recording ---------------------------------------------------------------------------- */

static void begin(wina_backend *b, const int32_t *tokens, int32_t n_tokens, int32_t pos,
                  int32_t n_dense, const wina_rules *rules) {
    cuda_backend *c = cuda_of(b);
    b->counters = (wina_counters){0};
    b->status = WINA_OK;
    b->late = false;
    note(c, cudaSetDevice(c->m->device_index), "choosing the GPU");
    wina_cuda_cache_begin(&c->cache, pos, n_tokens);
    c->entered = NULL;
    c->hidden = NULL;
    c->rules = rules;
    if (rules->sparse && c->version != rules->version)
        take_rules(c, c->slot_norms[0]);
    c->tokens = tokens;
    c->n_tokens = n_tokens;
    c->pos = pos;
    c->n_dense = n_dense;
    c->graph = is_sparse(c, n_tokens - 1) && rules->n_masks[WINA_GROUP_QKV] > 1;
    c->batch = c->prompt && n_tokens >= (b->tapped ? 2 : WINA_CUDA_PROMPT_LEAST) &&
               n_tokens <= wina_cuda_prompt_most(c->prompt);
    if (!c->batch)
        return;
    use_budgets(c, is_sparse(c, n_tokens - 1));
    note(c, cudaMemsetAsync(c->kept_sum, 0, kept_bytes(c), c->stream), "counters");
    note(c, wina_cuda_prompt_begin(c->prompt, tokens, n_tokens, pos, n_dense, c->graph == 1),
         "prompt");
}

/* The first token of a kind is recorded while the graph is walked; later ones need no walk. */
static bool recorded(wina_backend *b) {
    cuda_backend *c = cuda_of(b);
    c->n_phases = 0;
    c->shared_bytes = 0;
    c->formats = 0;
    return !c->batch && c->graphs[c->graph] != NULL && !b->tapped;
}

static void norm(wina_backend *b, int32_t layer) {
    cuda_of(b)->layer = layer;
}

/* Steps of a batch run as the graph is walked, those of a single token do not. */
static const float *input(wina_backend *b, wina_group group) {
    cuda_backend *c = cuda_of(b);
    if (!c->batch && b->status == WINA_OK)
        b->status = c->m->host->fail(
            WINA_E_UNSUPPORTED, "CUDA: activations can be seen of prompts of 2 tokens and more, "
                                "with widths that are multiples of 4: use the CPU");
    if (!c->batch)
        return NULL;
    const wina_group_weights *g = b->model->weights.layers[0].groups;
    int32_t most = 0;
    for (int32_t k = 0; k < WINA_N_GROUPS; k++)
        most = g[k].n_in > most ? g[k].n_in : most;
    if (!c->tap_rows)
        c->tap_rows = calloc((size_t)c->n_batch * (size_t)most, sizeof *c->tap_rows);
    if (!c->tap_rows)
        note(c, cudaErrorMemoryAllocation, "what a tap is shown");
    else
        note(c, wina_cuda_prompt_input(c->prompt, c->layer, group, c->tap_rows), "prompt");
    return b->status == WINA_OK ? c->tap_rows : NULL;
}

/* Rows of one panel of a group; the caller adds where they start and end. */
static void rope_store(wina_backend *b, int32_t layer) {
    (void)b, (void)layer;
}

/* What attention needs that does not depend on the layer. */
static void finish_recording(cuda_backend *c) {
    const wina_config *f = &c->base.model->config;
    if (has_head(c))
        wina_cuda_record_head(c);
    const int32_t n_qkv = c->base.model->weights.layers[0].groups[WINA_GROUP_QKV].n_out;
    wina_cuda_phase *program = c->program[c->graph];
    note(c,
         cudaMemcpy(program, c->phases, (size_t)c->n_phases * sizeof *program,
                    cudaMemcpyHostToDevice),
         "program");
    wina_cuda_program p = {.phases = program,
                           .step = c->step,
                           .first_keep = c->phases[0].u.gemv.keep,
                           .n_phases = c->n_phases,
                           .formats = c->formats,
                           .shared_bytes = c->shared_bytes,
                           .barrier = c->barrier,
                           .times = c->profile ? c->times : NULL};
    note(c, cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal), "capture");
    note(c,
         wina_cuda_begin_launch(c->mapped_step, c->step, &c->m->embeddings, c->x, f->n_embd,
                                c->qkv[c->m->first & 1], n_qkv, c->barrier, c->stream),
         "embedding");
    note(c, wina_cuda_program_launch(&p, c->m->n_sms, c->stream), "program");
    const cudaError_t e =
        has_head(c)
            ? wina_cuda_best_launch(c->logits, f->n_vocab, c->best_chunks, c->best_arrived, c->best,
                                    c->m->n_sms, c->stream)
            : cudaMemcpyAsync(c->host_words, c->x, (size_t)f->n_embd * sizeof *c->host_words,
                              cudaMemcpyDeviceToHost, c->stream);
    note(c, e, "logits");
    note(c,
         cudaMemcpyAsync(c->host_kept, c->kept,
                         has_head(c) ? best_at(c) + sizeof *c->best : kept_bytes(c),
                         cudaMemcpyDeviceToHost, c->stream),
         "counters");
    cudaGraph_t graph = NULL;
    note(c, cudaStreamEndCapture(c->stream, &graph), "capture");
    if (c->base.status == WINA_OK)
        note(c, cudaGraphInstantiate(&c->graphs[c->graph], graph, 0), "graph");
    if (graph)
        cudaGraphDestroy(graph);
}

/* ---- running ------------------------------------------------------------------------------ */

static void copy_logits(cuda_backend *c) {
    note(c,
         cudaMemcpyAsync(c->host_logits, c->logits,
                         (size_t)c->base.model->config.n_vocab * sizeof(float),
                         cudaMemcpyDeviceToHost, c->stream),
         "logits");
}

/* What the head multiplied of token i of the batch. */
static void copy_hidden(cuda_backend *c, int32_t i) {
    const wina_config *f = &c->base.model->config;
    const size_t n = (size_t)f->n_embd;
    const wina_cuda_hidden h = {.fixed = c->x,
                                .gain = c->m->output_norm,
                                .out = c->normed,
                                .eps = f->rms_eps,
                                .n = f->n_embd};
    note(c, wina_cuda_hidden_launch(&h, 1, c->stream), "the final norm");
    note(c,
         cudaMemcpyAsync(c->hidden + (size_t)i * n, c->normed, n * sizeof(float),
                         cudaMemcpyDeviceToHost, c->stream),
         "the final norm");
}

/* copy: the logits to the host as well. */
static void run_token(cuda_backend *c, int32_t i, bool copy) {
    const bool sparse = is_sparse(c, i);
    c->host_step->pos = c->pos + i;
    const size_t n_embd = (size_t)c->base.model->config.n_embd;
    c->host_step->token = c->entered ? -1 : c->tokens[i];
    if (c->entered)
        memcpy(c->host_step->x, c->entered + (size_t)i * n_embd, n_embd * sizeof(float));
    use_budgets(c, sparse);
    note(c, cudaGraphLaunch(c->graphs[c->graph], c->stream), "launch");
    if (copy)
        copy_logits(c);
    if (c->hidden)
        copy_hidden(c, i);
    note(c, cudaStreamSynchronize(c->stream), "running");
    if (c->base.status == WINA_OK)
        count(c, c->host_kept, sparse, i == c->n_tokens - 1);
    if (c->host_kept[overflow_slot(c)]) { /* whoever takes the logits reports what is not finite */
        if (!has_head(c) && c->base.status == WINA_OK)
            c->base.status = c->m->host->fail(WINA_E_NUMERIC, WINA_NOT_FINITE);
        c->host_logits[0] = NAN;
        c->host_best->is_broken = 1;
        note(c, cudaMemset(c->kept + overflow_slot(c), 0, sizeof *c->kept), "counters");
    }
}

/* Counters of a batch that ran as a prompt. */
static void count_batch(cuda_backend *c) {
    note(c, cudaMemcpy(c->host_kept, c->kept, kept_bytes(c), cudaMemcpyDeviceToHost), "counters");
    note(c, cudaMemcpy(c->host_kept_sum, c->kept_sum, kept_bytes(c), cudaMemcpyDeviceToHost),
         "counters");
    if (c->base.status == WINA_OK)
        count(c, c->host_kept_sum, c->rules->sparse ? c->n_tokens - c->n_dense : 0, true);
}

static void logits(wina_backend *b, int32_t from, float *out) {
    cuda_backend *c = cuda_of(b);
    const size_t n_vocab = (size_t)b->model->config.n_vocab;
    if (c->batch) {
        note(c, wina_cuda_prompt_logits(c->prompt, from, out ? out : c->host_logits), "prompt");
        count_batch(c);
    }
    if (!c->batch && c->n_phases > 0 && b->status == WINA_OK)
        finish_recording(c);
    for (int32_t i = 0; !c->batch && i < c->n_tokens && b->status == WINA_OK; i++) {
        run_token(c, i, out && i >= from);
        if (out && i >= from && b->status == WINA_OK)
            memcpy(out + (size_t)(i - from) * n_vocab, c->host_logits, n_vocab * sizeof *out);
    }
    if (out || from >= c->n_tokens || b->status != WINA_OK)
        return;
    c->is_fetched = c->batch;
    bool broken = !c->batch && c->host_best->is_broken;
    for (size_t i = 0; c->batch && i < n_vocab; i++)
        broken |= !isfinite(c->host_logits[i]);
    if (broken)
        b->status = c->m->host->fail(WINA_E_NUMERIC, WINA_NOT_FINITE);
    b->late = !broken;
}

static void fetch_logits(wina_backend *b, float *out) {
    cuda_backend *c = cuda_of(b);
    if (!c->is_fetched) {
        note(c, cudaSetDevice(c->m->device_index), "choosing the GPU");
        copy_logits(c);
        note(c, cudaStreamSynchronize(c->stream), "logits");
    }
    if (b->status != WINA_OK)
        return;
    memcpy(out, c->host_logits, (size_t)b->model->config.n_vocab * sizeof *out);
    b->late = false;
}

static const wina_best *best(wina_backend *b) {
    const cuda_backend *c = cuda_of(b);
    return c->is_fetched ? NULL : &c->host_best->found;
}

/* Tokens that are not a batch run in logits(). */
static void hidden(wina_backend *b, float *out) {
    cuda_backend *c = cuda_of(b);
    c->hidden = out;
    if (c->batch)
        note(c, wina_cuda_prompt_hidden(c->prompt, out), "prompt");
}

static void enter(wina_backend *b, const float *x) {
    cuda_backend *c = cuda_of(b);
    note(c, cudaSetDevice(c->m->device_index), "choosing the GPU");
    c->entered = x;
    if (c->batch)
        note(c, wina_cuda_prompt_enter(c->prompt, x), "prompt");
}

static const float *residual(wina_backend *b) {
    cuda_backend *c = cuda_of(b);
    const size_t n_embd = (size_t)b->model->config.n_embd;
    if (c->batch) {
        note(c, wina_cuda_prompt_leave(c->prompt, c->residual), "prompt");
        count_batch(c);
        return c->residual;
    }
    if (c->n_phases > 0 && b->status == WINA_OK)
        finish_recording(c);
    for (int32_t i = 0; i < c->n_tokens && b->status == WINA_OK; i++) {
        run_token(c, i, false);
        for (size_t k = 0; k < n_embd; k++)
            c->residual[(size_t)i * n_embd + k] = (float)((double)c->host_words[k] / WINA_CUDA_ONE);
    }
    return c->residual;
}

/* ---- memory ------------------------------------------------------------------------------- */

static void *place(cuda_backend *c, uint64_t *used, uint64_t n_bytes) {
    uint64_t at = *used;
    *used += (n_bytes + 255) / 256 * 256;
    return c->arena ? c->arena + at : NULL;
}

/* Called twice: first to count (arena NULL). */
static uint64_t place_all(cuda_backend *c) {
    const wina_model *model = c->base.model;
    const wina_config *f = &model->config;
    const wina_group_weights *g = model->weights.layers[0].groups;
    uint64_t used = 0;
    int32_t most_rows = model->weights.output.n_rows;
    for (int32_t k = 0; k < WINA_N_GROUPS; k++)
        most_rows = g[k].n_out > most_rows ? g[k].n_out : most_rows;
    uint64_t heads = (uint64_t)f->n_head, width = (uint64_t)(f->head_dim + 7) / 8 * 8 + 2;
    c->step = place(c, &used, sizeof *c->step);
    c->x = place(c, &used, (uint64_t)f->n_embd * sizeof *c->x);
    for (int i = 0; i < 2; i++)
        c->qkv[i] = place(c, &used, (uint64_t)g[WINA_GROUP_QKV].n_out * sizeof *c->qkv[i]);
    c->att = place(c, &used, (uint64_t)g[WINA_GROUP_O].n_in * sizeof(float));
    c->gate_up = place(c, &used, (uint64_t)g[WINA_GROUP_GATE_UP].n_out * sizeof(float));
    c->ff = place(c, &used, (uint64_t)f->n_ff * sizeof(float));
    c->logits = place(c, &used, (uint64_t)model->weights.output.n_rows * sizeof(float));
    c->partial = place(c, &used, wina_cuda_gemv_scratch(c->m->n_sms));
    c->attend_partial = place(c, &used, heads * (uint64_t)c->n_splits * width * sizeof(float));
    c->arrived = place(c, &used, (uint64_t)wina_cuda_gemv_tiles(most_rows) * sizeof(uint32_t));
    c->attend_arrived = place(c, &used, heads * sizeof(uint32_t));
    c->barrier = place(c, &used, sizeof *c->barrier);
    for (int i = 0; i < N_GRAPHS; i++)
        c->program[i] = place(c, &used, (uint64_t)c->max_phases * sizeof *c->program[i]);
    c->times = place(c, &used, (uint64_t)c->max_phases * sizeof *c->times);
    c->keep = place(c, &used, keep_bytes(c));
    c->hints = place(c, &used, (uint64_t)n_slots(c) * sizeof *c->hints);
    if (c->no_hints)
        c->hints = NULL;
    c->kept = place(c, &used, best_at(c) + sizeof *c->best);
    c->best = c->kept ? (wina_cuda_best *)((uint8_t *)c->kept + best_at(c)) : NULL;
    c->best_chunks = place(c, &used, WINA_CUDA_BEST_CHUNKS * sizeof *c->best_chunks);
    c->best_arrived = place(c, &used, sizeof *c->best_arrived);
    c->kept_sum = place(c, &used, kept_bytes(c));
    place_norms(c, place(c, &used, c->norms_floats * sizeof(float)));
    for (int i = 0; i < (f->window ? 2 : 1); i++)
        c->angles[i] = place(c, &used, (uint64_t)c->n_ctx * (uint64_t)f->rope_dim * sizeof(float));
    c->normed = place(c, &used, (uint64_t)f->n_embd * sizeof *c->normed);
    c->exit = place(c, &used, (uint64_t)f->n_embd * sizeof *c->exit);
    for (int v = 0; v < 2; v++)
        c->cache.data[v] = place(c, &used, wina_cuda_cache_bytes(&c->cache, v, c->m->end));
    return used;
}

/* The size of everything, and what host memory that takes. */
static int32_t count_buffers(cuda_backend *c, uint64_t *n_bytes) {
    const wina_cuda_host *host = c->m->host;
    c->max_phases = c->base.model->config.n_layer * (3 + 1 + 1 + 1 + 3 + 1 + 2) + 1;
    c->slot_norms = calloc((size_t)n_slots(c), sizeof *c->slot_norms);
    if (!c->slot_norms)
        return host->fail(WINA_E_MEMORY, "out of memory: session");
    place_norms(c, NULL);
    *n_bytes = place_all(c);
    return WINA_OK;
}

static int32_t create_buffers(cuda_backend *c) {
    const wina_cuda_host *host = c->m->host;
    const wina_model *model = c->base.model;
    uint64_t n_bytes = 0;
    int32_t status = count_buffers(c, &n_bytes);
    if (status != WINA_OK)
        return status;
    c->phases = calloc((size_t)c->max_phases, sizeof *c->phases);
    c->host_norms = calloc(c->norms_floats, sizeof *c->host_norms);
    if (!c->phases || !c->host_norms)
        return host->fail(WINA_E_MEMORY, "out of memory: session");
    CUDA_TRY(host, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking), "stream");
    CUDA_TRY(host, cudaMalloc((void **)&c->arena, n_bytes), "memory for the session");
    CUDA_TRY(host, cudaMemsetAsync(c->arena, 0, n_bytes, c->stream), "memory for the session");
    CUDA_TRY(host, cudaStreamSynchronize(c->stream), "memory for the session");
    place_all(c);
    c->base.n_bytes = n_bytes;
    const size_t step_bytes = sizeof *c->step + (size_t)model->config.n_embd * sizeof(float);
    CUDA_TRY(host, cudaHostAlloc((void **)&c->host_step, step_bytes, cudaHostAllocMapped),
             "host memory");
    CUDA_TRY(host, cudaHostGetDevicePointer((void **)&c->mapped_step, c->host_step, 0),
             "host memory");
    CUDA_TRY(host,
             cudaMallocHost((void **)&c->host_logits,
                            (size_t)model->weights.output.n_rows * sizeof(float)),
             "host memory");
    for (int i = 0; i < 2; i++) {
        CUDA_TRY(host, cudaMallocHost((void **)&c->host_keep[i], keep_bytes(c)), "host memory");
        for (int32_t k = 0; k < n_slots(c); k++)
            c->host_keep[i][k] = (wina_cuda_keep){INT32_MAX, 0};
    }
    CUDA_TRY(host, cudaMallocHost((void **)&c->host_kept, best_at(c) + sizeof *c->host_best),
             "host memory");
    c->host_best = (wina_cuda_best *)((uint8_t *)c->host_kept + best_at(c));
    CUDA_TRY(host, cudaMallocHost((void **)&c->host_kept_sum, kept_bytes(c)), "host memory");
    if (!has_head(c)) {
        const size_t n_embd = (size_t)model->config.n_embd;
        CUDA_TRY(host, cudaMallocHost((void **)&c->host_words, n_embd * sizeof *c->host_words),
                 "host memory");
        c->residual = calloc((size_t)c->n_batch * n_embd, sizeof *c->residual);
        if (!c->residual)
            return host->fail(WINA_E_MEMORY, "out of memory: session");
    }
    status = wina_cuda_upload_angles(c->m, c->n_ctx, false, c->angles[0]);
    if (status == WINA_OK && model->config.window)
        status = wina_cuda_upload_angles(c->m, c->n_ctx, true, c->angles[1]);
    return status;
}

static void backend_free(wina_backend *b) {
    cuda_backend *c = cuda_of(b);
    cudaSetDevice(c->m->device_index);
    if (c->profile && c->times)
        wina_cuda_profile_print(c->times, c->program[0], c->max_phases);
    wina_cuda_prompt_free(c->prompt);
    for (int i = 0; i < N_GRAPHS; i++)
        if (c->graphs[i])
            cudaGraphExecDestroy(c->graphs[i]);
    cudaFreeHost(c->host_step);
    cudaFreeHost(c->host_logits);
    cudaFreeHost(c->host_words);
    free(c->residual);
    free(c->tap_rows);
    cudaFreeHost(c->host_keep[0]);
    cudaFreeHost(c->host_keep[1]);
    cudaFreeHost(c->host_kept);
    cudaFreeHost(c->host_kept_sum);
    free(c->host_norms);
    free(c->slot_norms);
    cudaFree(c->arena);
    if (c->stream)
        cudaStreamDestroy(c->stream);
    free(c->phases);
    free(c);
}

static void copy_cache(wina_backend *b, int32_t layer, int32_t head, bool value, int32_t pos,
                       int32_t n, void *rows, bool to_cache) {
    cuda_backend *c = cuda_of(b);
    note(c, cudaSetDevice(c->m->device_index), "choosing the GPU");
    if (b->status == WINA_OK)
        b->status =
            wina_cuda_cache_copy(&c->cache, c->stream, layer, head, value, pos, n, rows, to_cache);
}

static int32_t cache_rows(const wina_backend *b, int32_t layer) {
    return wina_cuda_cache_rows(&((const cuda_backend *)b)->cache, layer);
}

static int32_t held_from(const wina_backend *b) {
    return ((const cuda_backend *)b)->cache.held_from;
}

static void set_held_from(wina_backend *b, int32_t pos) {
    cuda_of(b)->cache.held_from = pos;
}

static const wina_backend_ops CUDA_OPS = {
    .name = "cuda",
    .free = backend_free,
    .begin = begin,
    .recorded = recorded,
    .attn_norm = norm,
    .ffn_norm = norm,
    .project = wina_cuda_record_project,
    .input = input,
    .rope_store = rope_store,
    .attend = wina_cuda_record_attend,
    .swiglu = wina_cuda_record_swiglu,
    .enter = enter,
    .residual = residual,
    .logits = logits,
    .fetch_logits = fetch_logits,
    .best = best,
    .hidden = hidden,
    .copy_cache = copy_cache,
    .cache_rows = cache_rows,
    .held_from = held_from,
    .set_held_from = set_held_from,
};

static int32_t create_empty(wina_cuda_model *m, const wina_backend_params *params,
                            cuda_backend **out) {
    wina_cuda_cache cache;
    *out = NULL;
    const int32_t known = wina_cuda_cache_init(&cache, m, params);
    if (known != WINA_OK)
        return known;
    cuda_backend *c = calloc(1, sizeof *c);
    if (!c)
        return m->host->fail(WINA_E_MEMORY, "out of memory: session");
    const wina_config *f = &m->model->config;
    c->base.ops = &CUDA_OPS;
    c->base.model = m->model;
    c->m = m;
    c->n_ctx = params->n_ctx;
    c->n_batch = params->n_batch;
    c->cache = cache;
    c->keep_is = -1;
    c->profile = getenv("WINA_CUDA_PROFILE") != NULL;
    const char *hints = getenv("WINA_CUDA_HINTS");
    c->no_hints = hints && strcmp(hints, "0") == 0;
    c->n_splits = (2 * m->n_sms + f->n_head_kv - 1) / f->n_head_kv;
    c->n_splits = c->n_splits > MAX_SPLITS ? MAX_SPLITS : c->n_splits;
    *out = c;
    return WINA_OK;
}

int32_t wina_cuda_plan_session(wina_cuda_model *m, const wina_backend_params *params,
                               uint64_t *cache_bytes, uint64_t *buffer_bytes) {
    cuda_backend *c = NULL;
    uint64_t prompt_bytes = 0, n_bytes = 0;
    int32_t status = create_empty(m, params, &c);
    if (status == WINA_OK)
        status = count_buffers(c, &n_bytes);
    if (status == WINA_OK)
        status = wina_cuda_prompt_plan(m, params->n_batch, &prompt_bytes);
    if (status == WINA_OK) {
        *cache_bytes = 0;
        for (int v = 0; v < 2; v++)
            *cache_bytes += wina_cuda_cache_bytes(&c->cache, v, m->end);
        *buffer_bytes = n_bytes - *cache_bytes + prompt_bytes;
    }
    if (c)
        free(c->slot_norms);
    free(c);
    return status;
}

int32_t wina_cuda_backend_create(wina_cuda_model *m, const wina_backend_params *params,
                                 wina_backend **out) {
    *out = NULL;
    cuda_backend *c = NULL;
    int32_t status = create_empty(m, params, &c);
    if (status != WINA_OK)
        return status;
    const cudaError_t e = cudaSetDevice(m->device_index);
    if (e != cudaSuccess)
        status = wina_cuda_fail(m->host, e, "choosing the GPU");
    if (status == WINA_OK)
        status = create_buffers(c);
    if (status == WINA_OK) {
        const wina_cuda_lists lists = {c->keep, c->slot_norms, c->kept, c->kept_sum};
        status = wina_cuda_prompt_create(m, &lists, params->n_batch, c->stream, &c->prompt);
    }
    c->base.n_bytes += wina_cuda_prompt_bytes(c->prompt);
    if (status != WINA_OK) {
        backend_free(&c->base);
        return status;
    }
    *out = &c->base;
    return WINA_OK;
}

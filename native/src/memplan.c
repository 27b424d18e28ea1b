#include "memplan.h"

#include "cpu/columns.h"
#include "cudalib.h"
#include "packed.h"
#include "pairmap.h"
#include "status.h"
#include "vocab.h"

enum { DEFAULT_CTX = 4096, DEFAULT_BATCH = 128, DEFAULT_GPU_BATCH = 512 };
enum {
    FAULT_BYTES = 64 << 10, /* that a page fault in a cached file maps */
    N_CHUNKS = 16           /* of a matrix that is packed, see weights.c */
};

wina_backend_params wina_memplan_params(const wina_model *m, const wina_session_params *p) {
    const int32_t trained = m->config.n_ctx_train;
    return (wina_backend_params){.n_ctx = p->n_ctx                ? p->n_ctx
                                          : trained < DEFAULT_CTX ? trained
                                                                  : DEFAULT_CTX,
                                 .n_batch = p->n_batch ? p->n_batch
                                            : m->cuda  ? DEFAULT_GPU_BATCH
                                                       : DEFAULT_BATCH,
                                 .n_threads = p->n_threads ? p->n_threads : wina_threads_cores(),
                                 .cache_types = {p->cache_type_k, p->cache_type_v}};
}

/* Slots of a hash table that is at most half full. */
static uint64_t table_slots(uint64_t n) {
    uint64_t slots = 16;
    while (slots / 2 <= n)
        slots *= 2;
    return slots;
}

static uint64_t array_length(const wina_gguf *gguf, const char *key) {
    const wina_gguf_kv *kv = wina_gguf_find(gguf, key);
    return kv && kv->type == WINA_GGUF_ARRAY ? kv->count : 0;
}

/* The header, which the tokenizer points into, and the tokenizer's own tables. */
static uint64_t tokenizer_bytes(const wina_gguf *gguf) {
    const wina_vocab *v = NULL;
    const uint64_t n_tokens = array_length(gguf, "tokenizer.ggml.tokens");
    const uint64_t n_merges = array_length(gguf, "tokenizer.ggml.merges");
    uint64_t n = n_tokens * (sizeof *v->texts + sizeof *v->types + sizeof *v->ends) +
                 table_slots(n_tokens) * sizeof *v->slots;
    if (n_merges)
        n += table_slots(n_merges) * sizeof(wina_pairmap_slot);
    else
        n += n_tokens * sizeof(float); /* scores */
    return n + gguf->data_offset;
}

/* Norms of columns, and vectors of layers. */
static uint64_t vector_bytes(const wina_weights *w) {
    uint64_t n = 0;
    for (int32_t i = 0; i < w->n_layer; i++)
        for (int g = 0; g < WINA_N_GROUPS; g++) {
            const wina_group_weights *group = &w->layers[i].groups[g];
            n += (uint64_t)group->n_in * (uint64_t)(2 + group->n_projections);
        }
    return n * sizeof(float);
}

/* What layers on GPUs change: they keep nothing here but vectors. */
static int32_t plan_gpu(const wina_model *m, const wina_backend_params *p, wina_memory_plan *out) {
    wina_cudalib_plan_bytes gpu;
    WINA_TRY(wina_cudalib_plan(m, p, &gpu));
    out->weight_bytes -=
        (int64_t)(m->weights.arena_bytes - wina_weights_kept_bytes(&m->weights, m->cuda_first));
    if (m->cuda_first == 0)
        out->cache_bytes = 0, out->buffer_bytes = (int64_t)m->config.n_vocab * 4;
    out->gpu_weight_bytes = (int64_t)gpu.weights;
    out->gpu_cache_bytes = (int64_t)gpu.cache;
    out->gpu_buffer_bytes = (int64_t)gpu.buffers;
    return WINA_OK;
}

static int32_t make(const wina_model *m, const wina_session_params *params, wina_memory_plan *out) {
    const wina_weights *w = &m->weights;
    const wina_backend_params p = wina_memplan_params(m, params);
    uint64_t cache, buffers, largest = 0, embedded = 0;
    WINA_TRY(wina_cpu_backend_plan(m, &p, &cache, &buffers));
    for (uint64_t i = 0; i < m->gguf->n_tensors; i++)
        if (m->gguf->tensors[i].n_bytes > largest && &m->gguf->tensors[i] != w->token_embd)
            largest = m->gguf->tensors[i].n_bytes;
    if (w->token_embd) {
        embedded = (uint64_t)p.n_batch * FAULT_BYTES;
        embedded = embedded < w->token_embd->n_bytes ? embedded : w->token_embd->n_bytes;
    }
    uint64_t weights = w->arena_bytes;
    if (m->resident) {
        const uint64_t all = wina_columns_total(m), kept = (uint64_t)m->resident;
        weights += wina_columns_overhead(m) - all + (kept < all ? kept : all);
    }
    const uint64_t logits = (uint64_t)m->config.n_vocab * sizeof(float);
    *out = (wina_memory_plan){.weight_bytes = (int64_t)(weights + vector_bytes(w)),
                              .cache_bytes = (int64_t)cache,
                              .buffer_bytes = (int64_t)(buffers + logits),
                              .other_bytes = (int64_t)(tokenizer_bytes(m->gguf) + embedded)};
    /* While a file is packed there are parts of one matrix besides, and no session. */
    const int64_t threads = p.n_threads < N_CHUNKS ? p.n_threads : N_CHUNKS;
    const int64_t packing = wina_packed_find(m->gguf) ? 0 : (int64_t)largest * threads / N_CHUNKS;
    const int64_t loaded = out->weight_bytes; /* all of them are here first */
    if (m->cuda)
        WINA_TRY(plan_gpu(m, &p, out));
    const int64_t loading = loaded + packing;
    const int64_t running = out->weight_bytes + out->cache_bytes + out->buffer_bytes;
    out->peak_bytes = (loading > running ? loading : running) + out->other_bytes;
    return WINA_OK;
}

int32_t wina_model_plan_memory(const wina_model *m, const wina_session_params *params,
                               wina_memory_plan *plan) {
    wina_session_params p;
    wina_session_params_init(&p);
    if (params)
        p = *params;
    if (!m->has_plan)
        return wina_fail(WINA_E_STATE,
                         "there is no plan: the model's weights are not supported, or were not "
                         "looked at");
    WINA_TRY(wina_session_check_params(m, &p));
    return make(m, &p, plan);
}

int32_t wina_memplan_check(const wina_model *m, const wina_session_params *params) {
    if (!m->mem_limit)
        return WINA_OK;
    wina_memory_plan n;
    WINA_TRY(make(m, params, &n));
    if (n.peak_bytes <= m->mem_limit)
        return WINA_OK;
    const wina_backend_params p = wina_memplan_params(m, params);
    return wina_fail(
        WINA_E_MEMORY,
        "the memory limit is %.1f MB and the plan needs %.1f MB: weights %.1f MB, keys "
        "and values %.1f MB (%d tokens, %s and %s), buffers %.1f MB, the rest %.1f MB; "
        "a shorter context or a q8_0 cache needs less",
        (double)m->mem_limit / 1e6, (double)n.peak_bytes / 1e6, (double)n.weight_bytes / 1e6,
        (double)n.cache_bytes / 1e6, p.n_ctx, wina_cache_type_name(p.cache_types[0]),
        wina_cache_type_name(p.cache_types[1]), (double)n.buffer_bytes / 1e6,
        (double)n.other_bytes / 1e6);
}

/* decode_state: a session's state on the device, and what decode.c and record.c both do with it. */
#ifndef WINA_CUDA_DECODE_STATE_H
#define WINA_CUDA_DECODE_STATE_H

#include "cache.h"
#include "prompt.h"

enum { N_GRAPHS = 2, MAX_SPLITS = 16 };

typedef struct cuda_backend {
    wina_backend base;
    wina_cuda_model *m;
    int32_t n_ctx;
    cudaStream_t stream;
    cudaGraphExec_t graphs[N_GRAPHS]; /* masks of groups, of projections */
    int32_t graph;                    /* of the token under way */
    wina_cuda_phase *phases;          /* (max_phases) being recorded */
    int32_t n_phases, max_phases;

    int32_t shared_bytes;
    uint32_t formats;         /* of the panels, as bits */
    bool profile;             /* WINA_CUDA_PROFILE is set */
    bool no_hints;            /* WINA_CUDA_HINTS=0: every selection counts all scores */
    wina_cuda_prompt *prompt; /* or NULL: tokens one by one */
    bool batch;               /* the batch under way runs there */
    const float *entered;     /* (n_tokens, n_embd) in place of embeddings, or NULL */
    int32_t layer;            /* whose norm was the last step */
    float *tap_rows;          /* (n_batch, widest input) what a tap is shown, once there was one */
    float *hidden;            /* of the batch under way: (n_tokens, n_embd) host memory, or NULL */
    float *residual; /* (n_batch, n_embd) what the last layer left, if the head is elsewhere */
    int32_t n_batch;

    /* the batch under way */
    const int32_t *tokens;
    int32_t n_tokens, pos, n_dense;
    const wina_rules *rules;
    uint64_t version; /* of the rules that host_keep[1] and norms hold */
    int32_t keep_is;  /* what `keep` holds: 0 dense, 1 sparse, -1 nothing */

    /* page-locked host memory */
    wina_cuda_step *host_step;
    float *host_logits;                 /* (n_vocab padded) */
    wina_cuda_fixed *host_words;        /* (n_embd) like x, if the head is elsewhere */
    wina_cuda_keep *host_keep[2];       /* dense, sparse: like keep */
    int32_t *host_kept, *host_kept_sum; /* like kept */
    wina_cuda_best *host_best;          /* behind host_kept */
    bool is_fetched;                    /* host_logits hold the last token's, host_best nothing */
    float *host_norms;                  /* pageable: (norms_floats) */

    /* device memory */
    wina_cuda_step *step, *mapped_step;
    wina_cuda_fixed *x;      /* (n_embd) */
    wina_cuda_fixed *qkv[2]; /* (n_out of qkv) of even and odd layers */
    float *att, *gate_up, *ff, *logits;
    float *normed; /* (n_embd) what the head multiplies, if it is asked for */
    float *partial, *attend_partial;
    uint32_t *arrived, *attend_arrived, *barrier;
    wina_cuda_phase *program[N_GRAPHS]; /* (max_phases) */
    wina_cuda_times *times;             /* (max_phases) */
    wina_cuda_hint *hints;              /* by slot */
    wina_cuda_keep *keep;               /* by slot: (layer, group, list) */
    int32_t *kept, *kept_sum; /* by slot: inputs kept by the last token, by all of a batch */
    wina_cuda_best *best;     /* of the last token: behind kept, so that one copy takes both */
    wina_cuda_chunk *best_chunks;
    uint32_t *best_arrived;
    const float **slot_norms; /* host array by slot: device vectors (n_in), zeros after them */
    uint64_t norms_floats;
    wina_cuda_fixed *exit; /* (n_embd) what a block adds, where that is changed on the way */
    float *angles[2];      /* (n_ctx, rope_dim / 2, 2), of layers without and with a window */
    wina_cuda_cache cache;
    int32_t n_splits;
    uint8_t *arena;
} cuda_backend;

static inline cuda_backend *cuda_of(wina_backend *b) {
    return (cuda_backend *)b;
}

static inline void note(cuda_backend *c, cudaError_t e, const char *what) {
    if (e != cudaSuccess && c->base.status == WINA_OK)
        c->base.status = wina_cuda_fail(c->m->host, e, what);
}

/* Behind the numbers of kept inputs: 1 if a sum was too large. */
static inline int32_t overflow_slot(const cuda_backend *c) {
    return wina_cuda_slot(c->base.model->config.n_layer, 0, 0);
}

/* The logits are computed here, not by another part of a chain. */
static inline bool has_head(const cuda_backend *c) {
    return c->m->end == c->base.model->config.n_layer;
}

static inline bool is_sparse(const cuda_backend *c, int32_t token) {
    return token >= c->n_dense && c->rules->sparse;
}

static inline int32_t n_slots(const cuda_backend *c) {
    return overflow_slot(c);
}

static inline size_t keep_bytes(const cuda_backend *c) {
    return (size_t)n_slots(c) * sizeof *c->keep;
}

static inline size_t kept_bytes(const cuda_backend *c) {
    return (size_t)(n_slots(c) + 1) * sizeof *c->kept;
}

/* Where the best candidates are behind kept. */
static inline size_t best_at(const cuda_backend *c) {
    return (kept_bytes(c) + 15) / 16 * 16;
}

/* Lists of a group, at most. */
static inline int32_t group_lists(const cuda_backend *c, int32_t group) {
    return c->base.model->weights.layers[0].groups[group].n_projections;
}

/* Where each list's factors of the scores are. They are part of no recorded program, only their
 * addresses are: other rules need no other program. */
/* record.c: steps of one token, written down. */
void wina_cuda_record_project(wina_backend *b, int32_t layer, wina_group group);
void wina_cuda_record_attend(wina_backend *b, int32_t layer);
void wina_cuda_record_swiglu(wina_backend *b, int32_t layer);
void wina_cuda_record_head(cuda_backend *c);

#endif

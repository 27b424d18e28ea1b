/* backend: the operations of the decode graph (forward.c) as a table of functions. A backend owns
 * the buffers and the key/value cache of one session; the graph only names the steps. All steps
 * work on the batch of tokens given to begin(). */
#ifndef WINA_BACKEND_H
#define WINA_BACKEND_H

#include <stdbool.h>

#include "candidates.h"
#include "model.h"
#include "sparse/rule.h"

typedef struct wina_backend wina_backend;

/* Counted while projections run, for the tokens of a batch. */
typedef struct wina_counters {
    uint64_t sparse_read;  /* bits of weight values read in tokens that are sparse */
    uint64_t sparse_total; /* bits that dense decoding would have read for them */
    uint64_t token_bytes;  /* bytes of panels read for the last token of the batch */
} wina_counters;

/* One token of a step that several sessions take together. */
typedef struct wina_member {
    wina_backend *backend; /* of the session: its cache, and where its counters go */
    const wina_rules *rules;
    int32_t token, pos;
    float *logits; /* (n_vocab) */
} wina_member;

typedef struct wina_backend_ops {
    const char *name;
    void (*free)(wina_backend *backend);
    /* Starts n_tokens at position pos: x = embeddings, rotation angles. The first n_dense tokens
     * are dense, the others follow *rules, which stay as they are until the batch has ended. */
    void (*begin)(wina_backend *backend, const int32_t *tokens, int32_t n_tokens, int32_t pos,
                  int32_t n_dense, const wina_rules *rules);
    void (*rotate)(wina_backend *backend, int32_t layer, wina_site site); /* x = R x; may be NULL */
    void (*attn_norm)(wina_backend *backend, int32_t layer);              /* h = rms_norm(x) */
    void (*ffn_norm)(wina_backend *backend, int32_t layer);               /* h = rms_norm(x) */
    /* Kept inputs times the group's weights: qkv = W h + bias; x += W_o att; gate_up = W h;
     * x += W_down ff */
    void (*project)(wina_backend *backend, int32_t layer, wina_group group);
    /* What project() would multiply now: (n_tokens, n_in) in host memory. For taps. NULL on
     * failure, which sets `status`. */
    const float *(*input)(wina_backend *backend, wina_group group);
    void (*rope_store)(wina_backend *backend,
                       int32_t layer);                    /* rotate q and k; k, v to the cache */
    void (*attend)(wina_backend *backend, int32_t layer); /* att = softmax(q k) v */
    void (*swiglu)(wina_backend *backend, int32_t layer); /* ff = silu(gate) * up */
    /* x += what the layer's mixture of experts makes of h. NULL: cannot */
    void (*experts)(wina_backend *backend, int32_t layer);
    /* True if the layers need not be walked: the backend has recorded them and runs them itself
     * before logits. NULL: never. */
    bool (*recorded)(wina_backend *backend);
    /* For chains of backends that have some of the layers each (chain.h); may be NULL. x (n_tokens,
     * n_embd) in host memory: enter() takes it in place of the embeddings before its first layer,
     * residual() returns what its last layer left, until the next batch. */
    void (*enter)(wina_backend *backend, const float *x);
    const float *(*residual)(wina_backend *backend);
    /* logits of tokens [from, n_tokens) of the batch, (n, n_vocab). With fetch_logits, out may be
     * NULL: the last token's stay in the backend, which is `late` then and has checked that they
     * are finite. */
    void (*logits)(wina_backend *backend, int32_t from, float *out);
    /* While `late`: the logits, after which it is not; and the best of them. NULL: cannot */
    void (*fetch_logits)(wina_backend *backend, float *out);
    const wina_best *(*best)(wina_backend *backend);
    /* rms_norm(x) of all tokens of the batch, (n_tokens, n_embd): what the head multiplies. NULL:
     * cannot */
    void (*hidden)(wina_backend *backend, float *out);
    /* Copies keys (value: values) of one head, n positions from pos on, between the cache and rows
     * of wina_cache_row_bytes() in host memory, one behind the other. What fails sets `status`. */
    void (*copy_cache)(wina_backend *backend, int32_t layer, int32_t head, bool value, int32_t pos,
                       int32_t n, void *rows, bool to_cache);
    /* Positions that a layer has room for. */
    int32_t (*cache_rows)(const wina_backend *backend, int32_t layer);
    /* The first position that layers with a window still have; whoever fills the cache sets it. */
    int32_t (*held_from)(const wina_backend *backend);
    void (*set_held_from)(wina_backend *backend, int32_t pos);
    /* begin() and logits() for one token of each of n backends of one model and kind, n at most the
     * batch of this one, which is the first of them: whatever is not a member's own happens in its
     * buffers. Every member computes what it would compute alone. NULL: cannot */
    void (*begin_members)(wina_backend *backend, const wina_member *members, int32_t n);
    void (*logits_members)(wina_backend *backend);
} wina_backend_ops;

struct wina_backend {
    const wina_backend_ops *ops;
    const wina_model *model;
    wina_counters counters; /* of the batch under way */
    uint64_t n_bytes;       /* memory held */
    int32_t status;         /* of the batch under way: a wina_status, set where a step fails */
    bool late;              /* it has logits that the session has not */
    bool tapped;            /* set before begin(): input() will be asked of this batch */
};

/* What is said where a logit is not finite. */
#define WINA_NOT_FINITE "the model computed a logit that is not finite (broken weights?)"

typedef struct wina_backend_params {
    int32_t n_ctx, n_batch, n_threads;
    int32_t cache_types[2]; /* wina_cache_type of keys and of values */
} wina_backend_params;

/* The CPU backend. */
int32_t wina_cpu_backend_create(const wina_model *model, const wina_backend_params *params,
                                wina_backend **out);
/* Memory that such a backend would touch; works without weights. */
int32_t wina_cpu_backend_plan(const wina_model *model, const wina_backend_params *params,
                              uint64_t *cache_bytes, uint64_t *buffer_bytes);

#endif

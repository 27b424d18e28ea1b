/* cpu: state of the CPU backend. Every buffer is token-major and states its shape; B is the largest
 * batch. One token runs over compressed lists of kept inputs (gemv), several over masked
 * activations (gemm): the same results, bit for bit. */
#ifndef WINA_CPU_H
#define WINA_CPU_H

#include "../backend.h"
#include "columns.h"
#include "kernels.h"
#include "kvcache.h"

/* Scratch of one thread that selects inputs and attends. */
typedef struct wina_cpu_scratch {
    float *score;     /* (n_widest) */
    uint32_t *bits;   /* (n_widest) */
    int32_t *kept;    /* (n_widest) */
    float *attention; /* (ATTENTION_QUERIES, ATTENTION_CHUNK) scores */
    float *parts;     /* (ATTENTION_QUERIES, n_chunks, head_dim + 2) see partial, of a batch */
    float *tile;      /* (tile_rows, head_dim) rows of the cache */
    float *part_sums; /* (WINA_GEMM_STRIPS, B, 64) */
} wina_cpu_scratch;

typedef struct wina_cpu {
    wina_backend base;
    wina_kernels kernels;
    wina_threads *threads;
    wina_cpu_scratch *scratch; /* (n_threads) */

    int32_t n_ctx, n_batch, n_threads;
    int32_t tile_rows; /* of the cache that are attended to together */
    int32_t n_widest;  /* largest input of any group, rounded up to 32 */
    /* the batch under way */
    int32_t n_tokens, pos, n_dense;
    int32_t n_embedded; /* tokens since pages of the file's embeddings were given back */
    const wina_rules *rules;
    const wina_member *members; /* (n_tokens) whose tokens they are; NULL: all of this session */
    bool joined;                /* qkv of one token is not in parts */

    float *x;       /* (B, n_embd) residual stream */
    float *h;       /* (B, n_embd) normed */
    float *parts;   /* (WINA_PARTS, n_out) a projection of one token, before its parts are joined */
    float *qkv;     /* (B, n_out of qkv) */
    float *att;     /* (B, n_head * head_dim) */
    float *gate_up; /* (B, n_out of gate_up) */
    float *ff;      /* (B, n_ff) or (tokens of an expert, its width) */
    float *out;     /* (B, n_out of o and down) or (WINA_HEAD_BATCH, n_vocab padded) */
    float *cos[2], *sin[2]; /* (B, rope_dim / 2); [1]: of layers with a window */
    /* of the layer's mixture of experts, if the model has one: */
    float *mixed;      /* (B, n_embd) what its experts add up to */
    float *gathered;   /* (B, n_embd) rows of h of the tokens that go through an expert */
    float *router;     /* (B, n_out of the router) */
    int32_t *chosen;   /* (B, n_expert_used) experts of a token, rising */
    float *share;      /* (B, n_expert_used) their weights */
    int32_t *visitors; /* (B) tokens of one expert */
    float *partial;    /* (n_head, n_chunks, head_dim + 2) attention over a chunk: o, max, sum */
    wina_kvcache cache;
    wina_columns *columns; /* NULL: all of them are in memory or mapped */

    wina_act acts[WINA_MAX_PROJECTIONS]; /* of one token, one per mask */
    int32_t *kept[WINA_MAX_PROJECTIONS]; /* (n_widest) */
    int32_t *n_kept;                     /* (B) of each token, by the mask under way */
    wina_batch batch;
    void *arena;
    uint64_t arena_bytes;
} wina_cpu;

enum {
    WINA_ATTENTION_CHUNK = 512,  /* positions attended to in one piece */
    WINA_ATTENTION_QUERIES = 16, /* heads times tokens that read the cache together */
    WINA_ATTENTION_TILE = 4096,  /* floats of the cache that are read together, about */
    WINA_EMBEDDED = 64,          /* tokens after which the embeddings' pages are given back */
    WINA_GEMM_STRIPS = 4,        /* strips that several tokens multiply together */
    WINA_HEAD_BATCH = 16         /* tokens whose logits are computed together */
};

/* W x for all tokens of the batch under way. */
typedef struct wina_cpu_product {
    const wina_group_weights *group;
    const float *in;        /* (n_tokens, n_in) */
    float *out;             /* (n_tokens, n_out); of one token the result is in c->parts instead */
    const wina_rule *rules; /* (n_masks) for sparse tokens; NULL: every token is dense */
    int32_t n_masks;        /* kept lists per token: 1, or one per projection */
    const float *gate;      /* (n_tokens, gate_stride) not yet activated, for rules from gates */
    int64_t gate_stride;
    int32_t first; /* of the batch's tokens, which the first one is */
    bool residual; /* the result is added to x */
    bool no_last;  /* the last token's bytes are not counted: it is not the last of the batch */
} wina_cpu_product;

void wina_cpu_multiply(wina_cpu *c, const wina_cpu_product *product);
/* The same, joined: the result is in p->out for one token, too. */
void wina_cpu_multiply_joined(wina_cpu *c, const wina_cpu_product *product);

/* project.c: the step of the graph that sparsity is about. For one token qkv and gate_up are left
 * in parts, for the step that uses them to join. */
void wina_cpu_project(wina_backend *backend, int32_t layer, wina_group group);
/* Rows [row0, row1) of the last projection of one token, with their bias. */
void wina_cpu_join_parts(const wina_cpu *c, const wina_group_weights *g, int64_t row0, int64_t row1,
                         float *y);
const float *wina_cpu_input(wina_backend *backend, wina_group group);
void wina_cpu_rotate(wina_backend *backend, int32_t layer, wina_site site);
void wina_cpu_logits(wina_backend *backend, int32_t from, float *out);
void wina_cpu_logits_members(wina_backend *backend);

/* cpu.c: x += what a block adds, now in `out` (of one token: in parts), normed and scaled. */
void wina_cpu_leave(wina_cpu *c, int32_t layer, wina_group group);
/* The same of add (n_tokens, stride), which is scaled in place. */
void wina_cpu_add_block(wina_cpu *c, int32_t layer, wina_site site, float *add, int64_t stride);
/* ff = activated gate * up, of a group gate_up whose product is in gate_up (of one token: in
 * parts). */
void wina_cpu_activate(wina_cpu *c, const wina_group_weights *gate_up);

/* mixture.c */
void wina_cpu_experts(wina_backend *backend, int32_t layer);

/* members.c: one token of several sessions. Each of them attends to its own cache. */
void wina_cpu_begin_members(wina_backend *backend, const wina_member *members, int32_t n);
void wina_cpu_attend_members(wina_cpu *c, int32_t layer);
static inline const wina_cpu *wina_cpu_owner(const wina_cpu *c, int32_t token) {
    return c->members ? (const wina_cpu *)c->members[token].backend : c;
}

/* attention.c */
void wina_cpu_rope_store(wina_backend *backend, int32_t layer);
void wina_cpu_attend(wina_backend *backend, int32_t layer);

#endif

/* weights: the tensors of a model by role, checked against the configuration and packed. The four
 * projection groups of a layer each share one input, one set of column norms and one output vector
 * (group.h). Where the feed-forward block is a mixture, its experts have the last two (experts.h).
 */
#ifndef WINA_WEIGHTS_H
#define WINA_WEIGHTS_H

#include "config.h"
#include "experts.h"
#include "group.h"

enum { WINA_N_GROUPS = 4 };

/* Where the residual stream can change its basis: x = R x, R (n_embd, n_embd) orthogonal. Files
 * that pywina transforms have such matrices (blk.N.attn_rot.weight, blk.N.ffn_rot.weight). */
typedef enum wina_site { WINA_SITE_ATTN, WINA_SITE_FFN } wina_site;
enum { WINA_N_SITES = 2 };

typedef struct wina_layer {
    /* By wina_group. With experts gate_up and down hold no panels and no norms, only the shape of
     * an expert that is chosen. */
    wina_group_weights groups[WINA_N_GROUPS];
    wina_experts_layer mixture; /* n 0: none */
    wina_group_weights
        rotations[WINA_N_SITES];     /* before the norms; n_panels 0: none. Never sparse */
    uint64_t offset;                 /* of its first panel in the arena */
    float *attn_norm;                /* (n_embd) gain, NULL: none */
    float *ffn_norm;                 /* (n_embd) gain, NULL: none */
    float *exit_norms[WINA_N_SITES]; /* (n_embd) gain of what a block adds, NULL: none */
    float *q_norm, *k_norm;          /* (head_dim) or (heads * head_dim) gain, NULL: none */
} wina_layer;

typedef struct wina_weights {
    int32_t n_layer;
    bool fused;     /* the file's matrices hold whole groups */
    uint8_t *arena; /* all panels, in huge pages where there are any, or in a packed file */
    uint64_t arena_bytes;
    bool mapped;                        /* the arena is the file's: not to be freed or written */
    bool locked;                        /* its pages stay in memory */
    int32_t end_here;                   /* panels of layers from here on were dropped */
    wina_layer *layers;                 /* (n_layer) */
    float *output_norm;                 /* (n_embd) gain */
    float *rope_factors;                /* (rope_dim / 2) frequency divisors or NULL */
    float *rope_factors_long;           /* the same for long contexts, or NULL */
    wina_panel output;                  /* (n_vocab, n_embd) */
    const wina_gguf_tensor *token_embd; /* read from the file; NULL if tied: from `output` */
    uint64_t total_bytes;
    uint64_t sparse_bytes;
} wina_weights;

/* Checks every tensor and computes all sizes; nothing is allocated but the table of layers. */
int32_t wina_weights_plan(const wina_gguf *gguf, const wina_config *config, wina_weights *out);

/* Packs what was planned, with norms; panels of a packed file are used as they are unless
 * how->copy. how->stop(progress, user) may end it: WINA_E_CANCELLED. */
typedef struct wina_weights_how {
    wina_threads *threads;
    const wina_fill_ops *fill;
    int32_t (*stop)(float progress, void *user);
    void *user;
    bool copy; /* a packed file's panels are read into memory, not mapped */
    bool lock; /* panels must stay in memory */
} wina_weights_how;

int32_t wina_weights_load(const wina_gguf *gguf, const wina_config *config,
                          const wina_weights_how *how, wina_weights *weights);
void wina_weights_free(wina_weights *weights);

/* Panels of layers from `first` on leave memory, with the output matrix unless embeddings of the
 * layers before them are in it; from 0 on, also the embeddings. Those of a mapped file are read
 * again if somebody asks for them, all others are gone: their `data` is NULL. */
void wina_weights_drop(wina_weights *weights, const wina_gguf *gguf, int32_t first);
/* Bytes of panels that stay then. */
uint64_t wina_weights_kept_bytes(const wina_weights *weights, int32_t first);

/* Rows of a tensor from its row `row` on, which must be there; those of fused and of stacked
 * matrices are in pieces. false: the tensor is in no panel. */
bool wina_weights_find_rows(const wina_weights *weights, const char *name, int64_t row,
                            wina_panel_rows *out);

/* Calls visit for all norms, (n) each, in the order in which packed files hold them. */
int32_t wina_weights_each_norms(wina_weights *weights,
                                int32_t (*visit)(float **norms, int32_t n, void *user), void *user);

/* The largest input and (padded) output of a group, over all layers and experts. */
int32_t wina_weights_widest_in(const wina_weights *weights, int group);
int32_t wina_weights_widest_out(const wina_weights *weights, int group);
/* Whether any panel has wina_layout_rounds_by(sub). */
bool wina_weights_round_by(const wina_weights *weights, int32_t sub);

/* Row of the token embedding, (n_embd). */
void wina_weights_embed(const wina_weights *weights, int32_t token, float *out);

#endif

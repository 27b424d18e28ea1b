/* config: the hyperparameters of a model, read from metadata and validated in one place before
 * anything is allocated from them. An architecture is a row of a table: its name and the traits in
 * which it differs from the common decoder block. */
#ifndef WINA_CONFIG_H
#define WINA_CONFIG_H

#include "gguf.h"

typedef enum wina_rope {
    WINA_ROPE_INTERLEAVED, /* pairs (2i, 2i + 1): llama files */
    WINA_ROPE_HALVES       /* pairs (i, i + n/2): qwen2 and most others ("neox") */
} wina_rope;

typedef enum wina_activation {
    WINA_ACT_SILU,
    WINA_ACT_GELU /* the tanh form */
} wina_activation;

typedef enum wina_qk_norm {
    WINA_QK_NORM_NONE,
    WINA_QK_NORM_HEAD, /* every head of q and k by itself, gains (head_dim) */
    WINA_QK_NORM_ALL   /* q and k whole, gains (heads * head_dim) */
} wina_qk_norm;

/* Whether the feed-forward block is a mixture of experts. */
typedef enum wina_experts {
    WINA_EXPERTS_NONE,
    WINA_EXPERTS_MAYBE, /* if expert_count says so */
    WINA_EXPERTS_ALWAYS
} wina_experts;

/* An expert that every token goes through, beside those that are chosen. */
typedef enum wina_shared {
    WINA_SHARED_NONE,
    WINA_SHARED_PLAIN, /* if expert_shared_feed_forward_length says so */
    WINA_SHARED_GATED  /* weighed by sigmoid(ffn_gate_inp_shexp h) */
} wina_shared;

/* Traits that follow from the name of an architecture. */
typedef struct wina_arch {
    const char *name; /* general.architecture, also the prefix of the other keys */
    wina_rope rope;
    wina_activation activation;
    wina_qk_norm qk_norm;
    bool qkv_bias;    /* blk.N.attn_{q,k,v}.bias must be there */
    bool fused;       /* attn_qkv holds q, k, v and ffn_up holds gate, up */
    bool no_pre_norm; /* the blocks read the residual stream as it is */
    bool post_norm;   /* what a block adds is normed first */
    bool scale_embd;  /* embeddings are multiplied by sqrt(n_embd) */
    bool multipliers; /* granite's scale keys are read */
    wina_experts experts;
    wina_shared shared;
    bool experts_norm;   /* the weights of the chosen experts are divided by their sum */
    bool experts_split;  /* without a width of its own an expert has its share of n_ff */
    int32_t window_step; /* 0: no windows; else every such layer, from the last, has none; 1: all */
    int32_t rope_step;   /* 0: all layers rotate; else every such layer does not */
    int32_t
        scale_embd_layers; /* with this many layers attention divides by sqrt(n_embd / n_head) */
} wina_arch;

typedef struct wina_config {
    const wina_arch *arch;
    int32_t n_vocab;
    int32_t n_ctx_train;
    int32_t n_embd;
    int32_t n_layer;
    int32_t n_head;
    int32_t n_head_kv; /* divides n_head */
    int32_t head_dim;  /* even */
    int32_t n_ff;
    int32_t n_expert;      /* to choose from; 0: no mixture */
    int32_t n_expert_used; /* chosen for every token, <= n_expert */
    int32_t n_ff_expert;   /* width of each */
    int32_t n_ff_shared;   /* width of the shared expert; 0: none */
    bool expert_norm;      /* see experts_norm */
    int32_t rope_dim;      /* dimensions of a head that are rotated: even, <= head_dim */
    float rope_theta;
    float rope_scale;        /* positions are multiplied by this; 1 without linear scaling */
    float rope_theta_window; /* of layers with a window, which are not scaled */
    float rope_gain;         /* cos and sin are multiplied by this */
    int32_t n_ctx_short;     /* longer contexts use the long factors; 0: no such factors */
    int32_t window;          /* positions a layer with a window sees, its own included; 0: none */
    float rms_eps;
    float embd_scale;
    float residual_scale; /* of what a block adds */
    float attn_scale;     /* of q k */
    float logit_scale;
    float attn_softcap;  /* scores become cap * tanh(score / cap); 0: none */
    float logit_softcap; /* the same for logits */
    bool tied_output;
} wina_config;

static inline bool wina_config_has_window(const wina_config *c, int32_t layer) {
    const int32_t step = c->arch->window_step;
    return c->window > 0 && (step == 1 || (layer + 1) % step != 0);
}
static inline bool wina_config_has_rope(const wina_config *c, int32_t layer) {
    return c->arch->rope_step == 0 || (layer + 1) % c->arch->rope_step != 0;
}
/* What a block adds to the residual stream is changed on the way. */
static inline bool wina_config_has_exit(const wina_config *c) {
    return c->arch->post_norm || c->residual_scale != 1.0f;
}
/* Reads and checks everything but the tensors (see weights.h). */
int32_t wina_config_read(const wina_gguf *gguf, wina_config *out);

#endif

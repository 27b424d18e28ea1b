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

typedef struct wina_arch {
    const char *name; /* general.architecture, also the prefix of the other keys */
    wina_rope rope;
    bool qkv_bias; /* blk.N.attn_{q,k,v}.bias must be there */
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
    int32_t rope_dim; /* dimensions of a head that are rotated: even, <= head_dim */
    float rope_theta;
    float rope_scale; /* positions are multiplied by this; 1 without linear scaling */
    float rms_eps;
    bool tied_output;
} wina_config;

/* Reads and checks everything but the tensors (see weights.h). */
int32_t wina_config_read(const wina_gguf *gguf, wina_config *out);

#endif

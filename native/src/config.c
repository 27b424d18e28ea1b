#include "config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "status.h"

/* Adding an architecture: a row here, see docs/adding-a-model.md. */
static const wina_arch ARCHS[] = {
    {.name = "llama",
     .rope = WINA_ROPE_INTERLEAVED,
     .experts = WINA_EXPERTS_MAYBE,
     .experts_norm = true,
     .window_step = 1},
    {.name = "qwen2", .rope = WINA_ROPE_HALVES, .qkv_bias = true},
    {.name = "qwen3", .rope = WINA_ROPE_HALVES, .qk_norm = WINA_QK_NORM_HEAD},
    {.name = "smollm3", .rope = WINA_ROPE_INTERLEAVED, .rope_step = 4},
    {.name = "phi3", .rope = WINA_ROPE_HALVES, .fused = true, .window_step = 1},
    {.name = "gemma2",
     .rope = WINA_ROPE_HALVES,
     .activation = WINA_ACT_GELU,
     .post_norm = true,
     .scale_embd = true,
     .window_step = 2,
     .scale_embd_layers = 46},
    {.name = "gemma3",
     .rope = WINA_ROPE_HALVES,
     .activation = WINA_ACT_GELU,
     .qk_norm = WINA_QK_NORM_HEAD,
     .post_norm = true,
     .scale_embd = true,
     .window_step = 6,
     .scale_embd_layers = 62},
    {.name = "olmo2",
     .rope = WINA_ROPE_HALVES,
     .qk_norm = WINA_QK_NORM_ALL,
     .no_pre_norm = true,
     .post_norm = true},
    {.name = "granite", .rope = WINA_ROPE_INTERLEAVED, .multipliers = true},
    {.name = "qwen2moe",
     .rope = WINA_ROPE_HALVES,
     .qkv_bias = true,
     .experts = WINA_EXPERTS_ALWAYS,
     .shared = WINA_SHARED_GATED,
     .experts_split = true},
    {.name = "qwen3moe",
     .rope = WINA_ROPE_HALVES,
     .qk_norm = WINA_QK_NORM_HEAD,
     .experts = WINA_EXPERTS_ALWAYS,
     .experts_norm = true,
     .experts_split = true},
    {.name = "olmoe",
     .rope = WINA_ROPE_HALVES,
     .qk_norm = WINA_QK_NORM_ALL,
     .experts = WINA_EXPERTS_ALWAYS},
    {.name = "granitemoe",
     .rope = WINA_ROPE_INTERLEAVED,
     .multipliers = true,
     .experts = WINA_EXPERTS_ALWAYS,
     .shared = WINA_SHARED_PLAIN,
     .experts_norm = true},
};
enum { N_ARCHS = sizeof ARCHS / sizeof ARCHS[0] };

enum { MAX_LAYERS = 1024, MAX_WIDTH = 1 << 20, MAX_HEADS = 1 << 12, MAX_HEAD_DIM = 1 << 12 };
enum { MAX_CTX = 1 << 27, MAX_VOCAB = 1 << 22, MAX_EXPERTS = 1 << 10 };

/* One key of the architecture, "llama." + suffix. */
typedef struct reader {
    const wina_gguf *gguf;
    const char *arch;
    char key[96];
} reader;

static const char *key_of(reader *r, const char *suffix) {
    snprintf(r->key, sizeof r->key, "%s.%s", r->arch, suffix);
    return r->key;
}

/* An integer in [low, high]; a missing key is an error unless fallback >= 0. */
static int32_t read_count(reader *r, const char *suffix, int64_t fallback, uint32_t low,
                          uint32_t high, int32_t *out) {
    uint32_t value = 0;
    const char *key = key_of(r, suffix);
    if (fallback >= 0)
        WINA_TRY(wina_gguf_has_u32(r->gguf, key, (uint32_t)fallback, &value));
    else
        WINA_TRY(wina_gguf_get_u32(r->gguf, key, &value));
    if (value < low || value > high)
        return wina_fail(WINA_E_FORMAT, "%s is %u, must be in %u..%u", key, value, low, high);
    *out = (int32_t)value;
    return WINA_OK;
}

static int32_t read_positive_float(reader *r, const char *suffix, float fallback, float *out) {
    const char *key = key_of(r, suffix);
    if (fallback > 0)
        WINA_TRY(wina_gguf_has_f32(r->gguf, key, fallback, out));
    else
        WINA_TRY(wina_gguf_get_f32(r->gguf, key, out));
    if (!(*out > 0) || !isfinite(*out))
        return wina_fail(WINA_E_FORMAT, "%s is %g, must be positive and finite", key, (double)*out);
    return WINA_OK;
}

static int32_t find_arch(const wina_gguf *gguf, const wina_arch **out) {
    wina_str name;
    WINA_TRY(wina_gguf_get_str(gguf, "general.architecture", &name));
    char known[256] = "";
    for (int i = 0, at = 0; i < N_ARCHS; i++) {
        if (name.n == strlen(ARCHS[i].name) && memcmp(name.data, ARCHS[i].name, name.n) == 0) {
            *out = &ARCHS[i];
            return WINA_OK;
        }
        at += snprintf(known + at, sizeof known - (size_t)at, "%s%s", i ? ", " : "", ARCHS[i].name);
    }
    return wina_fail(WINA_E_UNSUPPORTED, "architecture \"%.*s\" is not supported (supported: %s)",
                     (int)(name.n < 64 ? name.n : 64), name.data, known);
}

/* Position scaling: none, linear and factors per frequency (rope_factors_long and _short) are
 * understood, anything else is refused by name. */
static int32_t read_rope_scaling(reader *r, wina_config *c) {
    c->rope_scale = 1.0f;
    WINA_TRY(read_positive_float(r, "rope.scaling.attn_factor", 1.0f, &c->rope_gain));
    if (wina_gguf_find_tensor(r->gguf, "rope_factors_long.weight"))
        WINA_TRY(read_count(r, "rope.scaling.original_context_length", c->n_ctx_train, 1, MAX_CTX,
                            &c->n_ctx_short));
    wina_str type = {"none", 4};
    if (wina_gguf_find(r->gguf, key_of(r, "rope.scaling.type")))
        WINA_TRY(wina_gguf_get_str(r->gguf, r->key, &type));
    if (type.n == 4 && memcmp(type.data, "none", 4) == 0)
        return WINA_OK;
    if (type.n == 8 && memcmp(type.data, "longrope", 8) == 0 && c->n_ctx_short)
        return WINA_OK;
    if (type.n != 6 || memcmp(type.data, "linear", 6) != 0)
        return wina_fail(WINA_E_UNSUPPORTED, "%s \"%.*s\" is not supported", r->key,
                         (int)(type.n < 64 ? type.n : 64), type.data);
    float factor;
    WINA_TRY(read_positive_float(r, "rope.scaling.factor", 1.0f, &factor));
    c->rope_scale = 1.0f / factor;
    return WINA_OK;
}

static int32_t read_attention(reader *r, wina_config *c) {
    WINA_TRY(read_count(r, "attention.head_count", -1, 1, MAX_HEADS, &c->n_head));
    WINA_TRY(read_count(r, "attention.head_count_kv", c->n_head, 1, MAX_HEADS, &c->n_head_kv));
    if (c->n_head % c->n_head_kv != 0)
        return wina_fail(WINA_E_FORMAT,
                         "%s.attention.head_count %d is not a multiple of head_count_kv %d",
                         r->arch, c->n_head, c->n_head_kv);
    bool has_key_length = wina_gguf_find(r->gguf, key_of(r, "attention.key_length")) != NULL;
    if (!has_key_length && c->n_embd % c->n_head != 0)
        return wina_fail(WINA_E_FORMAT, "%s.embedding_length %d is not a multiple of head_count %d",
                         r->arch, c->n_embd, c->n_head);
    WINA_TRY(read_count(r, "attention.key_length", c->n_embd / c->n_head, 2, MAX_HEAD_DIM,
                        &c->head_dim));
    int32_t value_length;
    WINA_TRY(read_count(r, "attention.value_length", c->head_dim, 2, MAX_HEAD_DIM, &value_length));
    if (value_length != c->head_dim)
        return wina_fail(WINA_E_UNSUPPORTED,
                         "%s.attention.value_length %d differs from key_length %d", r->arch,
                         value_length, c->head_dim);
    WINA_TRY(
        read_count(r, "rope.dimension_count", c->head_dim, 2, (uint32_t)c->head_dim, &c->rope_dim));
    if (c->head_dim % 2 != 0 || c->rope_dim % 2 != 0)
        return wina_fail(WINA_E_FORMAT,
                         "%s: head width %d and rope.dimension_count %d must be even", r->arch,
                         c->head_dim, c->rope_dim);
    return WINA_OK;
}

static bool has_key(reader *r, const char *suffix) {
    return wina_gguf_find(r->gguf, key_of(r, suffix)) != NULL;
}

/* Windows, and what differs between layers with and without one. */
static int32_t read_window(reader *r, wina_config *c) {
    c->rope_theta_window = c->rope_theta;
    if (!c->arch->window_step)
        return WINA_OK;
    const int32_t fallback = strcmp(r->arch, "gemma2") == 0 ? 4096 : 0;
    WINA_TRY(read_count(r, "attention.sliding_window", fallback, 0, MAX_CTX, &c->window));
    /* Two bases came with gemma3, whose files do not always name the second one. */
    float base = strcmp(r->arch, "gemma3") == 0 ? 10000.0f : c->rope_theta;
    return read_positive_float(r, "rope.freq_base_swa", base, &c->rope_theta_window);
}

static int32_t read_scales(reader *r, wina_config *c) {
    const int32_t width =
        c->n_layer == c->arch->scale_embd_layers ? c->n_embd / c->n_head : c->head_dim;
    c->embd_scale = c->arch->scale_embd ? sqrtf((float)c->n_embd) : 1.0f;
    c->residual_scale = c->logit_scale = 1.0f;
    WINA_TRY(read_positive_float(r, "attention.scale", 1.0f / sqrtf((float)width), &c->attn_scale));
    if (has_key(r, "attn_logit_softcapping"))
        WINA_TRY(read_positive_float(r, "attn_logit_softcapping", -1, &c->attn_softcap));
    if (has_key(r, "final_logit_softcapping"))
        WINA_TRY(read_positive_float(r, "final_logit_softcapping", -1, &c->logit_softcap));
    if (!c->arch->multipliers)
        return WINA_OK;
    WINA_TRY(read_positive_float(r, "embedding_scale", 1.0f, &c->embd_scale));
    WINA_TRY(read_positive_float(r, "residual_scale", 1.0f, &c->residual_scale));
    float divisor;
    WINA_TRY(read_positive_float(r, "logit_scale", 1.0f, &divisor));
    c->logit_scale = 1.0f / divisor;
    return WINA_OK;
}

/* Settings of routers under which the weights would mean something else. */
static int32_t refuse_routers(reader *r) {
    uint32_t gating = 1; /* llama.cpp's number of softmax */
    float scale = 1;
    WINA_TRY(wina_gguf_has_u32(r->gguf, key_of(r, "expert_gating_func"), 1, &gating));
    if (gating != 1)
        return wina_fail(WINA_E_UNSUPPORTED, "%s %u is not supported, only 1 (softmax)", r->key,
                         gating);
    WINA_TRY(wina_gguf_has_f32(r->gguf, key_of(r, "expert_weights_scale"), 1.0f, &scale));
    if (scale != 0.0f && scale != 1.0f)
        return wina_fail(WINA_E_UNSUPPORTED, "%s %g is not supported", r->key, (double)scale);
    uint32_t n_groups = 1;
    WINA_TRY(wina_gguf_has_u32(r->gguf, key_of(r, "expert_group_count"), 1, &n_groups));
    return n_groups <= 1
               ? WINA_OK
               : wina_fail(WINA_E_UNSUPPORTED, "%s %u is not supported", r->key, n_groups);
}

/* How many experts there are, how many of them a token goes through, and how wide they are. */
static int32_t read_experts(reader *r, wina_config *c) {
    const wina_arch *a = c->arch;
    const bool always = a->experts == WINA_EXPERTS_ALWAYS;
    WINA_TRY(
        read_count(r, "expert_count", always ? -1 : 0, always ? 1 : 0, MAX_EXPERTS, &c->n_expert));
    if (c->n_expert == 0)
        return WINA_OK;
    if (a->experts == WINA_EXPERTS_NONE)
        return wina_fail(WINA_E_UNSUPPORTED,
                         "%s.expert_count is %d: a mixture of experts is not supported there",
                         r->arch, c->n_expert);
    WINA_TRY(read_count(r, "expert_used_count", -1, 1, (uint32_t)c->n_expert, &c->n_expert_used));
    const int32_t share = c->n_ff / c->n_expert_used;
    WINA_TRY(read_count(r, "expert_feed_forward_length",
                        !a->experts_split ? c->n_ff
                        : share > 0       ? share
                                          : 1,
                        1, MAX_WIDTH, &c->n_ff_expert));
    if (a->shared)
        WINA_TRY(read_count(r, "expert_shared_feed_forward_length",
                            a->shared == WINA_SHARED_GATED ? c->n_ff : 0,
                            a->shared == WINA_SHARED_GATED, MAX_WIDTH, &c->n_ff_shared));
    WINA_TRY(wina_gguf_has_bool(r->gguf, key_of(r, "expert_weights_norm"), a->experts_norm,
                                &c->expert_norm));
    return refuse_routers(r);
}

int32_t wina_config_read(const wina_gguf *gguf, wina_config *out) {
    wina_config c = {0};
    WINA_TRY(find_arch(gguf, &c.arch));
    reader r = {.gguf = gguf, .arch = c.arch->name};
    WINA_TRY(read_count(&r, "embedding_length", -1, 1, MAX_WIDTH, &c.n_embd));
    WINA_TRY(read_count(&r, "block_count", -1, 1, MAX_LAYERS, &c.n_layer));
    WINA_TRY(read_count(&r, "feed_forward_length", -1, 1, MAX_WIDTH, &c.n_ff));
    WINA_TRY(read_experts(&r, &c));
    WINA_TRY(read_count(&r, "context_length", -1, 1, MAX_CTX, &c.n_ctx_train));
    WINA_TRY(read_attention(&r, &c));
    WINA_TRY(read_positive_float(&r, "attention.layer_norm_rms_epsilon", -1, &c.rms_eps));
    WINA_TRY(read_positive_float(&r, "rope.freq_base", 10000.0f, &c.rope_theta));
    WINA_TRY(read_rope_scaling(&r, &c));
    WINA_TRY(read_window(&r, &c));
    WINA_TRY(read_scales(&r, &c));

    const wina_gguf_tensor *embd = wina_gguf_find_tensor(gguf, "token_embd.weight");
    if (!embd)
        return wina_fail(WINA_E_FORMAT, "tensor token_embd.weight is missing");
    if (embd->ne[1] > MAX_VOCAB)
        return wina_fail(WINA_E_FORMAT, "token_embd.weight has %llu rows, at most %d are supported",
                         (unsigned long long)embd->ne[1], MAX_VOCAB);
    c.n_vocab = (int32_t)embd->ne[1];
    c.tied_output = wina_gguf_find_tensor(gguf, "output.weight") == NULL;
    *out = c;
    return WINA_OK;
}

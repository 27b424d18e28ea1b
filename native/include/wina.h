/* wina.h: run language models from GGUF files, dense or with WINA activation sparsity.
 *
 * The whole library in one page:
 *
 *     wina_model *model = NULL;
 *     wina_session *session = NULL;
 *     wina_stream *stream = NULL;
 *     wina_model_load("model.gguf", NULL, &model);
 *     wina_session_create(model, NULL, &session);
 *     wina_stream_params p;
 *     wina_stream_params_init(&p);
 *     p.tokens = ..., p.n_tokens = ..., p.max_tokens = 64;
 *     wina_stream_create(session, &p, &stream);
 *     wina_chunk c;
 *     while (wina_stream_next(stream, &c) == WINA_OK && c.finish == WINA_FINISH_NONE)
 *         fwrite(c.text, 1, c.n_bytes, stdout);
 *
 * Conventions. Every function that can fail returns a wina_status; 0 is success, and
 * wina_error() then gives the reason of this thread's last failure. Handles are created by
 * *_load and *_create, freed by *_free, which accepts NULL. Strings are UTF-8. Nothing here
 * prints, exits or keeps global state. A model may be shared by any number of threads and
 * sessions; a session (and its streams) belongs to one thread at a time, except
 * wina_session_cancel. Objects must be freed in the reverse order of their creation:
 * streams, then sessions, then models.
 *
 * Text between the two "cffi" marks is parsed by the Python package as it stands: no
 * preprocessor there.
 */
#ifndef WINA_H
#define WINA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WINA_ABI_VERSION 8

#pragma GCC visibility push(default)
/* cffi: begin */

/* ---- status ------------------------------------------------------------------------------ */

typedef enum wina_status {
    WINA_OK = 0,
    WINA_E_ARGUMENT = 1,    /* a parameter is outside what the function accepts */
    WINA_E_IO = 2,          /* a file cannot be opened, read or mapped */
    WINA_E_FORMAT = 3,      /* the file is not valid: cut short, inconsistent, out of bounds */
    WINA_E_UNSUPPORTED = 4, /* valid, but an architecture, type or tokenizer we do not have */
    WINA_E_MEMORY = 5,      /* an allocation failed */
    WINA_E_CONTEXT = 6,     /* more tokens than the session's context holds */
    WINA_E_NUMERIC = 7,     /* NaN or infinity in the logits */
    WINA_E_CANCELLED = 8,   /* wina_session_cancel was called */
    WINA_E_STATE = 9,       /* call not allowed now */
    WINA_E_SPACE = 10,      /* the caller's buffer is too small; the needed size was stored */
    WINA_E_DEVICE = 11      /* the GPU or its driver failed, or there is none */
} wina_status;

/* Text of the calling thread's last failure, "" if none. Valid until its next failing call. */
const char *wina_error(void);

/* Name of a status, such as "WINA_E_FORMAT". Never NULL. */
const char *wina_status_name(int32_t status);

/* Version of this interface; equals WINA_ABI_VERSION of the header it was built with. */
int32_t wina_abi_version(void);

/* Version of the library, such as "0.1.0". */
const char *wina_version(void);

/* The instruction set chosen for this process: "c"; "avx2", "avxvnni", "avx512", "avx512vnni";
 * "neon", "dotprod", "i8mm". The environment variable WINA_CPU forces one of them (the machine must
 * have it). */
const char *wina_cpu_name(void);

/* Physical cores this process may use; at least 1. The default number of threads. */
int32_t wina_cpu_cores(void);

/* ---- model ------------------------------------------------------------------------------- */

typedef struct wina_model wina_model;
typedef struct wina_session wina_session;
typedef struct wina_stream wina_stream;
typedef struct wina_sampler wina_sampler;

/* Called during a load with 0 <= progress <= 1; return nonzero to stop (WINA_E_CANCELLED). */
typedef int32_t (*wina_progress_fn)(float progress, void *user);

/* Where a model runs. */
typedef enum wina_backend_kind {
    WINA_BACKEND_AUTO = 0, /* on the GPU if there is one and the model fits, else on the CPU */
    WINA_BACKEND_CPU = 1,
    WINA_BACKEND_CUDA = 2 /* on the GPU, or the load fails */
} wina_backend_kind;

typedef struct wina_model_params {
    int32_t n_threads;  /* threads for packing weights; default 0: wina_cpu_cores() */
    int32_t vocab_only; /* 1: metadata and tokenizer only, no weights; default 0 */
    int32_t meta_only;  /* 1: metadata, tensor table and plan only, no tokenizer; default 0 */
    wina_progress_fn progress; /* default NULL */
    void *progress_user;
    int32_t backend;      /* wina_backend_kind; default WINA_BACKEND_AUTO: layers that fit nowhere
                           * else stay on the CPU, the first ones */
    int32_t n_gpu_layers; /* layers on the GPU; default -1: all. 0: none */
    int32_t no_mmap; /* 1: weights of a packed file are read into memory, in huge pages, instead of
                      * mapped; default 0. Other files' weights are in memory always */
    int32_t mlock;   /* 1: packed weights must stay in memory, or the load fails; default 0 */
    int64_t mem_limit; /* bytes: a load or a session whose plan (wina_model_plan_memory) has a
                        * higher peak fails with WINA_E_MEMORY, at once; default 0: no limit */
    const struct wina_session_params *session; /* that the limit must leave room for at load;
                                                * default NULL: one with defaults */
    int64_t resident; /* bytes of the layers of a packed file that each session keeps in memory, on
                       * the CPU, reading the columns of other inputs from the file when they are
                       * kept; default 0: the file is mapped and the system decides */
} wina_model_params;

/* Fills *params with the defaults above. */
void wina_model_params_init(wina_model_params *params);

/* Opens a GGUF file and packs its weights. params may be NULL. On success *out is the model,
 * to be freed with wina_model_free; on failure *out is NULL. The file stays open: replace or delete
 * it as you like, but where it is written to, sessions fail with WINA_E_IO from then on. */
int32_t wina_model_load(const char *path, const wina_model_params *params, wina_model **out);
void wina_model_free(wina_model *model);

typedef struct wina_model_info {
    char architecture[32]; /* "llama", "qwen2" */
    char name[128];        /* general.name, cut at 127 bytes */
    int32_t n_vocab;
    int32_t n_ctx_train; /* context length the model was trained for */
    int32_t n_embd;      /* width of the residual stream */
    int32_t n_layer;
    int32_t n_head;
    int32_t n_head_kv;
    int32_t head_dim;
    int32_t n_ff;
    int32_t bos_token;   /* -1 if none */
    int32_t eos_token;   /* -1 if none */
    int32_t add_bos;     /* 1: prompts start with bos_token */
    int32_t tied_output; /* 1: the output matrix is the token embedding */
    int64_t n_params;    /* number of weights in all tensors */
    int64_t file_bytes;
    int64_t weight_bytes;       /* memory of the packed weights, padding included */
    int64_t sparse_bytes;       /* of these, bytes in groups that sparsity applies to */
    int64_t kv_bytes_per_token; /* key and value cache, float16; without windows */
    char backend[16];           /* "cpu", "cuda" */
    char device[64];            /* name of the GPU, "" without one */
    char backend_note[256];     /* why it is not on a GPU although that was wanted, or how its
                                   layers are shared out, else "" */
    int64_t gpu_bytes;          /* weights in GPU memory */
    int32_t packed;             /* 1: the file holds panels: its weights are mapped, not built */
} wina_model_info;

int32_t wina_model_get_info(const wina_model *model, wina_model_info *info);

/* Measures how many bytes per second the model's GPU (of several the slowest) reads and writes
 * while it copies its own memory, in up to 1 GiB that are free; takes milliseconds.
 * WINA_E_UNSUPPORTED if a layer is on the CPU. */
int32_t wina_model_copy_speed(const wina_model *model, double *bytes_per_second);

/* Metadata of the file: n keys in file order; text of the value (arrays: type, length and the
 * first elements). The texts go into the caller's buffers of key_cap and value_cap bytes and
 * are cut, on a character border, if longer. */
int32_t wina_model_meta_count(const wina_model *model);
int32_t wina_model_get_meta(const wina_model *model, int32_t index, char *key, size_t key_cap,
                            char *value, size_t value_cap);

/* The whole string value of a metadata key: *text points into the model and is not
 * terminated. WINA_E_ARGUMENT if there is no such key or it is no string. */
int32_t wina_model_get_meta_string(const wina_model *model, const char *key, const char **text,
                                   size_t *n_bytes);

typedef struct wina_tensor_info {
    char name[256];
    char type[16]; /* "Q4_0", "F32", ... */
    int32_t n_dims;
    int64_t ne[4]; /* GGUF order: ne[0] = inputs (cols), ne[1] = outputs (rows) */
    int64_t n_bytes;
} wina_tensor_info;

int32_t wina_model_tensor_count(const wina_model *model);
int32_t wina_model_get_tensor(const wina_model *model, int32_t index, wina_tensor_info *info);

/* Decodes rows [row0, row0 + n_rows) of a tensor straight from the file to float32, shape
 * (n_rows, cols): the ground truth for kernels. */
int32_t wina_model_read_rows(const wina_model *model, const char *name, int64_t row0,
                             int64_t n_rows, float *out);

/* Writes a loaded model as a packed file: a GGUF file whose matrices are laid out as in memory, so
 * that loading it is mapping it; for this library only, metadata included. The file appears whole
 * or not at all. progress may be NULL; WINA_E_CANCELLED if it returns nonzero. */
int32_t wina_model_write_packed(const wina_model *model, const char *path,
                                wina_progress_fn progress, void *user);

/* Compares the checksums of a packed file's sections; meta_only suffices. WINA_E_FORMAT names the
 * section that is damaged, WINA_E_ARGUMENT: the file is not packed. */
int32_t wina_model_verify(const wina_model *model);

/* Quantises (n_rows, n_cols) floats to a type of blocks, by the number that GGUF gives it: Q4_0 2,
 * Q4_1 3, Q5_0 6, Q5_1 7, Q4_K 12, Q5_K 13, Q6_K 14. importance: (n_cols) weights >= 0 of squared
 * errors, such as the mean square of each input, or NULL. out holds the rows' blocks. n_threads 0:
 * wina_cpu_cores(); the bytes are the same for any number. WINA_E_NUMERIC names a value that is no
 * number or above 65504. */
int32_t wina_quantize_rows(int32_t type, const float *values, int64_t n_rows, int64_t n_cols,
                           const float *importance, int32_t n_threads, void *out);

/* The four groups of projections that share an input. */
typedef enum wina_group {
    WINA_GROUP_QKV = 0,     /* attention q, k, v */
    WINA_GROUP_O = 1,       /* attention output */
    WINA_GROUP_GATE_UP = 2, /* feed-forward gate and up */
    WINA_GROUP_DOWN = 3     /* feed-forward down */
} wina_group;

/* l2 norms of the columns of a group's stacked matrix: out has n_inputs floats.
 * projection: -1 for the whole group, else 0.. for one (q, k, v or gate, up). WINA_E_UNSUPPORTED
 * for gate_up and down of a mixture of experts: each expert has norms of its own. */
int32_t wina_model_get_norms(const wina_model *model, int32_t layer, int32_t group,
                             int32_t projection, float *out, int32_t n_inputs);

/* ---- tokenizer --------------------------------------------------------------------------- */

typedef enum wina_tokenize_flags {
    WINA_TOKENIZE_PLAIN = 0,
    WINA_TOKENIZE_ADD_SPECIAL = 1,  /* add BOS/EOS where the model asks for it */
    WINA_TOKENIZE_PARSE_SPECIAL = 2 /* text such as <|im_end|> becomes the control token */
} wina_tokenize_flags;

/* Stores up to capacity tokens and their whole number in *n_tokens; WINA_E_SPACE if more were
 * needed. Invalid UTF-8 is tokenized as U+FFFD or byte tokens, never refused. */
int32_t wina_tokenize(const wina_model *model, const char *text, size_t n_bytes, int32_t flags,
                      int32_t *tokens, size_t capacity, size_t *n_tokens);

/* Text of the tokens (not terminated); special: 1 writes control tokens too. Bytes that are not
 * whole characters are passed through. Like wina_tokenize for capacity. */
int32_t wina_detokenize(const wina_model *model, const int32_t *tokens, size_t n_tokens,
                        int32_t special, char *text, size_t capacity, size_t *n_bytes);

/* 1 if the token ends a generation (EOS, EOT, <|im_end|>, ...), else 0. */
int32_t wina_token_is_eog(const wina_model *model, int32_t token);

/* 1 for control and user-defined tokens, else 0. */
int32_t wina_token_is_special(const wina_model *model, int32_t token);

/* ---- sparsity ---------------------------------------------------------------------------- */

typedef enum wina_method {
    WINA_METHOD_DENSE = 0,
    WINA_METHOD_WINA = 1, /* keep the largest |x_i| * norm_i^exponent */
    WINA_METHOD_TEAL = 2, /* keep the largest |x_i| */
    WINA_METHOD_CATS = 3  /* keep the largest |silu(gate_i)|: columns of down, and rows of up (which
                           * this layout reads all the same); everything else is dense */
} wina_method;

/* "dense", "wina", "teal", "cats"; NULL for any other number. */
const char *wina_method_name(int32_t method);

typedef enum wina_mask {
    WINA_MASK_GROUP = 0,     /* one kept list per group: qkv, o, gate_up, down */
    WINA_MASK_PROJECTION = 1 /* one kept list per matrix: q, k, v, o, gate, up, down */
} wina_mask;

/* How the kept share is divided among groups. Whatever the division, the bytes are the same. */
typedef enum wina_budget_source {
    WINA_BUDGET_AUTO = 0,      /* wina: calibrated where the model is, else the profile; other
                                * methods: uniform, as they were published */
    WINA_BUDGET_UNIFORM = 1,   /* every group keeps the same share of its inputs */
    WINA_BUDGET_PROFILE = 2,   /* built in, per kind of group */
    WINA_BUDGET_CALIBRATED = 3 /* of the tuning in force; an error if there are none */
} wina_budget_source;

typedef enum wina_norm_source {
    WINA_NORMS_AUTO = 0,      /* calibrated where the model is, else l2 */
    WINA_NORMS_L2 = 1,        /* l2 norms of weight columns */
    WINA_NORMS_CALIBRATED = 2 /* of the tuning in force; an error if there are none */
} wina_norm_source;

typedef enum wina_selection {
    WINA_SELECT_TOPK = 0,     /* exactly as many inputs as the budget says, for every token */
    WINA_SELECT_THRESHOLD = 1 /* all that score above a calibrated number: as many on average */
} wina_selection;

typedef struct wina_sparsity {
    float sparsity;    /* share of the sparsified weights' bytes that is skipped, 0 <= sparsity < 1;
                        * default 0 */
    int32_t method;    /* wina_method; default WINA_METHOD_WINA */
    int32_t mask;      /* wina_mask; default WINA_MASK_GROUP */
    int32_t prefill;   /* 1: prompts are sparse too (evaluation); default 0 */
    int32_t budget;    /* wina_budget_source; default WINA_BUDGET_AUTO */
    int32_t norms;     /* wina_norm_source; default WINA_NORMS_AUTO */
    float exponent;    /* of the norms, at most 4; default -1: the best that is known, which is the
                        * calibration's, else 0. The published rule has 1 */
    int32_t selection; /* wina_selection; default WINA_SELECT_TOPK */
} wina_sparsity;

void wina_sparsity_init(wina_sparsity *sparsity);

/* What calibration finds; files carry it as metadata (docs/method.md). Groups are numbered as in
 * wina_group, projections q, k, v, o, gate, up, down. */
typedef struct wina_tuning {
    int32_t n_targets;             /* rows of the tables; 0: no budgets */
    const float *targets;          /* (n_targets) sparsities in (0, 1), rising */
    const float *kept;             /* (n_targets, n_layer, 4) kept fractions in (0, 1] */
    const float *kept_projections; /* (n_targets, n_layer, 7) or NULL: those of the group */
    const float *thresholds;       /* (n_targets, n_layer, 4) least scores that are kept, or NULL */
    const float *norms[4];         /* (n_layer, n_inputs of the group), >= 0; or all NULL */
    const float *projection_norms[7]; /* the same per projection; NULL: those of the group */
    float exponents[4];               /* of these norms, by group, in [0, 4] */
} wina_tuning;

/* The rule that these settings amount to for this model, in words. text holds cap bytes. Works
 * without weights. WINA_E_ARGUMENT if the model cannot follow them. */
int32_t wina_model_describe_rule(const wina_model *model, const wina_sparsity *sparsity, char *text,
                                 size_t cap);

/* ---- session ----------------------------------------------------------------------------- */

/* How keys and values of the context are kept. */
typedef enum wina_cache_type {
    WINA_CACHE_F16 = 0,
    WINA_CACHE_Q8_0 = 1, /* 34 bytes for 32 values */
    WINA_CACHE_F32 = 2   /* CPU only */
} wina_cache_type;

/* "f16", "q8_0", "f32"; NULL for any other number. */
const char *wina_cache_type_name(int32_t type);

typedef struct wina_session_params {
    int32_t n_ctx;     /* tokens the session can hold; default 0: min(n_ctx_train, 4096) */
    int32_t n_threads; /* default 0: wina_cpu_cores(). Results do not depend on it */
    int32_t n_batch;   /* tokens evaluated together in a prompt; default 0: 128,
                        * 512 on a GPU */
    wina_sparsity sparsity;
    int32_t cache_type_k; /* wina_cache_type of keys; default WINA_CACHE_F16 */
    int32_t cache_type_v; /* and of values; default WINA_CACHE_F16 */
} wina_session_params;

void wina_session_params_init(wina_session_params *params);

/* Memory of a model and one session, in bytes: on the CPU, and at the end on GPUs. */
typedef struct wina_memory_plan {
    int64_t weight_bytes; /* panels and norms; of a packed file: mapped, unless it is copied */
    int64_t cache_bytes;  /* keys and values of a full context */
    int64_t buffer_bytes; /* other buffers of the session */
    int64_t other_bytes; /* header of the file, tokenizer, rows of an embedding table in the file */
    int64_t peak_bytes;  /* most that is resident at one time, loading included, once all weights
                          * were read and the context is full; without the program itself */
    /* In GPU memory, without what CUDA and cuBLAS take for themselves; 0 until a model is loaded
     * there. What is on a GPU is in none of the above but the peak. */
    int64_t gpu_weight_bytes, gpu_cache_bytes, gpu_buffer_bytes;
} wina_memory_plan;

/* params may be NULL. Works with meta_only, before anything is loaded. WINA_E_STATE if the file
 * cannot be run. */
int32_t wina_model_plan_memory(const wina_model *model, const wina_session_params *params,
                               wina_memory_plan *plan);

/* params may be NULL. The model must outlive the session. */
int32_t wina_session_create(const wina_model *model, const wina_session_params *params,
                            wina_session **out);
void wina_session_free(wina_session *session);

/* Sparsity of the following tokens; may change between any two calls. */
int32_t wina_session_set_sparsity(wina_session *session, const wina_sparsity *sparsity);

/* Another tuning than the file's; everything is copied. NULL: the file's again. */
int32_t wina_session_set_tuning(wina_session *session, const wina_tuning *tuning);

/* Inputs that the rule in force keeps, (n_layer, 4, 3): by layer, group and kept list (one per
 * group, or one per projection); 0 where there is no list. With thresholds: on average. */
int32_t wina_session_get_keep(const wina_session *session, int32_t *out);

/* Called before a group multiplies its input: x (n_tokens, n_in), as it is before anything is
 * skipped. For calibration; NULL switches it off. WINA_E_UNSUPPORTED with a mixture of experts. */
typedef void (*wina_tap_fn)(int32_t layer, int32_t group, const float *x, int32_t n_tokens,
                            int32_t n_in, void *user);
int32_t wina_session_set_tap(wina_session *session, wina_tap_fn tap, void *user);

typedef struct wina_eval {
    const int32_t *tokens; /* (n_tokens) appended to the session at its current position */
    int32_t n_tokens;      /* >= 1 */
    int32_t n_dense;       /* the first n_dense tokens of this call run dense, the rest at the
                            * session's sparsity; -1: all dense */
    float *logits;         /* NULL, or (n_tokens - logits_from, n_vocab) */
    int32_t logits_from;   /* first token of this call whose logits are stored */
    float *hidden;         /* NULL, or (n_tokens, n_embd): the last layer's output after the final
                            * norm, which embeddings are made of */
} wina_eval;

/* Runs tokens through the model. Whatever is asked for in *eval, the logits of the last token
 * are kept in the session. On failure the session's position is as before the call; or 0, if the
 * call had several batches and wina_session_n_keepable says so. */
int32_t wina_session_eval(wina_session *session, const wina_eval *eval);

/* Prompt: dense unless sparsity.prefill. Decode: one token at the session's sparsity. */
int32_t wina_session_prefill(wina_session *session, const int32_t *tokens, int32_t n_tokens);
int32_t wina_session_decode(wina_session *session, int32_t token);

/* One token of each of n different sessions of one model: what wina_session_decode would do for
 * each, to the bit, in one step that reads the weights once for all of them. Each has its own
 * position, sparsity and counters; decode_s counts the whole step for each. statuses (n) says how
 * each fared: those that failed are as before. Returns the first that is not WINA_OK, or
 * WINA_E_ARGUMENT, with nothing done, for a session that is there twice or of another model. With a
 * GPU or a tap, sessions are evaluated one after the other. */
int32_t wina_session_decode_batch(wina_session *const *sessions, const int32_t *tokens, int32_t n,
                                  int32_t *statuses);

/* (n_vocab) logits of the last token evaluated; NULL before the first, or if they cannot be copied
 * from the GPU, where they stay until they are asked for. Valid until the next call on the session.
 */
const float *wina_session_logits(const wina_session *session);

int32_t wina_session_n_ctx(const wina_session *session);
int32_t wina_session_n_past(const wina_session *session);
int32_t wina_session_n_threads(const wina_session *session);

/* Forgets all but the first n_past tokens, 0 <= n_past <= current. WINA_E_STATE if the session
 * cannot go back so far and no further: see wina_session_n_keepable. */
int32_t wina_session_truncate(wina_session *session, int32_t n_past);

/* n_past, or 0 if truncate cannot keep that many: layers with a sliding window remember no more
 * than the window and what two batches need, and what is older must be evaluated again. */
int32_t wina_session_n_keepable(const wina_session *session, int32_t n_past);

/* What the session remembers of its tokens, as bytes with a checksum: another session of the same
 * model and types of the cache can go on from there. save: WINA_E_SPACE if capacity is too small;
 * *n_bytes is what is needed. load: WINA_E_FORMAT if data is damaged or of another model or
 * version; the session is then as before, but empty after WINA_E_DEVICE. States go from CPUs to
 * GPUs and back. There are no logits until the next evaluation. */
int32_t wina_session_save_state(wina_session *session, void *data, size_t capacity,
                                size_t *n_bytes);
int32_t wina_session_load_state(wina_session *session, const void *data, size_t n_bytes);

/* Ends the evaluation under way with WINA_E_CANCELLED; from any thread or signal handler. An
 * evaluation that starts later is not affected. */
void wina_session_cancel(wina_session *session);

typedef struct wina_stats {
    int64_t n_prefill; /* tokens evaluated by prefill and eval */
    int64_t n_decode;  /* tokens evaluated by decode */
    double prefill_s;
    double decode_s;
    /* Weights of the sparsified groups in tokens that ran at the session's sparsity: counted,
     * not assumed. kept_fraction = sparse_read / sparse_total (1 if nothing was counted). */
    uint64_t sparse_read;
    uint64_t sparse_total;
    double kept_fraction;
    /* Bytes of packed weights one decoded token reads on average, head included, and the same
     * counted for the last decoded token. Scales of quantised blocks are always read. */
    double bytes_per_token;
    uint64_t session_bytes; /* memory of this session: KV cache and buffers */
} wina_stats;

int32_t wina_session_get_stats(const wina_session *session, wina_stats *stats);
void wina_session_reset_stats(wina_session *session);

/* ---- sampling ---------------------------------------------------------------------------- */

typedef struct wina_logit_bias {
    int32_t token;
    float bias; /* added to the token's logit; -INFINITY forbids the token */
} wina_logit_bias;

/* Names, order and defaults are llama.cpp's: logit bias, penalties, dry, top_n_sigma, top_k,
 * typical_p, top_p, min_p, xtc, temperature. With mirostat: logit bias, temperature, mirostat. */
typedef struct wina_sampler_params {
    float temperature;       /* 0: greedy; default 0.8 */
    int32_t top_k;           /* <= 0: off; default 40 */
    float top_p;             /* 1: off; default 0.95 */
    float min_p;             /* 0: off; default 0.05 */
    int32_t repeat_last_n;   /* tokens the penalties look at; 0: off, -1: all; default 64 */
    float repeat_penalty;    /* 1: off; default 1 */
    float presence_penalty;  /* default 0 */
    float frequency_penalty; /* default 0 */
    int64_t seed;            /* < 0: a random one; default -1 */
    float typical_p;         /* 1: off; default 1 */
    float top_n_sigma;       /* standard deviations below the best logit; <= 0: off; default -1 */
    float xtc_probability;   /* 0: off; default 0 */
    float xtc_threshold;     /* above 0.5: off; default 0.1 */
    float dynatemp_range;    /* of a temperature that follows the entropy; 0: off; default 0 */
    float dynatemp_exponent; /* default 1 */
    float dry_multiplier;    /* penalty of tokens that would go on with a repetition; 0: off */
    float dry_base;          /* default 1.75 */
    int32_t dry_allowed_length;  /* repetitions up to this length are free; default 2 */
    int32_t dry_penalty_last_n;  /* tokens that dry looks at; 0: off, -1: all; default -1 */
    const int32_t *dry_breakers; /* (n_dry_breakers) tokens that no repetition reaches across */
    int32_t n_dry_breakers;
    int32_t mirostat;                  /* 0: off, 1, 2; default 0 */
    float mirostat_tau;                /* wanted surprise in bits; default 5 */
    float mirostat_eta;                /* learning rate; default 0.1 */
    const wina_logit_bias *logit_bias; /* (n_logit_bias) */
    int32_t n_logit_bias;
} wina_sampler_params;

void wina_sampler_params_init(wina_sampler_params *params);
/* Copies what it needs of *params. */
int32_t wina_sampler_create(const wina_sampler_params *params, wina_sampler **out);
void wina_sampler_free(wina_sampler *sampler);

/* Chooses a token from (n_vocab) logits, which are left unchanged. WINA_E_NUMERIC if they hold
 * a NaN or +infinity. Does not call accept. */
int32_t wina_sampler_sample(wina_sampler *sampler, const float *logits, int32_t n_vocab,
                            int32_t *token);

/* Tells the penalties that a token was used (prompt tokens too). */
int32_t wina_sampler_accept(wina_sampler *sampler, int32_t token);

/* The seed in use (the random one that was drawn when seed < 0). */
int64_t wina_sampler_seed(const wina_sampler *sampler);

/* ---- generation -------------------------------------------------------------------------- */

typedef enum wina_finish {
    WINA_FINISH_NONE = 0,   /* more to come */
    WINA_FINISH_EOG = 1,    /* the model ended its answer */
    WINA_FINISH_STOP = 2,   /* a stop string was met; it is not part of the text */
    WINA_FINISH_LENGTH = 3, /* max_tokens reached */
    WINA_FINISH_CONTEXT = 4 /* the context is full */
} wina_finish;

/* Changes (n_vocab) logits before a token is chosen from them: grammars and the like. Anything but
 * WINA_OK ends the call with that status. */
typedef int32_t (*wina_logits_fn)(float *logits, int32_t n_vocab, void *user);

typedef struct wina_stream_params {
    const int32_t *tokens; /* prompt, appended to what the session holds; >= 1 token */
    int32_t n_tokens;
    int32_t n_held; /* the first n_held of tokens are what the session holds: they are not evaluated
                     * again, only shown to the sampler; < n_tokens; default 0 */
    int32_t max_tokens; /* default -1: until the context is full */
    wina_sampler_params sampler;
    const char *const *stop; /* n_stop terminated strings; default none */
    int32_t n_stop;
    int32_t special;        /* 1: control tokens appear in the text; default 0 */
    int32_t ignore_eog;     /* 1: go on past the end of the answer; default 0 */
    wina_logits_fn process; /* gets a copy of the logits of every token; default NULL */
    void *process_user;
} wina_stream_params;

void wina_stream_params_init(wina_stream_params *params);

/* Copies what it needs of *params. No token is evaluated yet. */
int32_t wina_stream_create(wina_session *session, const wina_stream_params *params,
                           wina_stream **out);
void wina_stream_free(wina_stream *stream);

typedef struct wina_chunk {
    const char *text; /* whole characters, n_bytes long; may be empty; valid until the next
                       * call on the stream */
    size_t n_bytes;
    int32_t token;       /* the token just chosen; -1 if none was */
    int32_t finish;      /* wina_finish; the last chunk may carry text too */
    int32_t n_generated; /* tokens generated so far */
    int32_t n_prompt;    /* prompt tokens evaluated so far */
} wina_chunk;

/* The session's logits are those that the chunk's token was chosen from until the next call.
 *
 * Next piece of the answer. While the prompt is being evaluated each call runs one batch of it
 * and gives an empty chunk (token -1, n_prompt counting up), so that a caller can show progress
 * or stop. After the chunk with finish != WINA_FINISH_NONE every call gives WINA_E_STATE. The
 * concatenated texts do not depend on how they were cut. */
int32_t wina_stream_next(wina_stream *stream, wina_chunk *chunk);

/* Many streams at once. Both do ahead of time, and together, what wina_stream_next would do, which
 * then gives the same chunks, sooner.
 *
 * prefill evaluates the next max_tokens of the prompt, or one batch, or what is left; *n_left is
 * what then is left of it. decode_batch evaluates, in one step, the tokens that different streams
 * of one model have chosen last; streams that have none are left alone. A stream that fails is as
 * before: its own next call gives the reason. */
int32_t wina_stream_prefill(wina_stream *stream, int32_t max_tokens, int32_t *n_left);
int32_t wina_stream_decode_batch(wina_stream *const *streams, int32_t n);

/* cffi: end */
#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif
#endif

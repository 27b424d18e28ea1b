/* device: what host code and kernels agree on. Plain structures, passed to kernels by value; every
 * pointer in them is device memory and states its shape. A launcher enqueues on a stream and
 * returns a cudaError_t; it never waits. */
#ifndef WINA_CUDA_DEVICE_H
#define WINA_CUDA_DEVICE_H

#include <stdint.h>

#include <cuda_runtime_api.h>

#include "../candidates.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Kinds of panels, one instance of the kernels each. */
typedef enum wina_cuda_format {
    WINA_CUDA_F32,
    WINA_CUDA_F16,
    WINA_CUDA_BF16,
    WINA_CUDA_Q8_0,
    WINA_CUDA_Q4_0,
    WINA_CUDA_Q4_1,
    WINA_CUDA_Q5_0,
    WINA_CUDA_Q5_1,
    WINA_CUDA_Q4_K,
    WINA_CUDA_Q5_K,
    WINA_CUDA_Q6_K,
    WINA_CUDA_N_FORMATS
} wina_cuda_format;

/* A panel in device memory, laid out as pack.h says. */
typedef struct wina_cuda_panel {
    const uint8_t *data;
    uint64_t col_bytes, block_bytes, super_bytes;
    uint32_t super_head; /* bytes of super-scales in front of a super-block's first block */
    int32_t n_rows;      /* multiple of 64 */
    int32_t n_cols;
    int32_t format; /* wina_cuda_format */
} wina_cuda_panel;

/* How the values of a panel of any tensor type lie, as wina_layout says: for what is read value by
 * value (embedding.cuh). */
typedef struct wina_cuda_values {
    int32_t scales; /* wina_scales */
    int32_t low_bits, high_bits, offset, sub;
    int32_t has_table;
    uint8_t table[16];
} wina_cuda_values;

/* Token embeddings: rows as the file has them, or a panel. */
typedef struct wina_cuda_table {
    wina_cuda_panel panel;
    wina_cuda_values values;
    const uint8_t *rows; /* (n_vocab, row_bytes), or NULL: the panel */
    uint64_t row_bytes;
    uint32_t type; /* wina_dtype_id of rows */
    float scale;   /* what embeddings are multiplied by */
} wina_cuda_table;

/* The token under way; the host writes it before a graph is launched. */
typedef struct wina_cuda_step {
    int32_t pos;
    int32_t token; /* -1: x in place of its embedding */
    float x[];     /* (n_embd) in host memory, where layers elsewhere come first */
} wina_cuda_step;

enum {
    WINA_CUDA_MAX_INPUTS = 32768, /* of a projection */
    WINA_CUDA_MAX_HEAD = 256      /* width of an attention head */
};

/* Sums that several blocks contribute to are 64-bit integers, WINA_CUDA_ONE for 1: they can be
 * added in any order with the same result, by the memory itself. */
typedef int64_t wina_cuda_fixed;
#define WINA_CUDA_ONE  ((double)(1LL << 34))
#define WINA_CUDA_MOST 5e8f /* larger sums are an error */

/* What happens to the sums of a row. */
typedef enum wina_cuda_epilogue {
    WINA_CUDA_STORE,  /* out[row] = sum */
    WINA_CUDA_ADD,    /* sums[row] += sum */
    WINA_CUDA_SWIGLU, /* out[row] = silu(sum of row) * sum of row + up_row0 */
} wina_cuda_epilogue;

/* How many inputs one projection keeps: the n_keep with the largest scores, or (threshold > 0) all
 * that score at least this, and one at least. */
typedef struct wina_cuda_keep {
    int32_t n_keep;
    float threshold;
} wina_cuda_keep;

/* Where to look for a threshold first. It decides how long that takes, never what is found. */
typedef struct wina_cuda_hint {
    float center; /* a score, with the RMS norm's factor; 0: not known */
    float width;  /* the threshold is probably in center (1 +- width) */
} wina_cuda_hint;

/* One projection of one token: rows [row0, row0 + n_rows) of a panel times the kept inputs. */
typedef struct wina_cuda_gemv {
    wina_cuda_panel panel;
    int32_t row0, n_rows; /* multiples of 64 */
    int32_t n_valid;      /* rows that exist; the rest is padding */
    int32_t up_row0;      /* WINA_CUDA_SWIGLU: rows of `up` start this far after those of `gate` */
    int32_t epilogue;     /* wina_cuda_epilogue */
    const float *in;      /* (n_cols), or NULL: fixed_in */
    const wina_cuda_fixed *fixed_in; /* (n_cols) */
    const float *gain; /* (n_cols) of the RMS norm applied to `in`, or NULL: as it is */
    float eps;
    const float *norms;         /* (n_cols) factors of the scores of a sparse token */
    const wina_cuda_keep *keep; /* NULL: all inputs. Constant while a graph runs */
    wina_cuda_hint *hint;       /* where the last token's threshold was, or NULL */
    int32_t gelu;               /* SWIGLU: gelu in place of silu */
    float out_scale, out_cap;   /* STORE: out = cap tanh(scale sum / cap), without the cap if 0 */
    float *out;                 /* (n_rows) of STORE and SWIGLU */
    wina_cuda_fixed *sums;      /* (n_rows) of ADD */
    int32_t *overflow;          /* ADD: set to 1 by a sum that is too large or not finite */
    float *partial;             /* scratch of wina_cuda_gemv_scratch() bytes */
    uint32_t *arrived;          /* zeros, one per row tile; left as zeros */
    int32_t *n_kept;            /* receives the number of inputs kept, or NULL */
    /* set by wina_cuda_plan_phase */
    int32_t capacity;      /* list entries a block may hold */
    int32_t scratch_bytes; /* shared memory in front of the list */
    int32_t low_bits;      /* of a row in the first plane of a column */
    int32_t tile_rows;     /* rows that a block works on at a time, and */
    int32_t n_tiles;       /* how many times that is all rows */
    int32_t aligned;       /* no block works on two tiles */
    int32_t in_shared;     /* the input fits in shared memory next to the scores */
} wina_cuda_gemv;

/* x (n_embd) = the step's embedding, or its x; zero (n_zero) = 0; step->pos = host_step->pos, which
 * is host memory mapped to the device; *barrier = 0. */
cudaError_t wina_cuda_begin_launch(const wina_cuda_step *host_step, wina_cuda_step *step,
                                   const wina_cuda_table *table, wina_cuda_fixed *x, int32_t n_embd,
                                   wina_cuda_fixed *zero, int32_t n_zero, uint32_t *barrier,
                                   cudaStream_t stream);
/* x (n_tokens, n_embd) = embeddings of tokens (n_tokens). */
cudaError_t wina_cuda_embed_launch(const wina_cuda_table *table, const int32_t *tokens,
                                   int32_t n_tokens, float *x, int32_t n_embd, cudaStream_t stream);
/* out (n_tokens, n) = gain rms_norm(x), or x where there is no gain. */
typedef struct wina_cuda_hidden {
    const wina_cuda_fixed *fixed; /* (n) of one token, or NULL: */
    const float *x;               /* (n_tokens, n) */
    const float *gain;
    float *out;
    float eps;
    int32_t n;
} wina_cuda_hidden;
cudaError_t wina_cuda_hidden_launch(const wina_cuda_hidden *h, int32_t n_tokens,
                                    cudaStream_t stream);
/* A panel of a type that has no kernels as one of WINA_CUDA_F16 or WINA_CUDA_BF16, of its shape. */
cudaError_t wina_cuda_convert_launch(const wina_cuda_panel *from, const wina_cuda_values *values,
                                     const wina_cuda_panel *to, cudaStream_t stream);

/* Attention of one token, or of the tokens of a batch. head_pad is head_dim rounded up to 8; what a
 * row of the cache holds: cache.h. */
typedef struct wina_cuda_attend {
    const wina_cuda_step *step;
    const wina_cuda_fixed *sums; /* (qkv_stride) q, k, v of one token as the group stacks them */
    const float *bias;           /* (qkv_stride) or NULL, to be added to sums */
    float *qkv;                  /* (n_tokens, qkv_stride) of a batch, bias added */
    int64_t qkv_stride;
    int32_t k_row0, v_row0;
    int32_t n_head, n_head_kv, head_dim, head_pad;
    int32_t rope_dim; /* 0: nothing is rotated */
    float scale, cap; /* scores are q k scale, then cap tanh(score / cap) unless cap is 0 */
    int32_t window;   /* positions that are seen, this one included; 0: all */
    const float *q_norm, *k_norm; /* gains of the norms of q and k of a batch, or NULL */
    int32_t norm_all; /* norms over all heads, gains (heads, head_dim); else (head_dim) */
    float eps;
    int32_t interleaved; /* rotary pairs (2i, 2i + 1), else (i, i + rope_dim / 2) */
    const float *angles; /* (n_ctx, rope_dim / 2, 2) cos, sin */
    uint8_t *cache[2];   /* keys, values of this layer: (n_head_kv, n_rows, row_bytes) */
    int32_t row_bytes[2], is_q8[2];
    int32_t n_rows;    /* position p is in row p % n_rows */
    float *out;        /* (n_tokens, n_head * head_dim) */
    float *partial;    /* (n_tokens, n_head, n_splits, head_pad + 2) */
    uint32_t *arrived; /* (n_tokens, n_head) zeros; left as zeros */
    int32_t n_splits;  /* most pieces a sequence is cut into */
    int32_t n_tokens;  /* 1: rotation and store are done here; more: rope_launch did them */
} wina_cuda_attend;

/* out (n) = silu(gate) * up, for groups whose gate and up were multiplied apart. */
typedef struct wina_cuda_swiglu {
    const float *gate, *up;
    float *out;
    int32_t n, gelu;
} wina_cuda_swiglu;

/* Norms of q and k of one token, in place: of every head, or (norm_all) over all heads. */
typedef struct wina_cuda_qk_norm {
    wina_cuda_fixed *sums; /* as in wina_cuda_attend, and the following */
    const float *bias;     /* or NULL; part of what is normed */
    const float *q_norm, *k_norm;
    int32_t norm_all, k_row0, n_head, n_head_kv, head_dim;
    float eps;
} wina_cuda_qk_norm;

/* x (n) += scale * rms_norm(add) gain; without a gain there is no norm. */
typedef struct wina_cuda_leave {
    const wina_cuda_fixed *add;
    wina_cuda_fixed *x;
    const float *gain;
    float eps, scale;
    int32_t n;
    int32_t *overflow;
} wina_cuda_leave;

/* A program: the steps of one token, run by one kernel that fills the device, with a barrier of
 * all its blocks after each step. */
typedef enum wina_cuda_phase_kind {
    WINA_CUDA_GEMV,
    WINA_CUDA_ATTEND,
    WINA_CUDA_ACTIVATE,
    WINA_CUDA_LEAVE,
    WINA_CUDA_QK_NORM
} wina_cuda_phase_kind;

/* Scales of a quantised panel, which are read whatever inputs are kept. */
typedef struct wina_cuda_ahead {
    const uint8_t *data; /* of the panel */
    uint64_t super_bytes, block_bytes;
    uint32_t super_head, scales_at, scale_bytes; /* of a super-block, in it, of a block */
    int32_t n_blocks;                            /* 0: none */
} wina_cuda_ahead;

typedef struct wina_cuda_phase {
    int32_t kind;                    /* wina_cuda_phase_kind */
    const wina_cuda_keep *next_keep; /* of the next phase, or NULL */
    wina_cuda_ahead ahead;           /* of the phase after the next */
    wina_cuda_fixed *zero;           /* (n_zero) sums of a later phase to be set to zero, or NULL */
    int32_t n_zero;
    int32_t stage; /* whose time this is: wina_group, or one of the following */
    union {
        wina_cuda_gemv gemv;
        wina_cuda_attend attend;
        wina_cuda_swiglu swiglu;
        wina_cuda_leave leave;
        wina_cuda_qk_norm qk_norm;
    } u;
} wina_cuda_phase;

enum {
    WINA_CUDA_STAGE_ATTEND = 4,
    WINA_CUDA_STAGE_ACTIVATE,
    WINA_CUDA_STAGE_HEAD,
    WINA_CUDA_N_STAGES
};

/* Times of a phase in clocks of one multiprocessor: in the parts of a projection (input,
 * threshold, kept inputs, list, columns, warps, blocks), then until all blocks are there. */
enum { WINA_CUDA_N_MARKS = 8 };
typedef struct wina_cuda_times {
    long long marks[WINA_CUDA_N_MARKS];
} wina_cuda_times;

typedef struct wina_cuda_program {
    const wina_cuda_phase *phases; /* (n_phases) */
    const wina_cuda_step *step;
    const wina_cuda_keep *first_keep; /* of the first phase */
    int32_t n_phases;
    uint32_t formats;       /* of its panels, as bits */
    int32_t shared_bytes;   /* the most that a phase needs: wina_cuda_plan_phase */
    uint32_t *barrier;      /* zero when the program starts */
    wina_cuda_times *times; /* (n_phases) sums, or NULL */
} wina_cuda_program;

/* Fills in what a phase leaves to the launcher; returns the shared memory it needs, or -1 if the
 * device cannot run it. */
int32_t wina_cuda_plan_phase(wina_cuda_phase *phase, int32_t n_sms);
/* Once per device, outside of captures. */
cudaError_t wina_cuda_program_prepare(void);
cudaError_t wina_cuda_program_launch(const wina_cuda_program *p, int32_t n_sms,
                                     cudaStream_t stream);

/* The best of a token's logits. */
typedef struct wina_cuda_best {
    wina_best found;   /* n is 0 if too many are equal */
    int32_t is_broken; /* a logit is not finite */
} wina_cuda_best;

/* What is known of a part of the logits. */
enum { WINA_CUDA_BEST_CHUNKS = 1024 };
typedef struct wina_cuda_chunk {
    double weight;    /* of all in it, 1 for the largest */
    uint32_t largest; /* as a key that has the order of the numbers */
} wina_cuda_chunk;

/* *out = the best of n logits. chunks: WINA_CUDA_BEST_CHUNKS of scratch; arrived: zero, left as
 * zero. */
cudaError_t wina_cuda_best_launch(const float *logits, int32_t n, wina_cuda_chunk *chunks,
                                  uint32_t *arrived, wina_cuda_best *out, int32_t n_sms,
                                  cudaStream_t stream);

/* Bytes of `partial`, elements of `arrived` that any projection of n_rows rows needs. */
uint64_t wina_cuda_gemv_scratch(int32_t n_sms);
int32_t wina_cuda_gemv_tiles(int32_t n_rows);

#ifdef __cplusplus
}
#endif
#endif

/* compare: runs of a backend on random models, and how far apart two are. */
#ifndef COMPARE_H
#define COMPARE_H

#include "chain.h"
#include "cudalib.h"
#include "fake.h"
#include "step.h"

static const wina_backend_params SESSION = {.n_ctx = 64, .n_batch = 16, .n_threads = 2};

static const uint32_t TYPES[] = {WINA_DTYPE_F32,  WINA_DTYPE_F16,  WINA_DTYPE_BF16, WINA_DTYPE_Q8_0,
                                 WINA_DTYPE_Q4_0, WINA_DTYPE_Q4_1, WINA_DTYPE_Q5_0, WINA_DTYPE_Q5_1,
                                 WINA_DTYPE_Q4_K, WINA_DTYPE_Q5_K, WINA_DTYPE_Q6_K};
/* Types that become float16 panels on a GPU (MXFP4: bfloat16). */
static const uint32_t CONVERTED[] = {WINA_DTYPE_Q2_K,   WINA_DTYPE_Q3_K,  WINA_DTYPE_IQ4_NL,
                                     WINA_DTYPE_IQ4_XS, WINA_DTYPE_MXFP4, WINA_DTYPE_TQ1_0,
                                     WINA_DTYPE_TQ2_0};

static inline bool is_converted(uint32_t type) {
    for (size_t i = 0; i < sizeof CONVERTED / sizeof CONVERTED[0]; i++)
        if (CONVERTED[i] == type)
            return true;
    return false;
}

static inline double nmse(const float *a, const float *ref, int32_t n) {
    double error = 0, power = 0;
    for (int32_t i = 0; i < n; i++) {
        error += ((double)a[i] - (double)ref[i]) * ((double)a[i] - (double)ref[i]);
        power += (double)ref[i] * (double)ref[i];
    }
    return error == error && power > 0 ? error / power : 1e9;
}

static inline int32_t argmax(const float *v, int32_t n) {
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        best = v[i] > v[best] ? i : best;
    return best;
}

/* Evaluates n tokens, one batch or one by one; logits (n, n_vocab). */
static inline int32_t run(wina_backend *b, const int32_t *tokens, int32_t n, int32_t n_dense,
                          const wina_rules *rules, bool one_by_one, float *logits) {
    int32_t status = WINA_OK, n_vocab = b->model->config.n_vocab;
    wina_counters total = {0};
    for (int32_t i = 0; i < n && status == WINA_OK; i += one_by_one ? 1 : n) {
        status =
            step_batch(b, tokens + i, one_by_one ? 1 : n, i, one_by_one ? i < n_dense : n_dense,
                       rules, 0, logits + (int64_t)i * n_vocab);
        total.sparse_read += b->counters.sparse_read;
        total.sparse_total += b->counters.sparse_total;
        total.token_bytes = b->counters.token_bytes;
    }
    b->counters = total;
    return status;
}

enum { N_TOKENS = 9, N_DENSE = 2 };

static inline int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Errors of one comparison: of the token at a third (sparse) or the worst, of all. */
typedef struct outcome {
    double close, worst, batch_close, batch_worst;
    int32_t same;
} outcome;

static inline outcome compare(const float *a, const float *b, const float *c, int32_t n_vocab,
                              bool sparse) {
    double errors[N_TOKENS], batch_errors[N_TOKENS];
    outcome o = {0};
    for (int32_t i = 0; i < N_TOKENS; i++) {
        const size_t at = (size_t)i * (size_t)n_vocab;
        errors[i] = nmse(b + at, a + at, n_vocab);
        batch_errors[i] = nmse(c + at, a + at, n_vocab);
        o.same += argmax(b + at, n_vocab) == argmax(a + at, n_vocab);
    }
    qsort(errors, N_TOKENS, sizeof *errors, by_value);
    qsort(batch_errors, N_TOKENS, sizeof *batch_errors, by_value);
    o.close = errors[sparse ? N_TOKENS / 3 : N_TOKENS - 1];
    o.batch_close = batch_errors[sparse ? N_TOKENS / 3 : N_TOKENS - 1];
    o.worst = errors[N_TOKENS - 1];
    o.batch_worst = batch_errors[N_TOKENS - 1];
    return o;
}

/* CHECK_ONLY: only checks whose names have it. */
static inline bool is_left_out(const char *what) {
    const char *only = getenv("CHECK_ONLY");
    return only && !strstr(what, only);
}

#endif

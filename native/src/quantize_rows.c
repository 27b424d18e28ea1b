/* quantize_rows: the entry point. Rows are independent, so threads take them in any order and the
 * bytes do not depend on how many there are. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "dtype.h"
#include "quantize.h"
#include "status.h"
#include "threads.h"

enum { ROWS_AT_ONCE = 4, MAX_THREADS = 1024 };
#define LARGEST 65504.0f /* of the halves that scales are stored in */

static const struct row {
    uint32_t id; /* wina_dtype_id */
    wina_quantize_fn encode;
} ENCODERS[] = {
    {WINA_DTYPE_Q4_0, wina_quantize_q4_0}, {WINA_DTYPE_Q4_1, wina_quantize_q4_1},
    {WINA_DTYPE_Q5_0, wina_quantize_q5_0}, {WINA_DTYPE_Q5_1, wina_quantize_q5_1},
    {WINA_DTYPE_Q4_K, wina_quantize_q4_k}, {WINA_DTYPE_Q5_K, wina_quantize_q5_k},
    {WINA_DTYPE_Q6_K, wina_quantize_q6_k},
};

static wina_quantize_fn find_encoder(uint32_t id) {
    for (size_t i = 0; i < sizeof ENCODERS / sizeof ENCODERS[0]; i++)
        if (ENCODERS[i].id == id)
            return ENCODERS[i].encode;
    return NULL;
}

typedef struct job {
    wina_quantize_fn encode;
    const float *x, *importance;
    uint8_t *out;
    int64_t n_rows, n_cols, n_blocks, row_bytes;
    _Atomic int64_t next;
} job;

static void encode_rows(void *arg, int32_t thread, int32_t n_threads) {
    job *k = arg;
    (void)thread, (void)n_threads;
    for (int64_t first; (first = atomic_fetch_add(&k->next, ROWS_AT_ONCE)) < k->n_rows;)
        for (int64_t r = first; r < first + ROWS_AT_ONCE && r < k->n_rows; r++) {
            const float *x = k->x + r * k->n_cols;
            double sum = 0;
            for (int64_t i = 0; i < k->n_cols; i++)
                sum += (double)x[i] * (double)x[i];
            k->encode(x, k->importance, (float)(sum / (double)k->n_cols), k->out + r * k->row_bytes,
                      k->n_blocks);
        }
}

static int32_t check_values(const float *x, int64_t n_rows, int64_t n_cols) {
    for (int64_t i = 0; i < n_rows * n_cols; i++)
        if (!(fabsf(x[i]) <= LARGEST))
            return wina_fail(
                WINA_E_NUMERIC, "row %lld, column %lld is %g: weights must be numbers up to %g",
                (long long)(i / n_cols), (long long)(i % n_cols), (double)x[i], (double)LARGEST);
    return WINA_OK;
}

static int32_t check_importance(const float *importance, int64_t n_cols) {
    for (int64_t i = 0; i < n_cols; i++)
        if (!(importance[i] >= 0 && importance[i] < INFINITY))
            return wina_fail(WINA_E_NUMERIC, "importance of column %lld is %g", (long long)i,
                             (double)importance[i]);
    return WINA_OK;
}

int32_t wina_quantize_rows(int32_t type, const float *values, int64_t n_rows, int64_t n_cols,
                           const float *importance, int32_t n_threads, void *out) {
    const wina_dtype *dtype = wina_dtype_find((uint32_t)type);
    const wina_quantize_fn encode = find_encoder((uint32_t)type);
    if (!dtype || !encode)
        return wina_fail(WINA_E_UNSUPPORTED, "rows cannot be quantised to type %s",
                         wina_dtype_name((uint32_t)type));
    if (n_rows < 0 || n_cols < 1 || n_cols % dtype->block)
        return wina_fail(WINA_E_ARGUMENT, "rows of %lld columns are no whole number of %s blocks",
                         (long long)n_cols, dtype->name);
    if (n_threads < 0 || n_threads > MAX_THREADS)
        return wina_fail(WINA_E_ARGUMENT, "n_threads is %d", n_threads);
    WINA_TRY(check_values(values, n_rows, n_cols));
    if (importance)
        WINA_TRY(check_importance(importance, n_cols));
    job k = {.encode = encode,
             .x = values,
             .importance = importance,
             .out = out,
             .n_rows = n_rows,
             .n_cols = n_cols,
             .n_blocks = n_cols / dtype->block,
             .row_bytes = n_cols / dtype->block * dtype->block_bytes};
    wina_threads *threads = NULL;
    WINA_TRY(wina_threads_create(n_threads ? n_threads : wina_threads_cores(), &threads));
    wina_threads_run(threads, encode_rows, &k);
    wina_threads_free(threads);
    return WINA_OK;
}

/* cublas: the calls of cuBLAS that the backend makes, on the CPU. Arguments that it does not make
 * are refused, as are those that cuBLAS refuses. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

enum { SUCCESS = 0, NOT_INITIALIZED = 1, ALLOC_FAILED = 3, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { OP_N = 0, TYPE_F32 = 0, TYPE_F16 = 2, COMPUTE_32F = 68 };

typedef struct handle {
    const void *stream;
    const void *workspace;
    float halves[1 << 16]; /* what float16 stands for */
} handle;

EXPORT int cublasCreate_v2(void **out);
EXPORT int cublasDestroy_v2(void *h);
EXPORT int cublasSetStream_v2(void *h, void *stream);
EXPORT int cublasSetWorkspace_v2(void *h, void *workspace, size_t n_bytes);
EXPORT int cublasGemmEx(void *h, int op_a, int op_b, int m, int n, int k, const void *alpha,
                        const void *a, int type_a, int lda, const void *b, int type_b, int ldb,
                        const void *beta, void *c, int type_c, int ldc, int compute, int algo);

static float half_value(unsigned bits) {
    const int exponent = (int)(bits >> 10 & 31), fraction = (int)(bits & 1023);
    float v = 0;
    if (exponent == 31)
        v = fraction ? NAN : INFINITY;
    else if (exponent == 0)
        v = ldexpf((float)fraction, -24);
    else
        v = ldexpf((float)(1024 + fraction), exponent - 25);
    return bits >> 15 ? -v : v;
}

int cublasCreate_v2(void **out) {
    handle *h = calloc(1, sizeof *h);
    if (!h)
        return ALLOC_FAILED;
    for (unsigned i = 0; i < 1 << 16; i++)
        h->halves[i] = half_value(i);
    *out = h;
    return SUCCESS;
}

int cublasDestroy_v2(void *h) {
    free(h);
    return SUCCESS;
}

int cublasSetStream_v2(void *h, void *stream) {
    ((handle *)h)->stream = stream;
    return SUCCESS;
}

/* cuBLAS may write to the workspace at any time: so does this. */
int cublasSetWorkspace_v2(void *h, void *workspace, size_t n_bytes) {
    if ((uintptr_t)workspace % 256 != 0)
        return INVALID_VALUE;
    ((handle *)h)->workspace = workspace;
    memset(workspace, 0x77, n_bytes);
    return SUCCESS;
}

/* Column-major: c (m, n) = alpha a (m, k) b (k, n) + beta c; sums are float32. */
int cublasGemmEx(void *opaque, int op_a, int op_b, int m, int n, int k, const void *alpha,
                 const void *a, int type_a, int lda, const void *b, int type_b, int ldb,
                 const void *beta, void *c, int type_c, int ldc, int compute, int algo) {
    const handle *h = opaque;
    (void)algo;
    if (!h || !h->stream || !h->workspace)
        return NOT_INITIALIZED;
    if (op_a != OP_N || op_b != OP_N || type_a != TYPE_F16 || type_b != TYPE_F16 ||
        type_c != TYPE_F32 || compute != COMPUTE_32F)
        return NOT_SUPPORTED;
    if (m <= 0 || n <= 0 || k <= 0 || lda < m || ldb < k || ldc < m)
        return INVALID_VALUE;
    float *row = malloc((size_t)m * sizeof *row),
          *sums = calloc((size_t)m * (size_t)n, sizeof *sums);
    if (!row || !sums) {
        free(row), free(sums);
        return ALLOC_FAILED;
    }
    for (int l = 0; l < k; l++) {
        const uint16_t *from = (const uint16_t *)a + (int64_t)l * lda;
        for (int i = 0; i < m; i++)
            row[i] = h->halves[from[i]];
        for (int j = 0; j < n; j++) {
            const float x = h->halves[((const uint16_t *)b)[(int64_t)j * ldb + l]];
            float *sum = sums + (int64_t)j * m;
            for (int i = 0; i < m; i++)
                sum[i] += row[i] * x;
        }
    }
    float by, before; /* what is overwritten may be anything */
    memcpy(&by, alpha, sizeof by);
    memcpy(&before, beta, sizeof before);
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            float *to = (float *)c + (int64_t)j * ldc + i;
            *to = by * sums[(int64_t)j * m + i] + (before != 0 ? before * *to : 0);
        }
    free(row), free(sums);
    return SUCCESS;
}

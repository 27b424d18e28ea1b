#include "cublas.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* Values of cuBLAS's own enumerations. */
enum { OP_N = 0, TYPE_F32 = 0, TYPE_F16 = 2, COMPUTE_32F = 68, ALGO_DEFAULT = -1 };

struct wina_cublas {
    void *library, *handle;
    int (*destroy)(void *handle);
    int (*gemm)(void *handle, int op_a, int op_b, int m, int n, int k, const void *alpha,
                const void *a, int type_a, int lda, const void *b, int type_b, int ldb,
                const void *beta, void *c, int type_c, int ldc, int compute, int algo);
};

static void *open_library(void) {
    const char *name = getenv("WINA_CUBLAS");
    if (name && strcmp(name, "none") == 0)
        return NULL;
#ifdef WINA_CUDA_EMULATE /* tests/native/cuda/emulate/cublas.c: no other one runs there */
    static const char *const NAMES[] = {"libcublas_emulated.so"};
#else
    static const char *const NAMES[] = {"libcublas.so.13", "libcublas.so.12", "libcublas.so"};
    if (name && *name)
        return dlopen(name, RTLD_NOW | RTLD_LOCAL);
#endif
    void *library = NULL;
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0] && !library; i++)
        library = dlopen(NAMES[i], RTLD_NOW | RTLD_LOCAL);
    return library;
}

wina_cublas *wina_cublas_open(cudaStream_t stream, void *workspace, uint64_t workspace_bytes) {
    wina_cublas *c = calloc(1, sizeof *c);
    if (!c)
        return NULL;
    int (*create)(void **handle) = NULL;
    int (*set_stream)(void *handle, cudaStream_t stream) = NULL;
    int (*set_workspace)(void *handle, void *workspace, size_t n_bytes) = NULL;
    c->library = open_library();
    if (c->library) {
        *(void **)&create = dlsym(c->library, "cublasCreate_v2");
        *(void **)&set_stream = dlsym(c->library, "cublasSetStream_v2");
        *(void **)&set_workspace = dlsym(c->library, "cublasSetWorkspace_v2");
        *(void **)&c->destroy = dlsym(c->library, "cublasDestroy_v2");
        *(void **)&c->gemm = dlsym(c->library, "cublasGemmEx");
    }
    if (create && set_stream && set_workspace && c->destroy && c->gemm && create(&c->handle) == 0 &&
        set_stream(c->handle, stream) == 0 &&
        set_workspace(c->handle, workspace, workspace_bytes) == 0)
        return c;
    wina_cublas_close(c);
    return NULL;
}

void wina_cublas_close(wina_cublas *c) {
    if (!c)
        return;
    if (c->handle)
        c->destroy(c->handle);
    if (c->library)
        dlclose(c->library);
    free(c);
}

bool wina_cublas_multiply(wina_cublas *c, const uint16_t *a, int64_t lda, const uint16_t *w,
                          int64_t ldw, float *y, int64_t ldy, int32_t m, int32_t n, int32_t k,
                          bool add) {
    /* Column-major, the product is that of the transposes: y' (n, m) = w' (n, k) a' (k, m). */
    const float one = 1.0f, before = add ? 1.0f : 0.0f;
    return c->gemm(c->handle, OP_N, OP_N, n, m, k, &one, w, TYPE_F16, (int)ldw, a, TYPE_F16,
                   (int)lda, &before, y, TYPE_F32, (int)ldy, COMPUTE_32F, ALGO_DEFAULT) == 0;
}

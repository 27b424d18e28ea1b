/* copyspeed: how fast a device copies its own memory, which is what decoding is measured by. */
#include <time.h>

#include "engine.h"

enum { N_COPIES = 8, N_ROUNDS = 3 };
static const uint64_t MOST_BYTES = 512u << 20; /* far more than an L2 holds */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The fastest of some rounds, in bytes read and written per second. */
static cudaError_t time_copies(uint8_t *memory, uint64_t n_bytes, cudaStream_t stream,
                               double *speed) {
    *speed = 0;
    for (int r = 0; r <= N_ROUNDS; r++) { /* the first warms up */
        const double start = now();
        cudaError_t e = cudaSuccess;
        for (int i = 0; i < N_COPIES && e == cudaSuccess; i++)
            e = cudaMemcpyAsync(memory + (i % 2 ? 0 : n_bytes), memory + (i % 2 ? n_bytes : 0),
                                n_bytes, cudaMemcpyDeviceToDevice, stream);
        if (e == cudaSuccess)
            e = cudaStreamSynchronize(stream);
        if (e != cudaSuccess)
            return e;
        const double now_speed = 2.0 * N_COPIES * (double)n_bytes / (now() - start);
        *speed = r && now_speed > *speed ? now_speed : *speed;
    }
    return cudaSuccess;
}

int32_t wina_cuda_copy_speed(const wina_cuda_model *m, double *speed) {
    *speed = 0;
    size_t room = 0, all = 0;
    CUDA_TRY(m->host, cudaSetDevice(m->device_index), "choosing the GPU");
    CUDA_TRY(m->host, cudaMemGetInfo(&room, &all), "asking for free memory");
    const uint64_t n_bytes = (room / 4 < MOST_BYTES ? room / 4 : MOST_BYTES) / 256 * 256;
    uint8_t *memory = NULL;
    cudaStream_t stream = NULL;
    CUDA_TRY(m->host, cudaMalloc((void **)&memory, 2 * n_bytes), "memory for copies");
    cudaError_t e = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    if (e == cudaSuccess)
        e = cudaMemsetAsync(memory, 0, 2 * n_bytes, stream);
    if (e == cudaSuccess)
        e = time_copies(memory, n_bytes, stream, speed);
    if (stream)
        cudaStreamDestroy(stream);
    cudaFree(memory);
    CUDA_TRY(m->host, e, "copying");
    return WINA_OK;
}

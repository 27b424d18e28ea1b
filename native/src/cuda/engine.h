/* engine: a model's weights in device memory, and the state of a session on the device. */
#ifndef WINA_CUDA_ENGINE_H
#define WINA_CUDA_ENGINE_H

#include "device.h"
#include "plugin.h"

typedef struct wina_cuda_group {
    int32_t n_panels;
    wina_cuda_panel panels[WINA_MAX_PROJECTIONS];
    bool converted[WINA_MAX_PROJECTIONS]; /* it is of another type than the model's */
    const float *bias;                    /* (n_out) or NULL */
} wina_cuda_group;

typedef struct wina_cuda_layer {
    wina_cuda_group groups[WINA_N_GROUPS];
    const float *attn_norm, *ffn_norm;                       /* (n_embd), or NULL: none */
    const float *exit_norms[WINA_N_SITES], *q_norm, *k_norm; /* as in wina_layer */
} wina_cuda_layer;

struct wina_cuda_model {
    const wina_cuda_host *host;
    const wina_model *model;
    char device[64];
    int32_t device_index;
    int32_t first, end; /* layers that are here; the last ones come with the output matrix */
    int32_t n_sms;
    wina_cuda_layer *layers; /* (n_layer) */
    wina_cuda_panel output;
    bool output_converted;
    const float *output_norm;
    wina_cuda_table embeddings; /* if the first layer is here */
    uint8_t *arena;             /* device memory of all the above */
    uint64_t arena_bytes;
    uint64_t converted; /* as in wina_cuda_info */
};

/* Forwards a CUDA error as a failure of ours: WINA_E_MEMORY or WINA_E_DEVICE. */
int32_t wina_cuda_fail(const wina_cuda_host *host, cudaError_t error, const char *what);

#define CUDA_TRY(host, call, what)                                                                 \
    do {                                                                                           \
        cudaError_t cuda_try_error = (call);                                                       \
        if (cuda_try_error != cudaSuccess)                                                         \
            return wina_cuda_fail(host, cuda_try_error, what);                                     \
    } while (0)

/* upload.c */
int32_t wina_cuda_list_devices(const wina_cuda_host *host, wina_cuda_memory *out, int32_t cap,
                               int32_t *n);
uint64_t wina_cuda_weight_bytes(const wina_cuda_host *host, const wina_model *model, int32_t first,
                                int32_t end);
int32_t wina_cuda_model_create(const wina_cuda_host *host, const wina_model *model, int32_t device,
                               int32_t first, int32_t end, wina_cuda_model **out);
void wina_cuda_model_free(wina_cuda_model *m);
void wina_cuda_model_info(const wina_cuda_model *m, wina_cuda_info *out);

/* angles.c: out is device memory, (n_ctx, rope_dim / 2, 2); windowed: of layers with a window. */
int32_t wina_cuda_upload_angles(const wina_cuda_model *m, int32_t n_ctx, bool windowed, float *out);

/* copyspeed.c: bytes read and written per second. */
int32_t wina_cuda_copy_speed(const wina_cuda_model *m, double *speed);

/* decode.c */
int32_t wina_cuda_plan_session(wina_cuda_model *m, const wina_backend_params *params,
                               uint64_t *cache_bytes, uint64_t *buffer_bytes);
int32_t wina_cuda_backend_create(wina_cuda_model *m, const wina_backend_params *params,
                                 wina_backend **out);

#endif

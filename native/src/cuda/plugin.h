/* plugin: what libwina_cuda.so offers to libwina, and what it needs from it. The library is opened
 * at run time (cudalib.h), so that libwina does not depend on CUDA; both are built from the same
 * sources, which the fingerprint checks. */
#ifndef WINA_CUDA_PLUGIN_H
#define WINA_CUDA_PLUGIN_H

#include "../backend.h"

typedef struct wina_cuda_model wina_cuda_model;

/* Functions of libwina, so that failures are reported in one place. */
typedef struct wina_cuda_host {
    int32_t (*fail)(int32_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));
    int32_t (*plan_panel)(uint32_t dtype, int64_t n_rows, int64_t n_cols, wina_panel *out);
} wina_cuda_host;

typedef struct wina_cuda_info {
    char device[64];
    uint64_t weight_bytes; /* device memory of the model */
    int32_t first, end;    /* its layers */
    uint64_t converted;    /* bits by wina_dtype_id: types whose panels became floats */
} wina_cuda_info;

/* A GPU that can be used. */
typedef struct wina_cuda_memory {
    int32_t device;
    char name[64];
    uint64_t free_bytes, all_bytes;
} wina_cuda_memory;

typedef struct wina_cuda_plugin {
    uint64_t fingerprint;
    /* Fills at most cap entries; WINA_E_DEVICE with the reason if there is none. */
    int32_t (*list_devices)(const wina_cuda_host *host, wina_cuda_memory *out, int32_t cap,
                            int32_t *n);
    /* Device memory that layers [first, end) of a model need, with its output matrix if they are
     * the last ones. */
    uint64_t (*weight_bytes)(const wina_cuda_host *host, const wina_model *model, int32_t first,
                             int32_t end);
    /* Copies these layers of a loaded model to a device; both must outlive *out. host is kept. */
    int32_t (*model_create)(const wina_cuda_host *host, const wina_model *model, int32_t device,
                            int32_t first, int32_t end, wina_cuda_model **out);
    void (*model_free)(wina_cuda_model *model); /* accepts NULL */
    void (*model_info)(const wina_cuda_model *model, wina_cuda_info *out);
    /* Bytes per second that the device reads and writes when it copies its own memory, measured. */
    int32_t (*copy_speed)(const wina_cuda_model *model, double *out);
    /* Device memory of a session, which backend_create would take. */
    int32_t (*plan_session)(wina_cuda_model *model, const wina_backend_params *params,
                            uint64_t *cache_bytes, uint64_t *buffer_bytes);
    int32_t (*backend_create)(wina_cuda_model *model, const wina_backend_params *params,
                              wina_backend **out);
} wina_cuda_plugin;

/* Differs where the structures that both libraries use differ. */
static inline uint64_t wina_cuda_fingerprint(void) {
    return (uint64_t)WINA_ABI_VERSION << 48 ^ sizeof(wina_model) << 32 ^
           sizeof(wina_backend) << 20 ^ sizeof(wina_backend_ops) << 10 ^ sizeof(wina_layer) ^
           sizeof(wina_cuda_plugin) ^ sizeof(wina_cuda_host);
}

/* The one symbol that is looked up. */
#define WINA_CUDA_SYMBOL "wina_cuda_plugin_get"
const wina_cuda_plugin *wina_cuda_plugin_get(void);

#endif

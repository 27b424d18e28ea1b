#include "cudalib.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "status.h"

#define LIBRARY "libwina_cuda.so"

static const wina_cuda_host HOST = {
    .fail = wina_fail,
    .plan_panel = wina_panel_plan,
};

/* The first file there is, relative to what this code is part of. */
static bool find_library(char *path, size_t capacity) {
    static const char *const PLACES[] = {"", "../lib/"};
    Dl_info self;
    const char *own = dladdr((const void *)&HOST, &self) ? self.dli_fname : NULL;
    char real[PATH_MAX];
    if (!own || !realpath(own, real)) {
        ssize_t n = readlink("/proc/self/exe", real, sizeof real - 1);
        if (n < 0)
            return false;
        real[n] = '\0';
    }
    const char *slash = strrchr(real, '/');
    int folder = slash ? (int)(slash - real) + 1 : 0;
    for (size_t i = 0; i < sizeof PLACES / sizeof PLACES[0]; i++) {
        int n = snprintf(path, capacity, "%.*s%s" LIBRARY, folder, real, PLACES[i]);
        if (n > 0 && (size_t)n < capacity && access(path, R_OK) == 0)
            return true;
    }
    return false;
}

int32_t wina_cudalib_open(const wina_cuda_plugin **out) {
    char found[PATH_MAX];
    const char *path = getenv("WINA_CUDA_LIBRARY");
    if (!path || !*path) {
        if (!find_library(found, sizeof found))
            return wina_fail(WINA_E_UNSUPPORTED, "CUDA: " LIBRARY " is not there (`make cuda` "
                                                 "builds it, WINA_CUDA_LIBRARY names it)");
        path = found;
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return wina_fail(WINA_E_UNSUPPORTED, "CUDA: cannot open the library: %s", dlerror());
    const wina_cuda_plugin *(*get)(void);
    *(void **)&get = dlsym(library, WINA_CUDA_SYMBOL);
    const wina_cuda_plugin *plugin = get ? get() : NULL;
    if (!plugin || plugin->fingerprint != wina_cuda_fingerprint()) {
        dlclose(library);
        return wina_fail(WINA_E_UNSUPPORTED,
                         "CUDA: %s belongs to another version: rebuild it "
                         "(`make cuda`)",
                         path);
    }
    *out = plugin;
    return WINA_OK;
}

/* ---- placing ------------------------------------------------------------------------------ */

/* What a session takes beside the weights: the cache of the default context, and buffers. */
enum { SESSION_BYTES = 400 << 20, PLANNED_CTX = 4096 };

static uint64_t cache_bytes(const wina_config *c) {
    const uint64_t n_ctx = (uint64_t)(c->n_ctx_train < PLANNED_CTX ? c->n_ctx_train : PLANNED_CTX);
    const uint64_t pad = (uint64_t)(c->head_dim + 7) / 8 * 8;
    return 2 * 2 * n_ctx * (uint64_t)c->n_head_kv * pad;
}

/* WINA_CUDA_FREE_MB: no GPU is thought to have more free memory, so that a model that would fit
 * into one can be shared out over several. */
static void limit_memory(wina_cuda_memory *gpus, int32_t n) {
    const char *text = getenv("WINA_CUDA_FREE_MB");
    char *end = NULL;
    const double mb = text ? strtod(text, &end) : 0;
    if (!text || end == text || *end || !(mb >= 0 && mb < 1e9))
        return;
    for (int32_t i = 0; i < n; i++)
        if ((double)gpus[i].free_bytes > mb * (1 << 20))
            gpus[i].free_bytes = (uint64_t)(mb * (1 << 20));
}

/* The first layer from which on all up to `end` fit into a GPU's memory. */
static int32_t first_that_fits(const wina_cuda_plugin *plugin, const wina_model *model,
                               int32_t first, int32_t end, uint64_t room) {
    for (int32_t i = first; i < end; i++) {
        const uint64_t bytes = plugin->weight_bytes(&HOST, model, i, end) +
                               (uint64_t)(end - i) * cache_bytes(&model->config) + SESSION_BYTES;
        if (bytes <= room)
            return i;
    }
    return end;
}

/* Adds to the note which types are not what they are in the file. */
static void note_converted(wina_model *model, uint64_t types) {
    size_t n = strlen(model->backend_note);
    for (uint32_t type = 0; type < 64; type++)
        if (types >> type & 1 && n < sizeof model->backend_note) {
            snprintf(model->backend_note + n, sizeof model->backend_note - n, "%s%s as %s",
                     n ? ", " : "", wina_dtype_name(type),
                     type == WINA_DTYPE_MXFP4 ? "bfloat16" : "float16");
            n = strlen(model->backend_note);
        }
}

/* Layers [first, n_layer) on the GPUs, as few of them as have room; each has its share of memory.
 * With partly: from the first one on that there is room for. */
static int32_t spread(wina_model *model, const wina_cuda_plugin *plugin, int32_t first,
                      bool partly) {
    const int32_t n_layer = model->config.n_layer;
    wina_cuda_memory gpus[WINA_MAX_GPUS];
    int32_t n = 0, n_used = 0, begins[WINA_MAX_GPUS], end = n_layer;
    WINA_TRY(plugin->list_devices(&HOST, gpus, WINA_MAX_GPUS, &n));
    limit_memory(gpus, n);
    for (; n_used < n && end > first; n_used++) { /* from the last layer to the first */
        const int32_t begin = first_that_fits(plugin, model, first, end, gpus[n_used].free_bytes);
        if (begin == end)
            break;
        begins[n_used] = end = begin;
    }
    if (end > first && (!partly || n_used == 0))
        return wina_fail(WINA_E_MEMORY,
                         "CUDA: layers %d to %d need %.2f GB and a cache, %d GPU(s) have room for "
                         "%d of them (%s: %.2f GB free)",
                         first, n_layer - 1,
                         (double)plugin->weight_bytes(&HOST, model, first, n_layer) / 1e9, n,
                         n_layer - end, gpus[0].name, (double)gpus[0].free_bytes / 1e9);
    model->cuda_plugin = plugin;
    model->cuda_first = end;
    uint64_t converted = 0;
    for (int32_t i = n_used - 1, k = 0; i >= 0; i--, k++) {
        wina_cuda_model **gpu = k ? &model->more_cuda[k - 1] : &model->cuda;
        wina_cuda_info info;
        WINA_TRY(plugin->model_create(&HOST, model, gpus[i].device, begins[i],
                                      i ? begins[i - 1] : n_layer, gpu));
        plugin->model_info(*gpu, &info);
        converted |= info.converted;
    }
    if (end > 0)
        snprintf(model->backend_note, sizeof model->backend_note,
                 "%d layers on the CPU, the last %d on %d GPU(s)", end, n_layer - end, n_used);
    else if (n_used > 1)
        snprintf(model->backend_note, sizeof model->backend_note, "%d layers on %d GPUs", n_layer,
                 n_used);
    note_converted(model, converted);
    return WINA_OK;
}

static int32_t place(wina_model *model, int32_t first, bool partly) {
    if (model->config.n_expert)
        return wina_fail(WINA_E_UNSUPPORTED, "CUDA: mixtures of experts run on the CPU only");
    for (int32_t i = 0; i < model->weights.n_layer; i++)
        for (int site = 0; site < WINA_N_SITES; site++)
            if (model->weights.layers[i].rotations[site].n_panels)
                return wina_fail(WINA_E_UNSUPPORTED,
                                 "CUDA: the basis changes at block %d, which only the CPU runs yet",
                                 i);
    const wina_cuda_plugin *plugin;
    WINA_TRY(wina_cudalib_open(&plugin));
    return spread(model, plugin, first, partly);
}

int32_t wina_cudalib_place(wina_model *model, int32_t backend, int32_t n_gpu_layers) {
    if (backend == WINA_BACKEND_CPU || n_gpu_layers == 0)
        return WINA_OK;
    const int32_t n_layer = model->config.n_layer;
    const bool some = n_gpu_layers > 0 && n_gpu_layers < n_layer;
    int32_t status = place(model, some ? n_layer - n_gpu_layers : 0,
                           n_gpu_layers < 0 && backend == WINA_BACKEND_AUTO);
    if (status == WINA_OK) {
        wina_weights_drop(&model->weights, model->gguf, model->cuda_first);
        return status;
    }
    wina_cudalib_remove(model);
    if (backend == WINA_BACKEND_CUDA || n_gpu_layers > 0)
        return status;
    snprintf(model->backend_note, sizeof model->backend_note, "%s", wina_error());
    return WINA_OK;
}

int32_t wina_cudalib_plan(const wina_model *model, const wina_backend_params *params,
                          wina_cudalib_plan_bytes *out) {
    *out = (wina_cudalib_plan_bytes){0};
    for (int32_t i = -1; i < WINA_MAX_GPUS - 1; i++) {
        wina_cuda_model *gpu = i < 0 ? model->cuda : model->more_cuda[i];
        if (!gpu)
            break;
        wina_cuda_info info;
        uint64_t cache = 0, buffers = 0;
        model->cuda_plugin->model_info(gpu, &info);
        WINA_TRY(model->cuda_plugin->plan_session(gpu, params, &cache, &buffers));
        out->weights += info.weight_bytes;
        out->cache += cache;
        out->buffers += buffers;
    }
    return WINA_OK;
}

int32_t wina_cudalib_free_bytes(uint64_t *n_bytes) {
    const wina_cuda_plugin *plugin;
    wina_cuda_memory gpus[WINA_MAX_GPUS];
    int32_t n = 0;
    *n_bytes = 0;
    WINA_TRY(wina_cudalib_open(&plugin));
    WINA_TRY(plugin->list_devices(&HOST, gpus, WINA_MAX_GPUS, &n));
    for (int32_t i = 0; i < n; i++)
        *n_bytes += gpus[i].free_bytes;
    return WINA_OK;
}

void wina_cudalib_remove(wina_model *model) {
    for (int32_t i = 0; i < WINA_MAX_GPUS - 1; i++) {
        if (model->more_cuda[i])
            model->cuda_plugin->model_free(model->more_cuda[i]);
        model->more_cuda[i] = NULL;
    }
    if (model->cuda)
        model->cuda_plugin->model_free(model->cuda);
    model->cuda = NULL;
    model->cuda_first = 0;
}

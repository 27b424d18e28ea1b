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
    .embed = wina_weights_embed,
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

static int32_t place(wina_model *model) {
    const char *trait = wina_config_trait(&model->config);
    if (trait)
        return wina_fail(WINA_E_UNSUPPORTED, "CUDA: %s models have %s, which only the CPU runs yet",
                         model->config.arch->name, trait);
    for (int32_t i = 0; i < model->weights.n_layer; i++)
        for (int site = 0; site < WINA_N_SITES; site++)
            if (model->weights.layers[i].rotations[site].n_panels)
                return wina_fail(WINA_E_UNSUPPORTED,
                                 "CUDA: the basis changes at block %d, which only the CPU runs yet",
                                 i);
    const wina_cuda_plugin *plugin;
    WINA_TRY(wina_cudalib_open(&plugin));
    WINA_TRY(plugin->model_create(&HOST, model, &model->cuda));
    model->cuda_plugin = plugin;
    return WINA_OK;
}

int32_t wina_cudalib_place(wina_model *model, int32_t backend, int32_t n_gpu_layers) {
    if (backend == WINA_BACKEND_CPU || n_gpu_layers == 0)
        return WINA_OK;
    const int32_t n_layer = model->config.n_layer;
    if (n_gpu_layers > 0 && n_gpu_layers < n_layer)
        return wina_fail(WINA_E_UNSUPPORTED,
                         "n_gpu_layers is %d of %d: layers cannot be split between CPU and GPU yet",
                         n_gpu_layers, n_layer);
    int32_t status = place(model);
    if (status == WINA_OK || backend == WINA_BACKEND_CUDA)
        return status;
    snprintf(model->backend_note, sizeof model->backend_note, "%s", wina_error());
    return WINA_OK;
}

void wina_cudalib_remove(wina_model *model) {
    if (model->cuda)
        model->cuda_plugin->model_free(model->cuda);
    model->cuda = NULL;
}

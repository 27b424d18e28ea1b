#include "engine.h"

static wina_cuda_plugin plugin = {
    .list_devices = wina_cuda_list_devices,
    .weight_bytes = wina_cuda_weight_bytes,
    .model_create = wina_cuda_model_create,
    .model_free = wina_cuda_model_free,
    .model_info = wina_cuda_model_info,
    .copy_speed = wina_cuda_copy_speed,
    .plan_session = wina_cuda_plan_session,
    .backend_create = wina_cuda_backend_create,
};

__attribute__((visibility("default"))) const wina_cuda_plugin *wina_cuda_plugin_get(void) {
    plugin.fingerprint = wina_cuda_fingerprint();
    return &plugin;
}

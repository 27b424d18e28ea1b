/* The input is a file: it is loaded, and what loads generates four tokens. */
#include "harness.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    wina_model *model = NULL;
    wina_model_info info = {.n_layer = 0};
    int32_t status = harness_load(data, n, 0, &model);
    if (status == WINA_OK)
        status = wina_model_get_info(model, &info);
    /* Many layers of nothing and wide heads take long without being wrong. */
    if (status == WINA_OK && info.n_layer <= 4 && info.head_dim <= 256)
        harness_run(model, 4);
    wina_model_free(model);
    return 0;
}

/* The input is a file: it is loaded whole and inspected. */
#include "harness.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    wina_model *model = NULL;
    if (harness_load(data, n, 0, &model) == WINA_OK)
        harness_inspect(model);
    wina_model_free(model);
    return 0;
}

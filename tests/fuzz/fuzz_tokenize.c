/* The input is a file with a vocabulary; its last bytes are also the text that is tokenized. */
#include "harness.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    wina_model *model = NULL;
    if (harness_load(data, n, 1, &model) == WINA_OK) {
        size_t n_text = n < 256 ? n : 256;
        harness_tokenize(model, (const char *)data + n - n_text, n_text);
        harness_tokenize(model, "abc ab <|end|> \xff\xc3\xa9 1234", 24);
    }
    wina_model_free(model);
    return 0;
}

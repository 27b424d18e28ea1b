/* The input is a packed file. Its header's checksum is put right first where that is possible: no
 * fuzzer guesses 64 bits, and nothing behind the comparison would ever be reached. What loads is
 * verified, inspected and generates two tokens, from the mapping and from a copy in memory. */
#include "gguf.h"
#include "harness.h"
#include "packed.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max_n, unsigned seed);
size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t max_n) __attribute__((weak));

/* Most changes go to the header: the panels behind it are 60 KB in which any bytes are fine. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max_n, unsigned seed) {
    if (!LLVMFuzzerMutate)
        return n;
    if (seed % 8 == 0 || n <= WINA_PACKED_BORDER)
        return LLVMFuzzerMutate(data, n, max_n);
    LLVMFuzzerMutate(data, WINA_PACKED_BORDER, WINA_PACKED_BORDER);
    return n;
}

/* Writes the right checksum into bytes (n), if they are a file that has a place for it. */
static void mend(uint8_t *bytes, size_t n) {
    wina_gguf *gguf = NULL;
    harness_data = bytes;
    harness_n = n;
    if (wina_gguf_open("memory", &gguf) != WINA_OK)
        return;
    const wina_gguf_tensor *sums = wina_gguf_find_tensor(gguf, "wina.pack.sums");
    if (sums && sums->n_bytes >= 8) {
        uint64_t sum = wina_packed_hash(gguf->map.data, gguf->data_offset);
        memcpy(bytes + (sums->data - gguf->map.data), &sum, sizeof sum);
    }
    wina_gguf_close(gguf);
}

static void use(const wina_model *model) {
    wina_model_info info = {.n_layer = 0};
    wina_model_verify(model);
    harness_inspect(model);
    if (wina_model_get_info(model, &info) == WINA_OK && info.n_layer <= 4 && info.head_dim <= 256)
        harness_run(model, 2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    uint8_t *bytes = malloc(n + 1);
    if (!bytes)
        return 0;
    memcpy(bytes, data, n);
    mend(bytes, n);
    for (int copied = 0; copied < 2; copied++) {
        wina_model_params p;
        wina_model_params_init(&p);
        p.n_threads = 1;
        p.backend = WINA_BACKEND_CPU;
        p.no_mmap = copied;
        harness_data = bytes;
        harness_n = n;
        wina_model *model = NULL;
        if (wina_model_load("memory", &p, &model) == WINA_OK)
            use(model);
        wina_model_free(model);
    }
    free(bytes);
    return 0;
}

/* The input is a file of which only metadata is read: typed access by key, text for people,
 * hyperparameters. */
#include "config.h"
#include "harness.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    wina_gguf *gguf = NULL;
    harness_data = data;
    harness_n = n;
    if (wina_gguf_open("memory", &gguf) != WINA_OK)
        return 0;
    wina_config config;
    wina_config_read(gguf, &config);
    for (uint64_t i = 0; i < gguf->n_kv; i++) {
        char text[128], key[64];
        const wina_gguf_kv *kv = &gguf->kv[i], *same;
        wina_gguf_print_value(kv, text, sizeof text);
        if (kv->count > 0) {
            wina_gguf_item_int(kv, kv->count - 1);
            wina_gguf_item_float(kv, kv->count - 1);
        }
        if (kv->key.n >= sizeof key)
            continue;
        memcpy(key, kv->key.data, kv->key.n);
        key[kv->key.n] = 0;
        uint32_t u;
        float f;
        bool b;
        wina_str s;
        wina_gguf_get_u32(gguf, key, &u);
        wina_gguf_get_f32(gguf, key, &f);
        wina_gguf_has_bool(gguf, key, false, &b);
        wina_gguf_get_str(gguf, key, &s);
        if (wina_gguf_get_array(gguf, key, kv->item_type, kv->count, &same) == WINA_OK &&
            same != kv)
            abort();
    }
    wina_gguf_close(gguf);
    return 0;
}

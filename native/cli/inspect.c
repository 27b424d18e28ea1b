/* wina inspect */
#include <string.h>

#include "cli.h"

static void inspect_json(const wina_model *model, const wina_model_info *info) {
    json j = {.out = stdout};
    char key[256], value[4096];
    json_open(&j, NULL, '{');
    json_open(&j, "metadata", '{');
    for (int32_t i = 0; i < wina_model_meta_count(model); i++) {
        wina_model_get_meta(model, i, key, sizeof key, value, sizeof value);
        /* Keys come from the file: written as strings, with their escapes. */
        json_string(&j, NULL, key, strlen(key));
        fputc(':', stdout);
        j.comma = false;
        json_text(&j, NULL, value);
    }
    json_close(&j, '}');
    json_open(&j, "tensors", '[');
    for (int32_t i = 0; i < wina_model_tensor_count(model); i++) {
        wina_tensor_info t;
        wina_model_get_tensor(model, i, &t);
        json_open(&j, NULL, '{');
        json_text(&j, "name", t.name);
        json_text(&j, "type", t.type);
        json_open(&j, "shape", '[');
        for (int32_t d = 0; d < t.n_dims; d++)
            json_int(&j, NULL, t.ne[d]);
        json_close(&j, ']');
        json_int(&j, "n_bytes", t.n_bytes);
        json_close(&j, '}');
    }
    json_close(&j, ']');
    json_open(&j, "memory", '{');
    json_int(&j, "file_bytes", info->file_bytes);
    json_int(&j, "weight_bytes", info->weight_bytes);
    json_int(&j, "sparse_bytes", info->sparse_bytes);
    json_int(&j, "kv_bytes_per_token", info->kv_bytes_per_token);
    json_close(&j, '}');
    json_text(&j, "architecture", info->architecture);
    json_int(&j, "n_params", info->n_params);
    json_int(&j, "n_ctx_train", info->n_ctx_train);
    json_close(&j, '}');
    putchar('\n');
}

static void inspect_text(const wina_model *model, const wina_model_info *info) {
    char key[256], value[512];
    for (int32_t i = 0; i < wina_model_meta_count(model); i++) {
        wina_model_get_meta(model, i, key, sizeof key, value, sizeof value);
        for (char *p = value; *p; p++)
            if ((unsigned char)*p < ' ')
                *p = ' ';
        printf("%-44s %.120s\n", key, value);
    }
    putchar('\n');
    for (int32_t i = 0; i < wina_model_tensor_count(model); i++) {
        wina_tensor_info t;
        char shape[96] = "";
        wina_model_get_tensor(model, i, &t);
        for (int32_t d = 0; d < t.n_dims; d++)
            snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%lld", d ? " x " : "",
                     (long long)t.ne[d]);
        printf("%-32s %-6s %16s %12lld bytes\n", t.name, t.type, shape, (long long)t.n_bytes);
    }
    printf("\n%lld weights in a file of %.1f MB\n", (long long)info->n_params,
           (double)info->file_bytes / 1e6);
    if (info->weight_bytes > 0)
        printf("packed %.1f MB, of which sparsity applies to %.1f MB; KV cache %.1f KB a token\n",
               (double)info->weight_bytes / 1e6, (double)info->sparse_bytes / 1e6,
               (double)info->kv_bytes_per_token / 1e3);
    else
        printf("this file can be looked at but not run\n");
}

int cli_inspect(const cli_options *o) {
    wina_model *model = NULL;
    wina_model_params p;
    wina_model_params_init(&p);
    p.meta_only = 1;
    int32_t status = wina_model_load(o->model, &p, &model);
    if (status != WINA_OK)
        return cli_report(status);
    wina_model_info info;
    wina_model_get_info(model, &info);
    if (o->json)
        inspect_json(model, &info);
    else
        inspect_text(model, &info);
    wina_model_free(model);
    return 0;
}

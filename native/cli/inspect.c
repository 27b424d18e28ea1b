/* wina inspect: what a file holds and what it would take to run it. Nothing is packed, so it works
 * on files that cannot be run, too. */
#include <string.h>

#include "cli.h"

/* The rule for a sparsity (0.5 unless one was given); false if this file has none. */
static bool describe(const cli_options *o, const wina_model *model, char *text, size_t cap) {
    wina_sparsity s = o->sparsity;
    if (s.sparsity <= 0)
        s.sparsity = 0.5f;
    return wina_model_describe_rule(model, &s, text, cap) == WINA_OK;
}

static void inspect_json(const cli_options *o, const wina_model *model,
                         const wina_model_info *info) {
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
        const char *text;
        size_t n_bytes;
        if (wina_model_get_meta_string(model, key, &text, &n_bytes) == WINA_OK)
            json_string(&j, NULL, text, n_bytes); /* whole, however long */
        else
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
    json_int(&j, "packed", info->packed);
    json_int(&j, "weight_bytes", info->weight_bytes);
    json_int(&j, "sparse_bytes", info->sparse_bytes);
    json_int(&j, "kv_bytes_per_token", info->kv_bytes_per_token);
    json_close(&j, '}');
    wina_memory_plan plan;
    const wina_session_params session = cli_session(o);
    if (wina_model_plan_memory(model, &session, &plan) == WINA_OK) {
        json_open(&j, "plan", '{');
        json_int(&j, "weight_bytes", plan.weight_bytes);
        json_int(&j, "cache_bytes", plan.cache_bytes);
        json_int(&j, "buffer_bytes", plan.buffer_bytes);
        json_int(&j, "other_bytes", plan.other_bytes);
        json_int(&j, "peak_bytes", plan.peak_bytes);
        json_int(&j, "gpu_weight_bytes", plan.gpu_weight_bytes);
        json_int(&j, "gpu_cache_bytes", plan.gpu_cache_bytes);
        json_int(&j, "gpu_buffer_bytes", plan.gpu_buffer_bytes);
        json_close(&j, '}');
    }
    if (describe(o, model, value, sizeof value))
        json_text(&j, "rule", value);
    json_text(&j, "architecture", info->architecture);
    json_int(&j, "n_params", info->n_params);
    json_int(&j, "n_ctx_train", info->n_ctx_train);
    json_int(&j, "n_vocab", info->n_vocab);
    json_int(&j, "n_layer", info->n_layer);
    json_int(&j, "n_embd", info->n_embd);
    json_int(&j, "n_head", info->n_head);
    json_int(&j, "n_head_kv", info->n_head_kv);
    json_int(&j, "head_dim", info->head_dim);
    json_int(&j, "n_ff", info->n_ff);
    json_close(&j, '}');
    putchar('\n');
}

static void inspect_text(const cli_options *o, const wina_model *model,
                         const wina_model_info *info) {
    char key[256], value[121], rule[256];
    for (int32_t i = 0; i < wina_model_meta_count(model); i++) {
        wina_model_get_meta(model, i, key, sizeof key, value, sizeof value);
        cli_print_clean(key, 45);
        cli_print_clean(value, 0);
        putchar('\n');
    }
    putchar('\n');
    for (int32_t i = 0; i < wina_model_tensor_count(model); i++) {
        wina_tensor_info t;
        char shape[96] = "";
        wina_model_get_tensor(model, i, &t);
        for (int32_t d = 0; d < t.n_dims; d++)
            snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%lld", d ? " x " : "",
                     (long long)t.ne[d]);
        cli_print_clean(t.name, 33);
        printf("%-6s %16s %12lld bytes\n", t.type, shape, (long long)t.n_bytes);
    }
    printf("\n%lld weights in a file of %.1f MB\n", (long long)info->n_params,
           (double)info->file_bytes / 1e6);
    if (info->weight_bytes > 0)
        printf("packed %.1f MB, of which sparsity applies to %.1f MB; KV cache %.1f KB a token\n",
               (double)info->weight_bytes / 1e6, (double)info->sparse_bytes / 1e6,
               (double)info->kv_bytes_per_token / 1e3);
    else
        printf("this file can be looked at but not run\n");
    wina_memory_plan plan;
    const wina_session_params session = cli_session(o);
    if (wina_model_plan_memory(model, &session, &plan) == WINA_OK)
        printf(
            "memory: weights %.1f MB, KV cache %.1f MB, buffers %.1f MB, the rest %.1f MB; at its "
            "peak %.1f MB\n",
            (double)plan.weight_bytes / 1e6, (double)plan.cache_bytes / 1e6,
            (double)plan.buffer_bytes / 1e6, (double)plan.other_bytes / 1e6,
            (double)plan.peak_bytes / 1e6);
    if (describe(o, model, rule, sizeof rule))
        printf("at sparsity %g: %s\n",
               o->sparsity.sparsity > 0 ? (double)o->sparsity.sparsity : 0.5, rule);
    else if (info->weight_bytes > 0)
        printf("sparsity: %s\n", wina_error());
}

int cli_inspect(const cli_options *o) {
    wina_model *model = NULL;
    wina_model_params p;
    wina_model_params_init(&p);
    p.meta_only = 1;
    int32_t status = cli_load(o, &p, &model);
    if (status != WINA_OK)
        return cli_report(status);
    if (o->verify) {
        status = wina_model_verify(model);
        if (status == WINA_OK)
            printf("%s: all checksums are right\n", o->model);
        wina_model_free(model);
        return status == WINA_OK ? 0 : cli_report(status);
    }
    wina_model_info info;
    wina_model_get_info(model, &info);
    if (o->json)
        inspect_json(o, model, &info);
    else
        inspect_text(o, model, &info);
    wina_model_free(model);
    return 0;
}

/* api: the entry points of wina.h that concern a model. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/kernels.h"
#include "cudalib.h"
#include "mem.h"
#include "memplan.h"
#include "model.h"
#include "packed.h"
#include "split.h"
#include "status.h"

#define WINA_VERSION "0.1.0"

int32_t wina_abi_version(void) {
    return WINA_ABI_VERSION;
}

const char *wina_version(void) {
    return WINA_VERSION;
}

const char *wina_cpu_name(void) {
    wina_kernels k;
    return wina_kernels_detect(&k) == WINA_OK ? k.name : "none";
}

int32_t wina_cpu_cores(void) {
    return wina_threads_cores();
}

/* ---- loading ------------------------------------------------------------------------------ */

void wina_model_params_init(wina_model_params *params) {
    *params = (wina_model_params){.n_gpu_layers = -1};
}

/* What rules are made from; norms are known once weights are packed. */
static int32_t load_rules(wina_model *m) {
    WINA_TRY(wina_tuning_read(m->gguf, &m->weights, &m->tuning));
    WINA_TRY(wina_tuning_groups(&m->weights, &m->groups));
    WINA_TRY(wina_tuning_experts(&m->weights, &m->config, m->groups, &m->experts));
    m->has_plan = true;
    return WINA_OK;
}

static int32_t load_weights(wina_model *m, const wina_model_params *p, const wina_fill_ops *fill) {
    wina_threads *threads = NULL;
    int32_t n = p->n_threads ? p->n_threads : wina_threads_cores();
    WINA_TRY(wina_threads_create(n, &threads));
    const wina_weights_how how = {.threads = threads,
                                  .fill = fill,
                                  .stop = p->progress,
                                  .user = p->progress_user,
                                  .copy = p->no_mmap != 0,
                                  .lock = p->mlock != 0};
    int32_t status = wina_weights_load(m->gguf, &m->config, &how, &m->weights);
    wina_threads_free(threads);
    return status;
}

static int32_t set_resident(wina_model *m, const char *path, const wina_model_params *p) {
    char whole[PATH_MAX]; /* sessions open it later, perhaps from another folder */
    if (!wina_packed_find(m->gguf) || p->no_mmap || p->mlock)
        return wina_fail(WINA_E_ARGUMENT, "resident is for packed files that are mapped, "
                                          "without no_mmap and mlock");
    if (p->backend == WINA_BACKEND_CUDA)
        return wina_fail(WINA_E_ARGUMENT, "resident is for the CPU");
    m->path = strdup(realpath(path, whole) ? whole : path);
    if (!m->path)
        return wina_fail(WINA_E_MEMORY, "out of memory: the path");
    m->resident = p->resident;
    return WINA_OK;
}

static int32_t load(wina_model *m, const char *path, const wina_model_params *p) {
    wina_kernels kernels;
    WINA_TRY(wina_kernels_detect(&kernels)); /* a wrong WINA_CPU is best told early */
    WINA_TRY(wina_gguf_open(path, &m->gguf));
    WINA_TRY(wina_split_attach(m->gguf, path));
    WINA_TRY(wina_packed_attach(m->gguf));
    if (p->resident && !p->vocab_only)
        WINA_TRY(set_resident(m, path, p));
    if (!p->meta_only)
        WINA_TRY(wina_tokenizer_create(m->gguf, &m->tokenizer));
    if (p->vocab_only)
        return WINA_OK;
    int32_t status = wina_config_read(m->gguf, &m->config);
    if (status == WINA_OK)
        status = wina_weights_plan(m->gguf, &m->config, &m->weights);
    if (p->meta_only) {
        /* Files of other architectures can still be looked at. */
        if (status == WINA_OK)
            load_rules(m);
        return WINA_OK;
    }
    WINA_TRY(status);
    int32_t n_tokens = wina_tokenizer_n_vocab(m->tokenizer);
    if (n_tokens > m->config.n_vocab)
        return wina_fail(WINA_E_FORMAT, "the vocabulary has %d tokens, token_embd.weight only %d",
                         n_tokens, m->config.n_vocab);
    wina_session_params session;
    wina_session_params_init(&session);
    session = p->session ? *p->session : session;
    m->mem_limit = p->mem_limit;
    if (p->mem_limit) {
        WINA_TRY(wina_session_check_params(m, &session));
        WINA_TRY(wina_memplan_check(m, &session));
    }
    WINA_TRY(load_weights(m, p, &kernels.fill));
    WINA_TRY(load_rules(m));
    WINA_TRY(wina_gguf_check_unchanged(m->gguf));
    return wina_cudalib_place(m, m->resident ? WINA_BACKEND_CPU : p->backend, p->n_gpu_layers);
}

int32_t wina_model_load(const char *path, const wina_model_params *params, wina_model **out) {
    *out = NULL;
    wina_model_params p;
    wina_model_params_init(&p);
    if (params)
        p = *params;
    if (p.n_threads < 0)
        return wina_fail(WINA_E_ARGUMENT, "n_threads is %d, must be at least 1", p.n_threads);
    if (p.backend < WINA_BACKEND_AUTO || p.backend > WINA_BACKEND_CUDA)
        return wina_fail(WINA_E_ARGUMENT, "unknown backend %d", p.backend);
    if (p.n_gpu_layers < -1)
        return wina_fail(WINA_E_ARGUMENT, "n_gpu_layers is %d, must be -1 or more", p.n_gpu_layers);
    if (p.mem_limit < 0)
        return wina_fail(WINA_E_ARGUMENT, "mem_limit is %lld, must be 0 (none) or more",
                         (long long)p.mem_limit);
    if (p.resident < 0)
        return wina_fail(WINA_E_ARGUMENT, "resident is %lld, must be 0 (off) or more",
                         (long long)p.resident);
    wina_model *m = NULL;
    WINA_TRY(wina_mem_create(1, sizeof *m, "model", &m));
    int32_t status = load(m, path, &p);
    if (status != WINA_OK) {
        wina_model_free(m);
        return status;
    }
    *out = m;
    return WINA_OK;
}

void wina_model_free(wina_model *m) {
    if (!m)
        return;
    wina_cudalib_remove(m);
    wina_weights_free(&m->weights);
    wina_tuning_free(&m->tuning);
    free(m->groups);
    free(m->experts);
    wina_tokenizer_free(m->tokenizer);
    wina_gguf_close(m->gguf);
    free(m->path);
    free(m);
}

/* ---- information -------------------------------------------------------------------------- */

/* Copies text to a buffer of cap bytes, cut on a character border. */
static void copy_text(char *out, size_t cap, const char *text, size_t n) {
    if (n >= cap) {
        n = cap - 1;
        while (n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80)
            n--;
    }
    memcpy(out, text, n);
    out[n] = 0;
}

int32_t wina_model_copy_speed(const wina_model *m, double *bytes_per_second) {
    *bytes_per_second = 0;
    if (!m->cuda || m->cuda_first > 0)
        return wina_fail(WINA_E_UNSUPPORTED, "not all layers are on a GPU");
    WINA_TRY(m->cuda_plugin->copy_speed(m->cuda, bytes_per_second));
    for (int32_t i = 0; i < WINA_MAX_GPUS - 1 && m->more_cuda[i]; i++) {
        double other;
        WINA_TRY(m->cuda_plugin->copy_speed(m->more_cuda[i], &other));
        if (other < *bytes_per_second)
            *bytes_per_second = other;
    }
    return WINA_OK;
}

int32_t wina_model_get_info(const wina_model *m, wina_model_info *info) {
    const wina_config *c = &m->config;
    *info = (wina_model_info){.bos_token = -1, .eos_token = -1};
    wina_str text;
    if (wina_gguf_find(m->gguf, "general.architecture") &&
        wina_gguf_get_str(m->gguf, "general.architecture", &text) == WINA_OK)
        copy_text(info->architecture, sizeof info->architecture, text.data, text.n);
    if (wina_gguf_find(m->gguf, "general.name") &&
        wina_gguf_get_str(m->gguf, "general.name", &text) == WINA_OK)
        copy_text(info->name, sizeof info->name, text.data, text.n);
    info->n_vocab = c->n_vocab;
    if (m->tokenizer) {
        if (!m->has_plan)
            info->n_vocab = wina_tokenizer_n_vocab(m->tokenizer);
        info->bos_token = wina_tokenizer_bos(m->tokenizer);
        info->eos_token = wina_tokenizer_eos(m->tokenizer);
        info->add_bos = wina_tokenizer_adds_bos(m->tokenizer);
    }
    info->n_ctx_train = c->n_ctx_train;
    info->n_embd = c->n_embd;
    info->n_layer = c->n_layer;
    info->n_head = c->n_head;
    info->n_head_kv = c->n_head_kv;
    info->head_dim = c->head_dim;
    info->n_ff = c->n_ff;
    info->tied_output = c->tied_output;
    for (uint64_t i = 0; i < m->gguf->n_tensors; i++) {
        const wina_gguf_tensor *t = &m->gguf->tensors[i];
        if (t->name.n < 10 || memcmp(t->name.data, "wina.pack.", 10) != 0)
            info->n_params += (int64_t)(t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]);
    }
    info->file_bytes = (int64_t)wina_gguf_file_bytes(m->gguf);
    info->weight_bytes = (int64_t)m->weights.total_bytes;
    info->packed = wina_packed_find(m->gguf);
    info->sparse_bytes = (int64_t)m->weights.sparse_bytes;
    info->kv_bytes_per_token = (int64_t)2 * 2 * c->n_layer * c->n_head_kv * c->head_dim;
    snprintf(info->backend, sizeof info->backend, "%s", m->cuda ? "cuda" : "cpu");
    copy_text(info->backend_note, sizeof info->backend_note, m->backend_note,
              strlen(m->backend_note));
    if (m->cuda) {
        wina_cuda_info gpu;
        m->cuda_plugin->model_info(m->cuda, &gpu);
        copy_text(info->device, sizeof info->device, gpu.device, strlen(gpu.device));
        info->gpu_bytes = (int64_t)gpu.weight_bytes;
        for (int32_t i = 0; i < WINA_MAX_GPUS - 1 && m->more_cuda[i]; i++) {
            m->cuda_plugin->model_info(m->more_cuda[i], &gpu);
            info->gpu_bytes += (int64_t)gpu.weight_bytes;
        }
    }
    return WINA_OK;
}

int32_t wina_model_meta_count(const wina_model *m) {
    return (int32_t)m->gguf->n_kv;
}

int32_t wina_model_get_meta(const wina_model *m, int32_t index, char *key, size_t key_cap,
                            char *value, size_t value_cap) {
    if (index < 0 || (uint64_t)index >= m->gguf->n_kv || key_cap < 1 || value_cap < 1)
        return wina_fail(WINA_E_ARGUMENT, "metadata index %d is outside 0..%d", index,
                         (int32_t)m->gguf->n_kv - 1);
    const wina_gguf_kv *kv = &m->gguf->kv[index];
    copy_text(key, key_cap, kv->key.data, kv->key.n);
    wina_gguf_print_value(kv, value, value_cap);
    return WINA_OK;
}

int32_t wina_model_get_meta_string(const wina_model *m, const char *key, const char **text,
                                   size_t *n_bytes) {
    const wina_gguf_kv *kv = wina_gguf_find(m->gguf, key);
    wina_str s;
    if (!kv || kv->type != WINA_GGUF_STRING)
        return wina_fail(WINA_E_ARGUMENT, "there is no metadata string %s", key);
    WINA_TRY(wina_gguf_get_str(m->gguf, key, &s));
    *text = s.data;
    *n_bytes = s.n;
    return WINA_OK;
}

int32_t wina_model_tensor_count(const wina_model *m) {
    return (int32_t)m->gguf->n_tensors;
}

int32_t wina_model_get_tensor(const wina_model *m, int32_t index, wina_tensor_info *info) {
    if (index < 0 || (uint64_t)index >= m->gguf->n_tensors)
        return wina_fail(WINA_E_ARGUMENT, "tensor index %d is outside 0..%d", index,
                         (int32_t)m->gguf->n_tensors - 1);
    const wina_gguf_tensor *t = &m->gguf->tensors[index];
    *info = (wina_tensor_info){.n_dims = (int32_t)t->n_dims, .n_bytes = (int64_t)t->n_bytes};
    copy_text(info->name, sizeof info->name, t->name.data, t->name.n);
    copy_text(info->type, sizeof info->type, t->dtype->name, strlen(t->dtype->name));
    for (int i = 0; i < 4; i++)
        info->ne[i] = (int64_t)t->ne[i];
    return WINA_OK;
}

int32_t wina_model_read_rows(const wina_model *m, const char *name, int64_t row0, int64_t n_rows,
                             float *out) {
    const wina_gguf_tensor *t = wina_gguf_find_tensor(m->gguf, name);
    if (!t)
        return wina_fail(WINA_E_ARGUMENT, "there is no tensor %s", name);
    int64_t rows = (int64_t)(t->ne[1] * t->ne[2] * t->ne[3]);
    if (row0 < 0 || n_rows < 0 || row0 > rows || n_rows > rows - row0)
        return wina_fail(WINA_E_ARGUMENT, "rows %lld + %lld of tensor %s are outside its %lld rows",
                         (long long)row0, (long long)n_rows, name, (long long)rows);
    if (t->data) {
        t->dtype->decode(t->data + (uint64_t)row0 * t->row_bytes, out,
                         (uint64_t)n_rows * t->ne[0] / t->dtype->block);
        return WINA_OK;
    }
    for (int64_t i = 0; i < n_rows;) {
        wina_panel_rows r;
        if (!m->has_plan || !wina_weights_find_rows(&m->weights, name, row0 + i, &r) ||
            !r.panel->data)
            return wina_fail(WINA_E_STATE, "tensor %s is packed and %s", name,
                             m->cuda ? "in the GPU's memory alone: load the model with the "
                                       "backend cpu, or mapped"
                                     : "the model was loaded without its weights");
        for (int64_t k = 0; k < r.n_rows && i < n_rows; k++, i++)
            wina_panel_decode_row(r.panel, r.row0 + k, out + i * r.panel->n_cols);
    }
    return WINA_OK;
}

int32_t wina_model_write_packed(const wina_model *m, const char *path, wina_progress_fn progress,
                                void *user) {
    if (!m->weights.output_norm)
        return wina_fail(WINA_E_STATE, "the model was loaded without its weights");
    if (m->weights.end_here < m->config.n_layer && !m->weights.mapped)
        return wina_fail(WINA_E_STATE, "the weights are in the GPU's memory alone: load the model "
                                       "with the backend cpu to write them");
    return wina_packed_write(m->gguf, &m->weights, path, progress, user);
}

int32_t wina_model_verify(const wina_model *m) {
    if (!wina_packed_find(m->gguf))
        return wina_fail(WINA_E_ARGUMENT, "the file is not packed: it has no checksums");
    if (!m->has_plan)
        return wina_fail(WINA_E_STATE, "the model's weights were not read, or are not supported");
    return wina_packed_verify(m->gguf, &m->weights);
}

int32_t wina_model_get_norms(const wina_model *m, int32_t layer, int32_t group, int32_t projection,
                             float *out, int32_t n_inputs) {
    if (!m->weights.output_norm)
        return wina_fail(WINA_E_STATE, "the model was loaded without its weights");
    if (layer < 0 || layer >= m->config.n_layer || group < 0 || group >= WINA_N_GROUPS)
        return wina_fail(WINA_E_ARGUMENT, "there is no layer %d, group %d", layer, group);
    const wina_group_weights *g = &m->weights.layers[layer].groups[group];
    if (projection < -1 || projection >= g->n_projections || n_inputs != g->n_in)
        return wina_fail(WINA_E_ARGUMENT, "group %d has %d projections and %d inputs", group,
                         g->n_projections, g->n_in);
    const float *norms = projection < 0 ? g->norms : g->projections[projection].norms;
    if (!norms)
        return wina_fail(WINA_E_UNSUPPORTED,
                         "layer %d is a mixture of experts, which have norms of "
                         "their own",
                         layer);
    memcpy(out, norms, (size_t)n_inputs * sizeof *out);
    return WINA_OK;
}

/* ---- rules -------------------------------------------------------------------------------- */

static int32_t need_plan(const wina_model *m) {
    return m->has_plan ? WINA_OK
                       : wina_fail(WINA_E_STATE, "the model's weights or tuning were not read, or "
                                                 "are not supported");
}

int32_t wina_model_describe_rule(const wina_model *m, const wina_sparsity *sparsity, char *text,
                                 size_t cap) {
    WINA_TRY(need_plan(m));
    const wina_rule_model rules = wina_model_rules(m, NULL);
    return wina_rules_describe(&rules, sparsity, text, cap);
}

/* ---- tokenizer ---------------------------------------------------------------------------- */

static int32_t need_tokenizer(const wina_model *m) {
    return m->tokenizer ? WINA_OK
                        : wina_fail(WINA_E_STATE, "the model was loaded without its tokenizer");
}

int32_t wina_tokenize(const wina_model *m, const char *text, size_t n_bytes, int32_t flags,
                      int32_t *tokens, size_t capacity, size_t *n_tokens) {
    WINA_TRY(need_tokenizer(m));
    return wina_tokenizer_encode(m->tokenizer, text, n_bytes, flags, tokens, capacity, n_tokens);
}

int32_t wina_detokenize(const wina_model *m, const int32_t *tokens, size_t n_tokens,
                        int32_t special, char *text, size_t capacity, size_t *n_bytes) {
    WINA_TRY(need_tokenizer(m));
    return wina_tokenizer_decode(m->tokenizer, tokens, n_tokens, special, text, capacity, n_bytes);
}

int32_t wina_token_is_eog(const wina_model *m, int32_t token) {
    return m->tokenizer && wina_tokenizer_is_eog(m->tokenizer, token);
}

int32_t wina_token_is_special(const wina_model *m, int32_t token) {
    return m->tokenizer && wina_tokenizer_is_special(m->tokenizer, token);
}

/* model: everything about a model that does not change while it runs. */
#ifndef WINA_MODEL_H
#define WINA_MODEL_H

#include "config.h"
#include "gguf.h"
#include "tokenizer.h"
#include "tuning.h"
#include "weights.h"
#include "wina.h"

enum { WINA_MAX_GPUS = 8 };

struct wina_model {
    wina_gguf *gguf;
    wina_config config;
    wina_tokenizer *tokenizer;    /* NULL with meta_only */
    wina_weights weights;         /* sizes only with meta_only; empty with vocab_only */
    wina_tuning_store tuning;     /* what the file has of it */
    wina_rule_group *groups;      /* (n_layer, 4) what rules need to know; with has_plan */
    wina_rule_group *experts;     /* (n_layer, n, 2) the same of experts, or NULL */
    char *path;                   /* of the file, if resident is not 0 */
    int64_t resident;             /* see wina_model_params; 0: off */
    int64_t mem_limit;            /* of the load, and of every session; 0: none */
    bool has_plan;                /* config and weights were read */
    struct wina_cuda_model *cuda; /* the weights on a GPU (layers from cuda_first on), or NULL */
    struct wina_cuda_model *more_cuda[WINA_MAX_GPUS - 1]; /* of the layers after those */
    int32_t cuda_first; /* layers before this one are on the CPU */
    const struct wina_cuda_plugin *cuda_plugin;
    char backend_note[256]; /* why the model is not on a GPU, if that was wanted */
};

/* What rules are made from; tuning NULL: the file's. */
static inline wina_rule_model wina_model_rules(const wina_model *m, const wina_tuning *tuning) {
    if (!tuning && m->tuning.present)
        tuning = &m->tuning.tuning;
    return (wina_rule_model){.n_layer = m->weights.n_layer,
                             .groups = m->groups,
                             .tuning = tuning,
                             .n_expert = m->experts ? wina_experts_count(&m->config) : 0,
                             .experts = m->experts};
}

#endif

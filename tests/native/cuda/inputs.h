/* inputs: what goes into a model on a GPU and what can be seen of it: embeddings, hidden states,
 * activations. Part of check_cuda. */
#ifndef INPUTS_H
#define INPUTS_H

#include "compare.h"

/* Embeddings as rows of every type, beside matrices that add next to nothing to the difference. */
static inline void check_rows(uint32_t type) {
    static const fake_spec SPEC = {WINA_DTYPE_F32, 1,     256,         384,  2, 1, 64, 50, 64,
                                   false,          false, FAKE_GEMMA2, false};
    char what[80];
    snprintf(what, sizeof what, "embeddings of %s", wina_dtype_find(type)->name);
    if (is_left_out(what))
        return;
    wina_model *m = fake_model(&SPEC, 5);
    fake_rows(m, type, 9);
    const wina_rules rules = fake_rules(m, 0, WINA_METHOD_WINA, WINA_MASK_GROUP);
    wina_backend *cpu = NULL, *gpu = NULL;
    int32_t tokens[N_TOKENS];
    for (int32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = (i * 37 + 11) % SPEC.n_vocab;
    const size_t n = (size_t)N_TOKENS * (size_t)SPEC.n_vocab;
    float *a = calloc(n, sizeof *a), *b = calloc(n, sizeof *b), *c = calloc(n, sizeof *c);
    CHECK_MSG(wina_cudalib_place(m, WINA_BACKEND_CUDA, -1) == WINA_OK, "%s", wina_error());
    CHECK(wina_cpu_backend_create(m, &SESSION, &cpu) == WINA_OK);
    CHECK_MSG(wina_chain_create(m, &SESSION, &gpu) == WINA_OK, "%s", wina_error());
    CHECK(run(cpu, tokens, N_TOKENS, 0, &rules, true, a) == WINA_OK);
    CHECK_MSG(run(gpu, tokens, N_TOKENS, 0, &rules, true, b) == WINA_OK, "%s", wina_error());
    CHECK_MSG(run(gpu, tokens, N_TOKENS, 0, &rules, false, c) == WINA_OK, "%s", wina_error());
    const outcome o = compare(a, b, c, SPEC.n_vocab, false);
    printf("  %-44s NMSE %.1e, batch %.1e\n", what, o.worst, o.batch_worst);
    CHECK_MSG(o.worst < 1e-9, "%s: NMSE %g", what, o.worst);
    CHECK_MSG(o.batch_worst < 1e-5, "%s: batch NMSE %g", what, o.batch_worst);
    cpu->ops->free(cpu);
    gpu->ops->free(gpu);
    wina_cudalib_remove(m);
    free(a), free(b), free(c);
}

/* What the head multiplies, token by token and of a batch; and that a plan is what a session takes.
 */
static inline void check_hidden(int32_t kind, int32_t n_gpu) {
    const fake_spec spec = {WINA_DTYPE_Q8_0, 2,     128,  192,  4, 2, 32, 100, 64,
                            false,           false, kind, false};
    char what[80];
    snprintf(what, sizeof what, "hidden states like %s, %d layers on GPUs", FAKE_NAMES[kind],
             n_gpu);
    if (is_left_out(what))
        return;
    wina_model *m = fake_model(&spec, 3);
    const wina_rules rules = fake_rules(m, 0, WINA_METHOD_WINA, WINA_MASK_GROUP);
    wina_backend *b[2] = {NULL, NULL};
    int32_t tokens[N_TOKENS];
    const size_t n = (size_t)N_TOKENS * (size_t)spec.n_embd;
    float *out[3], *logits = calloc((size_t)spec.n_vocab, sizeof *logits);
    for (int i = 0; i < 3; i++)
        out[i] = calloc(n, sizeof *out[i]);
    for (int32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = (i * 37 + 11) % spec.n_vocab;
    CHECK_MSG(wina_cudalib_place(m, WINA_BACKEND_CUDA, n_gpu) == WINA_OK, "%s", wina_error());
    CHECK(wina_cpu_backend_create(m, &SESSION, &b[0]) == WINA_OK);
    CHECK_MSG(wina_chain_create(m, &SESSION, &b[1]) == WINA_OK, "%s", wina_error());
    wina_cudalib_plan_bytes plan;
    CHECK(wina_cudalib_plan(m, &SESSION, &plan) == WINA_OK);
    if (n_gpu == 2 && !m->more_cuda[0])
        CHECK_MSG(plan.cache + plan.buffers == b[1]->n_bytes, "planned %llu, took %llu",
                  (unsigned long long)(plan.cache + plan.buffers),
                  (unsigned long long)b[1]->n_bytes);
    double worst[2] = {0, 0};
    for (int way = 0; way < 3; way++) { /* CPU, GPU token by token, GPU in one batch */
        const atomic_bool cancel = false;
        wina_backend *own = b[way > 0];
        const int32_t step = way == 2 ? N_TOKENS : 1;
        for (int32_t i = 0; i < N_TOKENS; i += step) {
            const wina_forward f = {.tokens = tokens + i,
                                    .n_tokens = step,
                                    .pos = i,
                                    .n_dense = step,
                                    .rules = &rules,
                                    .logits = logits,
                                    .logits_from = step - 1,
                                    .hidden = out[way] + (int64_t)i * spec.n_embd,
                                    .cancel = &cancel};
            CHECK_MSG(wina_forward_run(own, &f) == WINA_OK, "%s", wina_error());
        }
    }
    for (int way = 1; way < 3; way++)
        worst[way - 1] = nmse(out[way], out[0], (int32_t)n);
    printf("  %-44s NMSE %.1e, batch %.1e\n", what, worst[0], worst[1]);
    CHECK_MSG(worst[0] < 2e-7, "%s: NMSE %g", what, worst[0]);
    CHECK_MSG(worst[1] < 1e-5, "%s: batch NMSE %g", what, worst[1]);
    b[0]->ops->free(b[0]);
    b[1]->ops->free(b[1]);
    wina_cudalib_remove(m);
    free(out[0]), free(out[1]), free(out[2]), free(logits);
}

/* What a tap is shown of a batch, all groups of all layers one after the other. */
typedef struct seen {
    float *all;
    size_t n, capacity;
    int32_t n_calls;
} seen;

static inline void see(int32_t layer, int32_t group, const float *x, int32_t n_tokens, int32_t n_in,
                       void *user) {
    seen *s = user;
    const size_t n = (size_t)n_tokens * (size_t)n_in;
    CHECK(s->n_calls++ == layer * WINA_N_GROUPS + group && s->n + n <= s->capacity);
    if (s->n + n <= s->capacity)
        memcpy(s->all + s->n, x, n * sizeof *x);
    s->n += n;
}

static inline int32_t run_seen(wina_backend *b, const wina_rules *rules, int32_t n, seen *s) {
    static const int32_t TOKENS[N_TOKENS] = {11, 48, 85, 22, 59, 96, 33, 70, 7};
    const atomic_bool cancel = false;
    float *logits = calloc((size_t)b->model->config.n_vocab, sizeof *logits);
    const wina_forward f = {.tokens = TOKENS,
                            .n_tokens = n,
                            .n_dense = n,
                            .rules = rules,
                            .logits = logits,
                            .logits_from = n - 1,
                            .cancel = &cancel,
                            .tap = see,
                            .tap_user = s};
    s->n = 0;
    s->n_calls = 0;
    const int32_t status = wina_forward_run(b, &f);
    free(logits);
    return status;
}

/* Activations that projections multiply, of a long and of a short batch, not of a single token. */
static inline void check_taps(int32_t kind, int32_t n_gpu) {
    const fake_spec spec = {WINA_DTYPE_Q8_0, 2,     128,  192,  4, 2, 32, 100, 64,
                            false,           false, kind, false};
    char what[80];
    snprintf(what, sizeof what, "taps like %s, %d layers on GPUs", FAKE_NAMES[kind], n_gpu);
    if (is_left_out(what))
        return;
    wina_model *m = fake_model(&spec, 3);
    const wina_rules rules = fake_rules(m, 0, WINA_METHOD_WINA, WINA_MASK_GROUP);
    wina_backend *cpu = NULL, *gpu = NULL;
    seen a = {.capacity = 2 * (128 + 128 + 128 + 192) * N_TOKENS}, b = a;
    a.all = calloc(a.capacity, sizeof *a.all);
    b.all = calloc(b.capacity, sizeof *b.all);
    CHECK_MSG(wina_cudalib_place(m, WINA_BACKEND_CUDA, n_gpu) == WINA_OK, "%s", wina_error());
    CHECK(wina_cpu_backend_create(m, &SESSION, &cpu) == WINA_OK);
    CHECK_MSG(wina_chain_create(m, &SESSION, &gpu) == WINA_OK, "%s", wina_error());
    double worst = 0;
    for (int32_t n = N_TOKENS; n > 1; n /= 4) { /* 9, 2 */
        CHECK(run_seen(cpu, &rules, n, &a) == WINA_OK);
        CHECK_MSG(run_seen(gpu, &rules, n, &b) == WINA_OK, "%s", wina_error());
        CHECK(a.n == b.n && b.n_calls == 2 * WINA_N_GROUPS);
        const double error = nmse(b.all, a.all, (int32_t)a.n);
        worst = error > worst ? error : worst;
    }
    CHECK(run_seen(gpu, &rules, 1, &b) == WINA_E_UNSUPPORTED &&
          strstr(wina_error(), "activations can be seen"));
    int32_t token = 5; /* and then goes on without */
    float *logits = calloc((size_t)spec.n_vocab, sizeof *logits);
    gpu->tapped = false;
    CHECK_MSG(step_token(gpu, token, 0, &rules, logits) == WINA_OK, "%s", wina_error());
    printf("  %-44s NMSE %.1e\n", what, worst);
    CHECK_MSG(worst < 1e-5, "%s: NMSE %g", what, worst);
    cpu->ops->free(cpu);
    gpu->ops->free(gpu);
    wina_cudalib_remove(m);
    free(a.all), free(b.all), free(logits);
}

#endif

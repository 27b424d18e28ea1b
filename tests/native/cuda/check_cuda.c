/* check_cuda: the CUDA backend against the CPU's, on random models of every tensor type: logits of
 * dense and sparse decoding, single projections against double precision through whole layers, and
 * the same bits from run to run. Needs a GPU; tools/gpu_check.sh runs it. */
#include "cpu/kernels.h"
#include "inputs.h"
#include "sampler.h"

/* CPU and GPU on the same random model: the logits of both, and that another run of the GPU gives
 * the same bits. */
static outcome run_both(const fake_spec *spec, const wina_sparsity *s, const char *what,
                        unsigned long long seed) {
    wina_model *m = fake_model(spec, seed);
    wina_backend *cpu = NULL, *gpu = NULL;
    int32_t tokens[N_TOKENS];
    for (int32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = (i * 37 + 11) % spec->n_vocab;
    const wina_rules rules = fake_rules(m, s->sparsity, s->method, s->mask);
    size_t n = (size_t)N_TOKENS * (size_t)spec->n_vocab;
    float *a = calloc(n, sizeof *a), *b = calloc(n, sizeof *b), *c = calloc(n, sizeof *c);
    outcome o = {1e9, 1e9, 1e9, 1e9, 0};
    CHECK_MSG(wina_cudalib_place(m, WINA_BACKEND_CUDA, -1) == WINA_OK, "%s", wina_error());
    if (!m->cuda)
        return o;
    CHECK(wina_cpu_backend_create(m, &SESSION, &cpu) == WINA_OK);
    CHECK_MSG(m->cuda_plugin->backend_create(m->cuda, &SESSION, &gpu) == WINA_OK, "%s",
              wina_error());
    CHECK(run(cpu, tokens, N_TOKENS, N_DENSE, &rules, true, a) == WINA_OK);
    CHECK_MSG(run(gpu, tokens, N_TOKENS, N_DENSE, &rules, true, b) == WINA_OK, "%s", wina_error());
    /* converted: 16 bits for as many, and no scales */
    const uint64_t other =
        is_converted(spec->dtype) ? 16 : wina_layout_bits(wina_layout_find(spec->dtype));
    const uint64_t bits = wina_layout_bits(wina_layout_find(spec->dtype));
    CHECK(cpu->counters.sparse_read * other == gpu->counters.sparse_read * bits);
    CHECK(cpu->counters.sparse_total * other == gpu->counters.sparse_total * bits);
    CHECK(cpu->counters.token_bytes == gpu->counters.token_bytes || other != bits);
    CHECK(run(gpu, tokens, N_TOKENS, N_DENSE, &rules, true, c) == WINA_OK);
    CHECK_MSG(memcmp(b, c, n * sizeof *b) == 0, "%s: another run, other bits", what);
    CHECK_MSG(run(gpu, tokens, N_TOKENS, N_DENSE, &rules, false, c) == WINA_OK, "%s", wina_error());
    CHECK(cpu->counters.sparse_read * other == gpu->counters.sparse_read * bits);
    o = compare(a, b, c, spec->n_vocab, s->sparsity > 0);
    cpu->ops->free(cpu);
    gpu->ops->free(gpu);
    wina_cudalib_remove(m);
    free(a), free(b), free(c);
    return o;
}

/* In sparse runs a near-tie at a threshold may fall either way, which changes the tokens from there
 * on; prompts are rounded to float16, so there it is common. So sparse runs get three models, one
 * of which must agree closely for most tokens, and all must agree roughly. */
static void check_one(const fake_spec *spec, const wina_sparsity *s, const char *what) {
    const bool sparse = s->sparsity > 0;
    if (is_left_out(what))
        return;
    double close = 1e9;
    /* weights rounded to float16 against the file's integers */
    const bool converted = is_converted(spec->dtype);
    const double most = converted ? 1e-5 : 2e-7;
    for (unsigned k = 0; k < (sparse ? 3 : 1) && close >= most; k++) {
        outcome o = run_both(spec, s, what, 7 + spec->dtype + 1000 * k);
        printf("  %-44s NMSE %.1e (worst %.1e), batch %.1e (%.1e), argmax %d/%d\n", what, o.close,
               o.worst, o.batch_close, o.batch_worst, o.same, N_TOKENS);
        close = o.close < close ? o.close : close;
        CHECK_MSG(o.worst < (!sparse ? most : converted ? 0.3 : 0.1), "%s: NMSE %g", what, o.worst);
        CHECK_MSG(o.batch_worst < (sparse      ? 0.5
                                   : converted ? 2e-5
                                               : 1e-5),
                  "%s: batch NMSE %g", what, o.batch_worst);
    }
    CHECK_MSG(close < most, "%s: NMSE %g", what, close);
}

/* Layers shared out: the first ones on the CPU, n_gpu on GPUs. */
static void check_chain(int32_t n_gpu, float sparsity) {
    const fake_spec spec = {WINA_DTYPE_Q8_0, 3,    256, 384, 4, 2, 64, 200, 64, true, true,
                            FAKE_PLAIN,      false};
    char what[80];
    snprintf(what, sizeof what, "chain, %d of 3 layers on GPUs, sparsity %g", n_gpu,
             (double)sparsity);
    if (is_left_out(what))
        return;
    wina_model *m = fake_model(&spec, 11);
    wina_backend *cpu = NULL, *chain = NULL;
    int32_t tokens[N_TOKENS];
    for (int32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = (i * 37 + 11) % spec.n_vocab;
    const wina_rules rules = fake_rules(m, sparsity, WINA_METHOD_WINA, WINA_MASK_GROUP);
    const size_t n = (size_t)N_TOKENS * (size_t)spec.n_vocab;
    float *a = calloc(n, sizeof *a), *b = calloc(n, sizeof *b), *c = calloc(n, sizeof *c);
    CHECK_MSG(wina_cudalib_place(m, WINA_BACKEND_CUDA, n_gpu) == WINA_OK, "%s", wina_error());
    CHECK(m->cuda_first == 3 - n_gpu);
    if (getenv("WINA_CUDA_FREE_MB") ? n_gpu == 3 : getenv("EMULATE_GPUS") && n_gpu > 1)
        CHECK(m->more_cuda[0] != NULL);
    CHECK(wina_cpu_backend_create(m, &SESSION, &cpu) == WINA_OK);
    wina_backend_params other = SESSION;
    other.cache_types[1] = WINA_CACHE_F32;
    CHECK(wina_chain_create(m, &other, &chain) == WINA_E_UNSUPPORTED &&
          strstr(wina_error(), "cache of values can only be f16 or q8_0"));
    CHECK_MSG(wina_chain_create(m, &SESSION, &chain) == WINA_OK, "%s", wina_error());
    CHECK(run(cpu, tokens, N_TOKENS, N_DENSE, &rules, true, a) == WINA_OK);
    CHECK_MSG(run(chain, tokens, N_TOKENS, N_DENSE, &rules, true, b) == WINA_OK, "%s",
              wina_error());
    CHECK(cpu->counters.sparse_read == chain->counters.sparse_read);
    CHECK(cpu->counters.sparse_total == chain->counters.sparse_total);
    CHECK_MSG(run(chain, tokens, N_TOKENS, N_DENSE, &rules, false, c) == WINA_OK, "%s",
              wina_error());
    CHECK(cpu->counters.sparse_read == chain->counters.sparse_read);
    const outcome o = compare(a, b, c, spec.n_vocab, sparsity > 0);
    printf("  %-44s NMSE %.1e (worst %.1e), batch %.1e (%.1e), argmax %d/%d\n", what, o.close,
           o.worst, o.batch_close, o.batch_worst, o.same, N_TOKENS);
    CHECK_MSG(o.close < 2e-7, "%s: NMSE %g", what, o.close);
    CHECK_MSG(o.batch_close < (sparsity > 0 ? 0.3 : 1e-5), "%s: NMSE %g", what, o.batch_close);
    cpu->ops->free(cpu);
    chain->ops->free(chain);
    wina_cudalib_remove(m);
    free(a), free(b), free(c);
}

/* A session on the CPU, and one with the last n_gpu layers on the GPU, -1: all. */
static bool create_both(wina_model *m, const wina_backend_params *p, int32_t n_gpu,
                        wina_backend **cpu, wina_backend **gpu) {
    CHECK_MSG(wina_cudalib_place(m, WINA_BACKEND_CUDA, n_gpu) == WINA_OK, "%s", wina_error());
    if (!m->cuda)
        return false;
    CHECK(wina_cpu_backend_create(m, p, cpu) == WINA_OK);
    CHECK_MSG(wina_chain_create(m, p, gpu) == WINA_OK, "%s", wina_error());
    return *cpu && *gpu;
}

/* ---- the cache ---------------------------------------------------------------------------- */

/* Tokens [pos, end) of `tokens` in batches; logits (end - pos, n_vocab). */
static int32_t run_on(wina_backend *b, const int32_t *tokens, int32_t pos, int32_t end,
                      int32_t batch, const wina_rules *rules, float *logits) {
    int32_t status = WINA_OK;
    for (int32_t n; pos < end && status == WINA_OK; pos += n) {
        n = end - pos < batch ? end - pos : batch;
        status = step_batch(b, tokens + pos, n, pos, n, rules, 0, logits);
        logits += (int64_t)n * b->model->config.n_vocab;
    }
    return status;
}

/* The rows that a cache of n_past positions holds, to or from memory that is large enough. */
static size_t move_rows(wina_backend *b, const wina_backend_params *p, int32_t n_past,
                        uint8_t *rows, bool to_cache) {
    const wina_config *c = &b->model->config;
    uint8_t *at = rows;
    for (int32_t layer = 0; layer < c->n_layer; layer++)
        for (int32_t head = 0; head < c->n_head_kv; head++)
            for (int v = 0; v < 2; v++) {
                const int32_t room = b->ops->cache_rows(b, layer),
                              n = n_past < room ? n_past : room;
                b->ops->copy_cache(b, layer, head, v, n_past - n, n, at, to_cache);
                at += (uint64_t)n * wina_cache_row_bytes(p->cache_types[v], c->head_dim);
            }
    CHECK_MSG(b->status == WINA_OK, "%s", wina_error());
    return (size_t)(at - rows);
}

static double worst_of(const float *a, const float *b, int32_t n, int32_t n_vocab) {
    double worst = 0;
    for (int32_t i = 0; i < n; i++) {
        const size_t at = (size_t)i * (size_t)n_vocab;
        const double error = nmse(b + at, a + at, n_vocab);
        worst = error > worst ? error : worst;
    }
    return worst;
}

enum {
    N_LONG = 44,
    N_MORE = 2
}; /* more tokens than a layer with a window has rows, and after them */

/* Keys and values of these types, over more tokens than layers with a window hold: one by one, in
 * batches, and after the rows were taken over from the CPU. */
static void check_cache(int32_t kind, int32_t width, int32_t keys, int32_t values, int32_t n_gpu) {
    const fake_spec spec = {WINA_DTYPE_F16, 2,     64,   96,   6, 2, width, 100, 64,
                            false,          false, kind, false};
    const wina_backend_params p = {
        .n_ctx = 64, .n_batch = 16, .n_threads = 2, .cache_types = {keys, values}};
    char what[80];
    snprintf(what, sizeof what, "cache of %s and %s, like %s, heads of %d%s",
             wina_cache_type_name(keys), wina_cache_type_name(values), FAKE_NAMES[kind], width,
             n_gpu == 1 ? ", in a chain" : "");
    if (is_left_out(what))
        return;
    wina_model *m = fake_model(&spec, 21);
    wina_backend *cpu = NULL, *gpu = NULL, *other = NULL;
    int32_t tokens[N_LONG + N_MORE];
    for (int32_t i = 0; i < N_LONG + N_MORE; i++)
        tokens[i] = (i * 37 + 11) % spec.n_vocab;
    const wina_rules rules = fake_rules(m, 0, WINA_METHOD_WINA, WINA_MASK_GROUP);
    const size_t n = (size_t)N_LONG * (size_t)spec.n_vocab;
    float *a = calloc(n, sizeof *a), *b = calloc(n, sizeof *b), *c = calloc(n, sizeof *c);
    const size_t most = 2 * 2 * 2 * N_LONG * (wina_cache_row_bytes(WINA_CACHE_F32, width));
    uint8_t *rows = calloc(1, most), *again = calloc(1, most);
    if (!create_both(m, &p, n_gpu, &cpu, &gpu))
        return;
    CHECK_MSG(wina_chain_create(m, &p, &other) == WINA_OK, "%s", wina_error());
    if (!other)
        return;
    CHECK(run_on(cpu, tokens, 0, N_LONG, 1, &rules, a) == WINA_OK);
    CHECK_MSG(run_on(gpu, tokens, 0, N_LONG, 1, &rules, b) == WINA_OK, "%s", wina_error());
    CHECK_MSG(run_on(other, tokens, 0, N_LONG, 16, &rules, c) == WINA_OK, "%s", wina_error());
    CHECK(gpu->ops->held_from(gpu) == cpu->ops->held_from(cpu));
    const double one = worst_of(a, b, N_LONG, spec.n_vocab);
    const double batch = worst_of(a, c, N_LONG, spec.n_vocab);
    /* The same rows, there and back, and what follows them. */
    const size_t n_bytes = move_rows(cpu, &p, N_LONG, rows, false);
    CHECK(n_bytes <= most && move_rows(other, &p, N_LONG, rows, true) == n_bytes);
    CHECK(move_rows(other, &p, N_LONG, again, false) == n_bytes && !memcmp(rows, again, n_bytes));
    other->ops->set_held_from(other, cpu->ops->held_from(cpu));
    CHECK(run_on(cpu, tokens, N_LONG, N_LONG + N_MORE, 1, &rules, a) == WINA_OK);
    CHECK_MSG(run_on(other, tokens, N_LONG, N_LONG + N_MORE, 1, &rules, c) == WINA_OK, "%s",
              wina_error());
    const double taken = worst_of(a, c, N_MORE, spec.n_vocab);
    printf("  %-60s NMSE %.1e, batches %.1e, taken over %.1e\n", what, one, batch, taken);
    const bool rounds =
        keys != WINA_CACHE_F16 || values != WINA_CACHE_F16; /* one step more or less */
    CHECK_MSG(one < (rounds ? 5e-4 : 2e-7), "%s: NMSE %g", what, one);
    CHECK_MSG(batch < 5e-4, "%s: batches: NMSE %g", what, batch);
    CHECK_MSG(taken < 1e-6, "%s: taken over: NMSE %g", what, taken);
    cpu->ops->free(cpu), gpu->ops->free(gpu), other->ops->free(other);
    wina_cudalib_remove(m);
    free(a), free(b), free(c), free(rows), free(again);
}

/* Tokens far from the start, where a sequence is cut into pieces and four heads share keys: after
 * rows that the CPU computed. */
static void check_deep(int32_t n_past, int32_t width, int32_t type) {
    const fake_spec spec = {WINA_DTYPE_F16, 1,     64,         96,   32, 8, width, 100, 64,
                            false,          false, FAKE_PLAIN, false};
    const wina_backend_params p = {
        .n_ctx = n_past + N_MORE, .n_batch = 64, .n_threads = 2, .cache_types = {type, type}};
    char what[80];
    snprintf(what, sizeof what, "after %d positions, heads of %d, cache of %s", n_past, width,
             wina_cache_type_name(type));
    if (is_left_out(what))
        return;
    wina_model *m = fake_model(&spec, 41);
    m->config.n_ctx_train = p.n_ctx;
    wina_backend *cpu = NULL, *gpu = NULL;
    int32_t *tokens = calloc((size_t)p.n_ctx, sizeof *tokens);
    for (int32_t i = 0; i < p.n_ctx; i++)
        tokens[i] = (i * 37 + i / 100 + 11) % spec.n_vocab;
    const wina_rules rules = fake_rules(m, 0, WINA_METHOD_WINA, WINA_MASK_GROUP);
    float *a = calloc((size_t)p.n_ctx * 100, sizeof *a), *b = calloc(N_MORE * 100, sizeof *b);
    uint8_t *rows = malloc((size_t)n_past * 2 * 8 * wina_cache_row_bytes(type, width));
    if (!create_both(m, &p, -1, &cpu, &gpu))
        return;
    CHECK(run_on(cpu, tokens, 0, n_past, 64, &rules, a) == WINA_OK);
    move_rows(cpu, &p, n_past, rows, false);
    move_rows(gpu, &p, n_past, rows, true);
    CHECK(run_on(cpu, tokens, n_past, p.n_ctx, 1, &rules, a) == WINA_OK);
    CHECK_MSG(run_on(gpu, tokens, n_past, p.n_ctx, 1, &rules, b) == WINA_OK, "%s", wina_error());
    const double error = worst_of(a, b, N_MORE, spec.n_vocab);
    printf("  %-60s NMSE %.1e\n", what, error);
    CHECK_MSG(error < (type == WINA_CACHE_F16 ? 2e-7 : 1e-5), "%s: NMSE %g", what, error);
    cpu->ops->free(cpu), gpu->ops->free(gpu);
    wina_cudalib_remove(m);
    free(a), free(b), free(rows), free(tokens);
}

/* ---- choosing tokens from the best that the device finds ---------------------------------- */

static int by_rank(const void *a, const void *b) {
    const wina_candidate *x = a, *y = b;
    return wina_candidates_is_worse(*x, *y) ? 1 : -1;
}

/* The best candidates and the logits that stayed on the GPU against logits that were copied. */
static void check_best(wina_backend *gpu, const float *copied) {
    const int32_t n_vocab = gpu->model->config.n_vocab;
    const int32_t most = n_vocab < WINA_MOST_BEST ? n_vocab : WINA_MOST_BEST;
    wina_candidate *all = calloc((size_t)n_vocab, sizeof *all);
    float *fetched = calloc((size_t)n_vocab, sizeof *fetched);
    const wina_best *found = gpu->ops->best(gpu);
    const wina_candidate *best = found->all;
    const int32_t n = found->n;
    int32_t n_other = 0;
    double weight = 0;
    for (int32_t i = 0; i < n_vocab; i++)
        weight += exp((double)copied[i] - (double)best[0].logit);
    CHECK_MSG(fabs(found->weight - weight) < 1e-10 * weight, "weight %g, not %g", found->weight,
              weight);
    for (int32_t i = 0; i < n_vocab; i++)
        all[i] = (wina_candidate){copied[i], i};
    qsort(all, (size_t)n_vocab, sizeof *all, by_rank);
    CHECK_MSG(n == most, "%d best of %d", n, n_vocab);
    for (int32_t i = 0; i < n && i < most; i++)
        n_other += best[i].token != all[i].token || best[i].logit != all[i].logit;
    CHECK_MSG(n_other == 0, "%d of the %d best are others", n_other, n);
    CHECK(gpu->late);
    gpu->ops->fetch_logits(gpu, fetched);
    CHECK(!gpu->late && memcmp(fetched, copied, (size_t)n_vocab * sizeof *copied) == 0);
    free(all), free(fetched);
}

static void run_late(wina_backend *gpu, int32_t token, int32_t pos, const wina_rules *rules,
                     float *logits) {
    CHECK_MSG(step_token(gpu, token, pos, rules, logits) == WINA_OK, "%s", wina_error());
    CHECK(gpu->late == !logits);
}

/* Ways to sample, and whether the best candidates are enough for most tokens. */
static const struct way {
    wina_sampler_params p;
    bool is_enough;
} WAYS[] = {
    {{.temperature = 0, .top_p = 1}, true},
    {{.temperature = 0, .top_p = 1, .repeat_penalty = 1.3f, .repeat_last_n = 64}, true},
    {{.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f}, true},
    {{.temperature = 1.5f, .top_k = 1, .top_p = 1}, true},
    {{.temperature = 3, .top_k = 100, .top_p = 1, .presence_penalty = 1, .repeat_last_n = -1},
     true},
    {{.temperature = 1, .top_k = 128, .top_p = 0.5f, .typical_p = 0.9f}, true},
    {{.temperature = 1, .top_k = 129, .top_p = 1}, false},
    {{.temperature = 1, .top_k = 0, .top_p = 0.9f}, false},
    {{.temperature = 1, .top_k = 0, .top_p = 0.004f}, true},
    {{.temperature = 1, .top_k = 0, .top_p = 1, .min_p = 0.9f}, true},
    {{.temperature = 1, .top_k = 20, .top_p = 1, .mirostat = 2, .mirostat_tau = 3}, false},
};

enum { N_DRAWN = 4 }; /* tokens for every way */

static wina_model *small_model(int32_t n_vocab) {
    const fake_spec spec = {WINA_DTYPE_F16, 1,  64,    96,    2,          1,    32,
                            n_vocab,        64, false, false, FAKE_PLAIN, false};
    return fake_model(&spec, 5);
}

/* Tokens drawn from the best candidates, against those drawn from all logits by the same seed. */
static void check_sampling(int32_t n_vocab, const char *what) {
    if (is_left_out(what))
        return;
    wina_model *m = small_model(n_vocab);
    wina_backend *gpu = NULL;
    const wina_rules rules = fake_rules(m, 0.25f, WINA_METHOD_WINA, WINA_MASK_GROUP);
    float *logits = calloc((size_t)n_vocab, sizeof *logits);
    CHECK_MSG(wina_cudalib_place(m, WINA_BACKEND_CUDA, -1) == WINA_OK, "%s", wina_error());
    CHECK_MSG(wina_chain_create(m, &SESSION, &gpu) == WINA_OK, "%s", wina_error());
    int32_t n_enough = 0, n_other = 0, n_all = 0;
    for (size_t w = 0; gpu && w < sizeof WAYS / sizeof WAYS[0]; w++) {
        wina_sampler *a = NULL, *b = NULL;
        wina_sampler_params p = WAYS[w].p; /* 0 where that is off or made so */
        p.seed = 17 + (int64_t)w;
        p.typical_p = p.typical_p > 0 ? p.typical_p : 1;
        p.repeat_penalty = p.repeat_penalty > 0 ? p.repeat_penalty : 1;
        p.dynatemp_exponent = 1;
        p.dry_allowed_length = 1;
        CHECK_MSG(wina_sampler_create(&p, &a) == WINA_OK, "%s", wina_error());
        CHECK(wina_sampler_create(&p, &b) == WINA_OK);
        int32_t token = 1 + (int32_t)w % n_vocab, enough = 0;
        for (int32_t i = 0; i < N_DRAWN; i++) {
            int32_t from_best = -1, from_all = -1;
            run_late(gpu, token, i, &rules, logits);
            run_late(gpu, token, i, &rules, NULL);
            const wina_best *best = gpu->ops->best(gpu);
            CHECK(wina_sampler_sample_best(a, best, n_vocab, &from_best) == WINA_OK);
            enough += from_best >= 0;
            check_best(gpu, logits);
            if (from_best < 0)
                CHECK(wina_sampler_sample(a, logits, n_vocab, &from_best) == WINA_OK);
            CHECK(wina_sampler_sample(b, logits, n_vocab, &from_all) == WINA_OK);
            n_other += from_best != from_all;
            token = from_all;
            wina_sampler_accept(a, token), wina_sampler_accept(b, token);
        }
        CHECK_MSG(!WAYS[w].is_enough || n_vocab <= 128 || enough == N_DRAWN, "way %zu: %d of %d", w,
                  enough, N_DRAWN);
        n_enough += enough, n_all += N_DRAWN;
        wina_sampler_free(a), wina_sampler_free(b);
    }
    printf("  %-44s %d of %d tokens from the best, %d others\n", what, n_enough, n_all, n_other);
    CHECK(n_other == 0);
    if (gpu)
        gpu->ops->free(gpu);
    wina_cudalib_remove(m);
    free(logits);
}

/* All logits are equal: the first tokens are the best, or the device does not tell. Then a weight
 * that is not finite. */
static void check_equal(int32_t n_vocab, const char *what) {
    if (is_left_out(what))
        return;
    wina_model *m = small_model(n_vocab);
    const wina_rules rules = fake_rules(m, 0, WINA_METHOD_WINA, WINA_MASK_GROUP);
    for (int broken = 0; broken < 2; broken++) {
        wina_backend *gpu = NULL;
        memset(m->weights.output.data, 0, m->weights.output.n_bytes);
        if (broken)
            memset(m->weights.output.data, 0x7d, 2); /* a NaN */
        CHECK_MSG(wina_cudalib_place(m, WINA_BACKEND_CUDA, -1) == WINA_OK, "%s", wina_error());
        CHECK_MSG(wina_chain_create(m, &SESSION, &gpu) == WINA_OK, "%s", wina_error());
        int32_t token = n_vocab - 1, n = 0, n_other = 0;
        const int32_t status = gpu ? step_token(gpu, token, 0, &rules, NULL) : WINA_E_DEVICE;
        CHECK_MSG(status == (broken ? WINA_E_NUMERIC : WINA_OK), "status %d", status);
        if (gpu && !broken) {
            const wina_candidate *best = gpu->ops->best(gpu)->all;
            n = gpu->ops->best(gpu)->n;
            CHECK(n == (n_vocab > 2048 ? 0 : n_vocab < WINA_MOST_BEST ? n_vocab : WINA_MOST_BEST));
            for (int32_t i = 0; i < n; i++)
                n_other += best[i].token != i || best[i].logit != 0;
            CHECK(n_other == 0);
        }
        if (gpu)
            gpu->ops->free(gpu);
        wina_cudalib_remove(m);
    }
    printf("  %s\n", what);
}

/* ---- for tools under which a token takes a minute ------------------------------------------- */

/* A dense token, a sparse one, and a prompt whose second half is sparse. */
static void check_small(const fake_spec *spec, int32_t cache_type, const char *what) {
    enum { N = 8 };
    const wina_backend_params p = {
        .n_ctx = 16, .n_batch = N, .n_threads = 1, .cache_types = {cache_type, cache_type}};
    int32_t tokens[N];
    if (is_left_out(what))
        return;
    wina_model *m = fake_model(spec, 31);
    const wina_rules rules = fake_rules(m, 0.5f, WINA_METHOD_WINA, WINA_MASK_GROUP);
    wina_backend *cpu = NULL, *gpu = NULL;
    const size_t n = (size_t)N * (size_t)spec->n_vocab;
    float *a = calloc(n, sizeof *a), *b = calloc(n, sizeof *b);
    for (int32_t i = 0; i < N; i++)
        tokens[i] = (i * 37 + 11) % spec->n_vocab;
    if (!create_both(m, &p, -1, &cpu, &gpu))
        return;
    CHECK(run(cpu, tokens, 2, 1, &rules, true, a) == WINA_OK);
    CHECK_MSG(run(gpu, tokens, 2, 1, &rules, true, b) == WINA_OK, "%s", wina_error());
    const double dense = nmse(b, a, spec->n_vocab);
    const double sparse = nmse(b + spec->n_vocab, a + spec->n_vocab, spec->n_vocab);
    CHECK(run(cpu, tokens, N, N / 2, &rules, false, a) == WINA_OK);
    CHECK_MSG(run(gpu, tokens, N, N / 2, &rules, false, b) == WINA_OK, "%s", wina_error());
    const double batch = worst_of(a, b, N / 2, spec->n_vocab);
    printf("  %-44s NMSE %.1e, sparse %.1e, prompt %.1e\n", what, dense, sparse, batch);
    const bool rounds = cache_type != WINA_CACHE_F16;
    CHECK_MSG(dense < (rounds ? 5e-4 : 2e-7), "%s: NMSE %g", what, dense);
    CHECK_MSG(sparse < 0.1, "%s: sparse: NMSE %g", what, sparse);
    CHECK_MSG(batch < (rounds ? 5e-4 : 1e-5), "%s: prompt: NMSE %g", what, batch);
    cpu->ops->free(cpu), gpu->ops->free(gpu);
    wina_cudalib_remove(m);
    free(a), free(b);
}

static void check_small_all(void) {
    char what[80];
    for (size_t t = 0; t < sizeof TYPES / sizeof TYPES[0]; t++) {
        const wina_dtype *d = wina_dtype_find(TYPES[t]);
        const int32_t width = d->block > 32 ? (int32_t)d->block : 32;
        const fake_spec spec = {TYPES[t], 1,  width, width, 1,          1,    width,
                                20,       16, false, false, FAKE_PLAIN, false};
        snprintf(what, sizeof what, "small %s", d->name);
        check_small(&spec, WINA_CACHE_F16, what);
    }
    for (int32_t kind = FAKE_PLAIN + 1; kind < FAKE_N_KINDS; kind++) {
        const fake_spec spec = {WINA_DTYPE_F16, 1,     32,   48,   8, 2, 8, 20, 16,
                                false,          false, kind, false};
        snprintf(what, sizeof what, "small like %s, cache of q8_0", FAKE_NAMES[kind]);
        check_small(&spec, WINA_CACHE_Q8_0, what);
    }
}

/* "small": one token dense, one sparse, one prompt of the least model of each type.
 * "quick": one layer shape per type, for tools that run a hundred times slower. */
int main(int argc, char **argv) {
    static const float SPARSITIES[] = {0, 0.5f, 0.65f, 0.9999f};
    const bool quick = argc > 1 && strcmp(argv[1], "quick") == 0;
    if (argc > 1 && strcmp(argv[1], "small") == 0) {
        check_small_all();
        check_equal(3, "small, equal logits");
        return check_report("check_cuda");
    }
    for (size_t t = 0; t < sizeof TYPES / sizeof TYPES[0]; t++) {
        fake_spec spec = {TYPES[t], 2,  512,        768,        8,          2,    64,
                          300,      64, t % 2 == 1, t % 2 == 1, FAKE_PLAIN, false};
        for (size_t k = quick ? 1 : 0; k < (quick ? 2 : 4); k++) {
            char what[80];
            wina_sparsity s = {.sparsity = SPARSITIES[k],
                               .method = t % 3 ? WINA_METHOD_WINA : WINA_METHOD_TEAL,
                               .mask = k == 2 ? WINA_MASK_PROJECTION : WINA_MASK_GROUP};
            snprintf(what, sizeof what, "%s, sparsity %g, %s", wina_dtype_find(TYPES[t])->name,
                     (double)s.sparsity, s.mask ? "projections" : "groups");
            check_one(&spec, &s, what);
        }
    }
    for (size_t t = 0; t < sizeof CONVERTED / sizeof CONVERTED[0]; t++)
        for (int k = 0; k < (t % 3 ? 1 : 2); k++) {
            const fake_spec spec = {CONVERTED[t], 1,  256,   256,   4,          2,    64,
                                    100,          64, t & 1, t & 1, FAKE_PLAIN, false};
            const wina_sparsity s = {.sparsity = k ? 0.5f : 0, .method = WINA_METHOD_WINA};
            char what[80];
            snprintf(what, sizeof what, "%s as floats, sparsity %g",
                     wina_dtype_find(CONVERTED[t])->name, (double)s.sparsity);
            check_one(&spec, &s, what);
        }
    for (size_t t = 0; t < sizeof TYPES / sizeof TYPES[0]; t++)
        check_rows(TYPES[t]);
    for (size_t t = 0; t < sizeof CONVERTED / sizeof CONVERTED[0]; t++)
        check_rows(CONVERTED[t]);
    for (int32_t n_gpu = 1; n_gpu <= 2; n_gpu++) {
        check_hidden(n_gpu == 1 ? FAKE_PLAIN : FAKE_GEMMA2, n_gpu);
        check_taps(n_gpu == 1 ? FAKE_PLAIN : FAKE_GEMMA2, n_gpu);
    }
    /* odd shapes: widths that are no multiple of a warp's rows, 3 heads, heads of 80, many inputs
     */
    static const fake_spec ODD[] = {
        {WINA_DTYPE_F16, 1, 36, 52, 3, 3, 12, 41, 64, false, false, FAKE_PLAIN, false},
        {WINA_DTYPE_F32, 1, 1, 1, 1, 1, 2, 3, 64, false, false, FAKE_PLAIN, false},
        {WINA_DTYPE_Q4_0, 1, 32, 64, 1, 1, 32, 20, 64, false, false, FAKE_PLAIN, false},
        {WINA_DTYPE_Q4_0, 2, 576, 1536, 9, 3, 64, 1000, 64, false, false, FAKE_PLAIN, false},
        {WINA_DTYPE_Q8_0, 1, 896, 4864, 14, 2, 64, 777, 64, true, true, FAKE_PLAIN, false},
        {WINA_DTYPE_Q4_0, 1, 320, 17408, 4, 4, 80, 128, 64, false, false, FAKE_PLAIN, false},
        {WINA_DTYPE_F16, 1, 512, 18944, 2, 1, 256, 128, 64, false, true, FAKE_PLAIN, false},
        {WINA_DTYPE_Q6_K, 1, 5120, 768, 40, 8, 128, 128, 64, false, false, FAKE_PLAIN, false},
        {WINA_DTYPE_F32, 1, 16, 24, 2, 1, 8, 300, 64, false, false, FAKE_PLAIN, false},
        {WINA_DTYPE_BF16, 1, 36, 300, 3, 3, 12, 41, 64, false, false, FAKE_PLAIN, false},
    };
    for (size_t t = 0; t < (quick ? 4 : sizeof ODD / sizeof ODD[0]); t++)
        for (int k = 0; k < 2; k++) {
            char what[80];
            wina_sparsity s = {.sparsity = k ? 0.5f : 0, .method = WINA_METHOD_WINA};
            snprintf(what, sizeof what, "%s %d x %d, sparsity %g",
                     wina_dtype_find(ODD[t].dtype)->name, ODD[t].n_embd, ODD[t].n_ff,
                     (double)s.sparsity);
            check_one(&ODD[t], &s, what);
        }
    for (int32_t kind = FAKE_PLAIN + 1; kind < FAKE_N_KINDS; kind++)
        for (int k = 0; k < 4; k++) {
            const int32_t width = k == 3 ? 256 : k == 2 ? 96 : 64;
            const fake_spec spec = {k & 1 ? WINA_DTYPE_F16 : WINA_DTYPE_Q8_0,
                                    2,
                                    256,
                                    384,
                                    6,
                                    2,
                                    width,
                                    200,
                                    64,
                                    false,
                                    false,
                                    kind,
                                    false};
            const wina_sparsity s = {.sparsity = k == 1 ? 0.5f : 0, .method = WINA_METHOD_WINA};
            char what[80];
            snprintf(what, sizeof what, "like %s, heads of %d, sparsity %g", FAKE_NAMES[kind],
                     width, (double)s.sparsity);
            check_one(&spec, &s, what);
        }
    for (int32_t n_gpu = 1; n_gpu <= 3; n_gpu++)
        for (int k = 0; k < 2; k++)
            check_chain(n_gpu, k ? 0.5f : 0.0f);
    check_cache(FAKE_GEMMA2, 80, WINA_CACHE_Q8_0, WINA_CACHE_F16, -1);
    for (int32_t keys = 0; keys < 2 && !quick; keys++) /* f16, q8_0 */
        for (int32_t values = 0; values < 2; values++) {
            check_cache(FAKE_PLAIN, 64, keys, values, -1);
            if (keys == values || keys == WINA_CACHE_F16)
                check_cache(FAKE_GEMMA2, 80, keys, values, -1);
        }
    for (int32_t type = 0; type < 2; type++)
        for (int32_t width = quick ? 256 : 64; width <= 256; width *= 2)
            for (int32_t n_past = 300; n_past <= (quick ? 300 : 2300); n_past += 2000)
                check_deep(n_past, width, type);
    for (int32_t type = 0; type < 2 && !quick; type++) {
        check_cache(FAKE_GEMMA3, 256, type, type, -1);
        check_cache(FAKE_QWEN3, 12, type, type, -1);
        check_cache(FAKE_GEMMA2, 128, type, type, 1);
    }
    static const int32_t VOCABULARIES[] = {3, 129, 1030, 20000};
    for (size_t i = 0; i < (quick ? 3 : 4); i++) {
        char what[80];
        snprintf(what, sizeof what, "sampling, vocabulary of %d", VOCABULARIES[i]);
        check_sampling(VOCABULARIES[i], what);
        snprintf(what, sizeof what, "equal logits, vocabulary of %d", VOCABULARIES[i]);
        check_equal(VOCABULARIES[i], what);
    }
    return check_report("check_cuda");
}

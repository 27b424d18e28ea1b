/* time_cuda: decode speed of a random 7.24B-parameter model that is made in memory. Not a test:
 * numbers for docs/gpu.md without writing and loading files of 15 GB.
 *
 *   time_cuda TYPE[,TYPE] SPARSITY[,SPARSITY] [DEPTH]
 *
 * Fails if the GPU's memory holds more than weights, cache and 5%. TIME_SAMPLED=1 adds tokens that
 * are drawn. WINA_CUDA_FREE_MB=9000 puts an F16 model on two GPUs.
 */
#include <stdlib.h>
#include <time.h>

#include "chain.h"
#include "cudalib.h"
#include "fake.h"
#include "sampler.h"
#include "step.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { N_GEN = 128, N_PROMPT = 512 };

static void stop_if_failed(int32_t status) {
    if (status == WINA_OK)
        return;
    printf("failed: %s\n", wina_error());
    exit(1);
}

static void time_one(wina_backend *b, float sparsity, int32_t depth, float *logits) {
    const wina_rules rules = fake_rules(b->model, sparsity, WINA_METHOD_WINA, WINA_MASK_GROUP);
    double best = 1e9, total = 0;
    for (int r = 0; r < 4; r++) {
        double start = now();
        for (int32_t i = 0; i < N_GEN; i++) {
            const int32_t token = (i * 7919 + 13) % b->model->config.n_vocab;
            stop_if_failed(step_token(b, token, depth + i, &rules, NULL));
        }
        double t = now() - start;
        best = t < best ? t : best;
        total += r ? t : 0;
    }
    b->ops->fetch_logits(b, logits);
    stop_if_failed(b->status);
    printf("%s sparsity %.2f depth %d: %.1f tok/s (best %.1f), %.3f ms/token, kept %.4f, "
           "%.3f GB/token, %.0f GB/s, logit0 %g\n",
           wina_dtype_name(b->model->weights.output.layout->dtype), (double)sparsity, depth,
           3 * N_GEN / total, N_GEN / best, total / 3 / N_GEN * 1e3,
           b->counters.sparse_total
               ? (double)b->counters.sparse_read / (double)b->counters.sparse_total
               : 1.0,
           (double)b->counters.token_bytes / 1e9,
           (double)b->counters.token_bytes / 1e9 * 3 * N_GEN / total, (double)logits[0]);
    fflush(stdout);
}

/* Tokens that are drawn, from the best that the device finds or from all logits: the same ones. */
static void time_sampled(wina_backend *b, float sparsity, int32_t depth, bool greedy) {
    const int32_t n_vocab = b->model->config.n_vocab;
    const wina_rules rules = fake_rules(b->model, sparsity, WINA_METHOD_WINA, WINA_MASK_GROUP);
    float *logits = malloc((size_t)n_vocab * sizeof *logits);
    static int32_t drawn[2][N_GEN];
    double tok_s[2];
    for (int copy = 0; copy < 2; copy++) {
        double total = 0;
        for (int r = 0; r < 3; r++) {
            wina_sampler_params p;
            wina_sampler *s = NULL;
            wina_sampler_params_init(&p);
            p.seed = 5;
            p.temperature = greedy ? 0 : p.temperature;
            stop_if_failed(wina_sampler_create(&p, &s));
            double start = now();
            int32_t token = 13;
            for (int32_t i = 0; i < N_GEN; i++) {
                stop_if_failed(step_token(b, token, depth + i, &rules, NULL));
                int32_t next = -1;
                if (!copy)
                    stop_if_failed(wina_sampler_sample_best(s, b->ops->best(b), n_vocab, &next));
                if (next < 0) {
                    b->ops->fetch_logits(b, logits);
                    stop_if_failed(b->status);
                    stop_if_failed(wina_sampler_sample(s, logits, n_vocab, &next));
                }
                wina_sampler_accept(s, next);
                drawn[copy][i] = token = next;
            }
            total += r ? now() - start : 0;
            wina_sampler_free(s);
        }
        tok_s[copy] = 2 * N_GEN / total;
    }
    printf("%s sparsity %.2f, %s: %.1f tok/s from the best, %.1f from all logits, tokens %s\n",
           wina_dtype_name(b->model->weights.output.layout->dtype), (double)sparsity,
           greedy ? "greedy" : "sampled", tok_s[0], tok_s[1],
           memcmp(drawn[0], drawn[1], sizeof drawn[0]) ? "DIFFER" : "equal");
    fflush(stdout);
    free(logits);
}

/* A prompt of N_PROMPT tokens in one batch. */
static void time_prompt(wina_backend *b, float *logits) {
    static int32_t tokens[N_PROMPT];
    const wina_rules rules = fake_rules(b->model, 0, WINA_METHOD_WINA, WINA_MASK_GROUP);
    double best = 1e9;
    for (int32_t i = 0; i < N_PROMPT; i++)
        tokens[i] = (i * 7919 + 13) % b->model->config.n_vocab;
    for (int r = 0; r < 3; r++) {
        double start = now();
        stop_if_failed(step_batch(b, tokens, N_PROMPT, 0, N_PROMPT, &rules, N_PROMPT - 1, logits));
        best = now() - start < best ? now() - start : best;
    }
    printf("%s prompt of %d: %.0f tok/s, %.1f ms\n",
           wina_dtype_name(b->model->weights.output.layout->dtype), N_PROMPT, N_PROMPT / best,
           best * 1e3);
    fflush(stdout);
}

/* Bytes of a panel's values and scales, without padding. */
static double exact_bytes(const wina_panel *p) {
    const double rows = p->n_rows, blocks = p->n_blocks;
    return rows * p->n_cols * (double)wina_layout_bits(p->layout) / 8 +
           rows * blocks * p->layout->scale_bytes +
           rows * ceil(blocks / 8) * p->layout->super_bytes;
}

static double exact_weights(const wina_model *m) {
    const wina_weights *w = &m->weights;
    double n = exact_bytes(&w->output);
    if (w->token_embd)
        n += (double)w->token_embd->row_bytes * (double)w->token_embd->ne[1];
    for (int32_t i = 0; i < w->n_layer; i++)
        for (int k = 0; k < WINA_N_GROUPS; k++)
            for (int32_t p = 0; p < w->layers[i].groups[k].n_panels; p++)
                n += exact_bytes(&w->layers[i].groups[k].panels[p]);
    return n;
}

static double free_mb(void) {
    uint64_t n = 0;
    stop_if_failed(wina_cudalib_free_bytes(&n));
    return (double)n / 1e6;
}

/* Memory that the GPUs say is in use, against the plan and against weights once and the cache. */
typedef struct memory {
    double start, model, session, all; /* MB free: before, and with one thing more each */
} memory;

static bool print_memory(const wina_model *m, const wina_backend_params *p, const memory *f) {
    wina_cudalib_plan_bytes plan;
    stop_if_failed(wina_cudalib_plan(m, p, &plan));
    const double cache = (double)plan.cache / 1e6, once = exact_weights(m) / 1e6;
    const double planned = (double)(plan.weights + plan.cache + plan.buffers) / 1e6;
    const double used = f->start - f->session, over = 100 * (used / (once + cache) - 1);
    printf(
        "%s: memory: %.0f MB of weights, a cache of %.0f MB for %d tokens; planned %.1f MB "
        "(weights %.1f, buffers %.1f), by the card %.1f MB (weights %.1f, session %.1f): %+.1f%% "
        "over weights and cache, %s; kernels, graphs and cuBLAS besides: %.1f MB\n",
        wina_dtype_name(m->weights.output.layout->dtype), once, cache, p->n_ctx, planned,
        (double)plan.weights / 1e6, (double)plan.buffers / 1e6, used, f->start - f->model,
        f->model - f->session, over, over <= 5 ? "at most 5" : "MORE THAN 5", f->session - f->all);
    /* the card gives memory in pieces of 2 MB */
    const double off = fabs(used - planned);
    printf("%s: memory: plan and card differ by %.1f MB\n",
           wina_dtype_name(m->weights.output.layout->dtype), off);
    return over <= 5 && off <= 0.05 * planned;
}

/* A session without cuBLAS, so that what it takes for itself is told apart. */
static void create_session(wina_model *m, const wina_backend_params *p, memory *f,
                           wina_backend **out) {
    const char *named = getenv("WINA_CUBLAS");
    char *before = named ? strdup(named) : NULL;
    f->model = free_mb();
    setenv("WINA_CUBLAS", "none", 1);
    stop_if_failed(wina_chain_create(m, p, out));
    f->session = free_mb();
    (*out)->ops->free(*out);
    if (before)
        setenv("WINA_CUBLAS", before, 1);
    else
        unsetenv("WINA_CUBLAS");
    free(before);
    stop_if_failed(wina_chain_create(m, p, out));
}

int main(int argc, char **argv) {
    static const uint32_t ALL[] = {
        WINA_DTYPE_F16,  WINA_DTYPE_BF16, WINA_DTYPE_Q8_0, WINA_DTYPE_Q4_0, WINA_DTYPE_Q4_1,
        WINA_DTYPE_Q5_0, WINA_DTYPE_Q5_1, WINA_DTYPE_Q4_K, WINA_DTYPE_Q5_K, WINA_DTYPE_Q6_K};
    const char *types = argc > 1 ? argv[1] : "F16,Q8_0,Q4_0";
    bool failed = false;
    const int32_t depth = argc > 3 ? atoi(argv[3]) : 0;
    for (size_t t = 0; t < sizeof ALL / sizeof ALL[0]; t++) {
        const char *name = wina_dtype_find(ALL[t])->name, *at = strstr(types, name);
        if (at && at > types && at[-1] != ',')
            at = NULL; /* "F16" is in "BF16" */
        if (!at || (at[strlen(name)] && at[strlen(name)] != ','))
            continue;
        fake_spec spec = {ALL[t],           32,    4096,  14336,      32,  8, 128, 32000,
                          depth + N_PROMPT, false, false, FAKE_PLAIN, true};
        double start = now();
        wina_model *m = fake_model(&spec, 3);
        double made = now();
        wina_backend *b = NULL;
        memory f = {.start = free_mb()};
        stop_if_failed(wina_cudalib_place(m, WINA_BACKEND_CUDA, -1));
        const char *cache = getenv("TIME_CACHE"); /* q8_0: keys and values of 8 bits */
        const int32_t cache_type = cache && !strcmp(cache, "q8_0") ? WINA_CACHE_Q8_0 : 0;
        const wina_backend_params session = {.n_ctx = depth + N_PROMPT,
                                             .n_batch = N_PROMPT,
                                             .n_threads = 1,
                                             .cache_types = {cache_type, cache_type}};
        create_session(m, &session, &f, &b);
        printf("%s: made in %.1f s, on the GPU in %.1f s%s%s\n", name, made - start, now() - made,
               *m->backend_note ? ", " : "", m->backend_note);
        float *logits = malloc((size_t)spec.n_vocab * sizeof *logits);
        if (!getenv("WINA_CUDA_PROFILE"))
            time_prompt(b, logits);
        const wina_rules rules = fake_rules(m, 0, WINA_METHOD_WINA, WINA_MASK_GROUP);
        stop_if_failed(step_token(b, 1, 0, &rules, NULL));
        f.all = free_mb();
        failed |= !print_memory(m, &session, &f) && !m->more_cuda[0]; /* buffers on each */
        double copy = 0;
        stop_if_failed(m->cuda_plugin->copy_speed(m->cuda, &copy));
        printf("%s: a copy reads and writes %.0f GB/s\n", name, copy / 1e9);
        char *list = strdup(argc > 2 ? argv[2] : "0,0.5,0.65");
        for (char *p = strtok(list, ","); p; p = strtok(NULL, ","))
            time_one(b, (float)atof(p), depth, logits);
        for (int greedy = 0; greedy < 2 && getenv("TIME_SAMPLED"); greedy++)
            time_sampled(b, 0.65f, depth, greedy);
        free(list);
        free(logits);
        b->ops->free(b);
        wina_cudalib_remove(m);
    }
    return failed;
}

/* time_cuda: decode speed of a random 7.24B-parameter model that is made in memory. Not a test:
 * numbers for docs/gpu.md without writing and loading files of 15 GB.
 *
 *   time_cuda TYPE[,TYPE] SPARSITY[,SPARSITY] [DEPTH] */
#include <stdlib.h>
#include <time.h>

#include "cudalib.h"
#include "fake.h"
#include "forward.h"

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { N_GEN = 128, N_PROMPT = 512 };

static void time_one(wina_backend *b, float sparsity, int32_t depth, float *logits) {
    const atomic_bool cancel = false;
    const wina_rules rules = fake_rules(b->model, sparsity, WINA_METHOD_WINA, WINA_MASK_GROUP);
    double best = 1e9, total = 0;
    for (int r = 0; r < 4; r++) {
        double start = now();
        for (int32_t i = 0; i < N_GEN; i++) {
            int32_t token = (i * 7919 + 13) % b->model->config.n_vocab;
            wina_forward f = {.tokens = &token,
                              .n_tokens = 1,
                              .pos = depth + i,
                              .rules = &rules,
                              .logits = logits,
                              .cancel = &cancel};
            if (wina_forward_run(b, &f) != WINA_OK) {
                printf("failed: %s\n", wina_error());
                exit(1);
            }
        }
        double t = now() - start;
        best = t < best ? t : best;
        total += r ? t : 0;
    }
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

/* A prompt of N_PROMPT tokens in one batch. */
static void time_prompt(wina_backend *b, float *logits) {
    const atomic_bool cancel = false;
    static int32_t tokens[N_PROMPT];
    const wina_rules rules = fake_rules(b->model, 0, WINA_METHOD_WINA, WINA_MASK_GROUP);
    double best = 1e9;
    for (int32_t i = 0; i < N_PROMPT; i++)
        tokens[i] = (i * 7919 + 13) % b->model->config.n_vocab;
    for (int r = 0; r < 3; r++) {
        wina_forward f = {.tokens = tokens,
                          .n_tokens = N_PROMPT,
                          .n_dense = N_PROMPT,
                          .rules = &rules,
                          .logits = logits,
                          .logits_from = N_PROMPT - 1,
                          .cancel = &cancel};
        double start = now();
        if (wina_forward_run(b, &f) != WINA_OK) {
            printf("failed: %s\n", wina_error());
            exit(1);
        }
        best = now() - start < best ? now() - start : best;
    }
    printf("%s prompt of %d: %.0f tok/s, %.1f ms\n",
           wina_dtype_name(b->model->weights.output.layout->dtype), N_PROMPT, N_PROMPT / best,
           best * 1e3);
    fflush(stdout);
}

int main(int argc, char **argv) {
    static const uint32_t ALL[] = {
        WINA_DTYPE_F16,  WINA_DTYPE_BF16, WINA_DTYPE_Q8_0, WINA_DTYPE_Q4_0, WINA_DTYPE_Q4_1,
        WINA_DTYPE_Q5_0, WINA_DTYPE_Q5_1, WINA_DTYPE_Q4_K, WINA_DTYPE_Q5_K, WINA_DTYPE_Q6_K};
    const char *types = argc > 1 ? argv[1] : "F16,Q8_0,Q4_0";
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
        if (wina_cudalib_place(m, WINA_BACKEND_CUDA, -1) != WINA_OK ||
            m->cuda_plugin->backend_create(m->cuda, depth + N_PROMPT, N_PROMPT, &b) != WINA_OK) {
            printf("failed: %s\n", wina_error());
            return 1;
        }
        printf("%s: made in %.1f s, on the GPU in %.1f s\n", name, made - start, now() - made);
        float *logits = malloc((size_t)spec.n_vocab * sizeof *logits);
        if (!getenv("WINA_CUDA_PROFILE"))
            time_prompt(b, logits);
        char *list = strdup(argc > 2 ? argv[2] : "0,0.5,0.65");
        for (char *p = strtok(list, ","); p; p = strtok(NULL, ","))
            time_one(b, (float)atof(p), depth, logits);
        free(list);
        free(logits);
        b->ops->free(b);
        wina_cudalib_remove(m);
    }
    return 0;
}

/* wina bench: prompt and decode speed. Token ids are fixed and pseudo-random; a repetition starts
 * from an empty context (or from --depth tokens); one unmeasured run warms up. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { MAX_SPARSITIES = 32 };

typedef struct bench {
    const cli_options *o;
    wina_session *session;
    const int32_t *tokens; /* enough of them */
    int32_t n_vocab;
    const char *backend;
    double copy_gb_s; /* of the GPU that all layers are on; 0: there is none */
    json *json;       /* NULL: a table */
} bench;

static bool parse_list(const char *text, float *out, int *n) {
    *n = 0;
    for (const char *p = text;; p++) {
        char *end;
        double v = strtod(p, &end);
        if (end == p || (*end && *end != ',') || !(v >= 0 && v < 1) || *n == MAX_SPARSITIES) {
            cli_fail("--sparsity: \"%s\" is not a list of at most %d numbers in [0, 1)", text,
                     MAX_SPARSITIES);
            return false;
        }
        out[(*n)++] = (float)v;
        if (!*end)
            return true;
        p = end;
    }
}

static uint64_t hash_logits(const bench *b) {
    const unsigned char *p = (const unsigned char *)wina_session_logits(b->session);
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; p && i < (size_t)b->n_vocab * sizeof(float); i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

/* One timed repetition; *seconds of the part that is measured. */
static int32_t repeat(const bench *b, bool decode, int32_t n, double *seconds) {
    int32_t depth = decode ? (int32_t)b->o->depth : 0;
    int32_t status = wina_session_truncate(b->session, 0);
    if (status == WINA_OK && depth > 0)
        status = wina_session_prefill(b->session, b->tokens, depth);
    wina_session_reset_stats(b->session);
    double start = cli_now();
    if (!decode && status == WINA_OK)
        status = wina_session_prefill(b->session, b->tokens, n);
    for (int32_t i = 0; decode && i < n && status == WINA_OK && !cli_interrupted(); i++)
        status = wina_session_decode(b->session, b->tokens[depth + i]);
    *seconds = cli_now() - start;
    return status;
}

static void print_row(const bench *b, const char *test, float sparsity, double mean, double sd) {
    wina_stats s;
    wina_session_get_stats(b->session, &s);
    if (s.n_decode == 0)
        s.bytes_per_token = NAN; /* a batch shares what it reads: null in the row of a prompt */
    double gb_s = s.bytes_per_token * mean / 1e9;
    char hash[17];
    snprintf(hash, sizeof hash, "%016" PRIx64, hash_logits(b));
    int32_t n_threads = wina_session_n_threads(b->session);
    if (!b->json) {
        char mb[16] = "-", gb[16] = "-", share[24] = "";
        if (s.n_decode) {
            snprintf(mb, sizeof mb, "%.1f", s.bytes_per_token / 1e6);
            snprintf(gb, sizeof gb, "%.2f", gb_s);
        }
        if (b->copy_gb_s > 0 && s.n_decode)
            snprintf(share, sizeof share, " %6.1f%% |", 100 * gb_s / b->copy_gb_s);
        else if (b->copy_gb_s > 0)
            snprintf(share, sizeof share, " %7s |", "-");
        printf("| %-8s | %8.2f | %6.3f | %7d | %8.2f ± %-6.2f | %8s | %6s |%s %s |\n", test,
               (double)sparsity, s.kept_fraction, n_threads, mean, sd, mb, gb, share, hash);
        fflush(stdout);
        return;
    }
    json_open(b->json, NULL, '{');
    json_text(b->json, "test", test);
    json_float(b->json, "sparsity", sparsity);
    json_number(b->json, "kept_fraction", s.kept_fraction);
    json_int(b->json, "n_threads", n_threads);
    json_number(b->json, "tok_s", mean);
    json_number(b->json, "tok_s_stddev", sd);
    json_number(b->json, "bytes_per_token", s.bytes_per_token);
    json_number(b->json, "gb_s", gb_s);
    if (b->copy_gb_s > 0) {
        json_number(b->json, "copy_gb_s", b->copy_gb_s);
        json_number(b->json, "copy_share", gb_s / b->copy_gb_s);
    }
    json_text(b->json, "logits_hash", hash);
    json_text(b->json, "backend", b->backend);
    cli_json_sparsity(b->json, &b->o->sparsity);
    json_int(b->json, "depth", b->o->depth);
    json_text(b->json, "cache_type_k", cli_choice_name(CLI_CACHE, b->o->cache_type_k));
    json_text(b->json, "cache_type_v", cli_choice_name(CLI_CACHE, b->o->cache_type_v));
    json_close(b->json, '}');
}

static int32_t measure(const bench *b, bool decode, int32_t n, float sparsity) {
    wina_sparsity s = b->o->sparsity;
    s.sparsity = sparsity;
    double seconds, sum = 0, squares = 0;
    int32_t status = wina_session_set_sparsity(b->session, &s);
    if (status == WINA_OK)
        status = repeat(b, decode, n, &seconds);
    int64_t r = b->o->repetitions;
    for (int64_t i = 0; i < r && status == WINA_OK && !cli_interrupted(); i++) {
        status = repeat(b, decode, n, &seconds);
        double rate = n / seconds;
        sum += rate;
        squares += rate * rate;
    }
    if (status != WINA_OK || cli_interrupted())
        return cli_interrupted() ? WINA_E_CANCELLED : status;
    double mean = sum / (double)r;
    double variance = r > 1 ? (squares - sum * mean) / (double)(r - 1) : 0;
    char test[32];
    snprintf(test, sizeof test, "%s%d", decode ? "tg" : "pp", n);
    print_row(b, test, sparsity, mean, variance > 0 ? sqrt(variance) : 0);
    return WINA_OK;
}

static int32_t measure_all(const bench *b, const float *sparsities, int n) {
    int32_t status = WINA_OK, n_prompt = (int32_t)b->o->n_prompt, n_gen = (int32_t)b->o->n_predict;
    const bool share = b->copy_gb_s > 0;
    if (!b->json && share)
        printf("A copy in the GPU's memory reads and writes %.0f GB/s.\n\n", b->copy_gb_s);
    if (!b->json)
        printf(
            "| test     | sparsity |   kept | threads |        tokens/s   | MB/token |   GB/s |%s "
            "logits hash      |\n"
            "|----------|---------:|-------:|--------:|------------------:|---------:|-------:|%s"
            "------------------|\n",
            share ? " of copy |" : "", share ? "--------:|" : "");
    for (int i = 0; i < n && status == WINA_OK; i++) {
        /* Prompts are dense by default: one row, at sparsity 0, says it all. */
        bool sparse = b->o->sparsity.prefill != 0;
        if (n_prompt > 0 && (i == 0 || sparse))
            status = measure(b, false, n_prompt, sparse ? sparsities[i] : 0);
        if (n_gen > 0 && status == WINA_OK)
            status = measure(b, true, n_gen, sparsities[i]);
    }
    return status;
}

int cli_bench(const cli_options *o) {
    float sparsities[MAX_SPARSITIES];
    int n;
    if (!parse_list(o->sparsities, sparsities, &n))
        return EXIT_INPUT;
    wina_model *model = NULL;
    wina_session_params sp = cli_session(o);
    int64_t need = o->depth + o->n_predict > o->n_prompt ? o->depth + o->n_predict : o->n_prompt;
    if (o->ctx && o->ctx < need)
        return cli_fail("--ctx-size: %lld is too small, the tests need %lld", (long long)o->ctx,
                        (long long)need);
    sp.n_ctx = (int32_t)(o->ctx ? o->ctx : need > 0 ? need : 1);
    wina_model_params mp;
    wina_model_params_init(&mp);
    mp.session = &sp;
    bench b = {.o = o};
    int32_t *tokens = NULL;
    int32_t status = cli_load(o, &mp, &model);
    if (status == WINA_OK)
        status = wina_session_create(model, &sp, &b.session);
    if (status == WINA_OK && !(tokens = malloc((size_t)(need + 1) * sizeof *tokens))) {
        wina_session_free(b.session);
        wina_model_free(model);
        return cli_no_memory("tokens");
    }
    wina_model_info info;
    if (status == WINA_OK) {
        wina_model_get_info(model, &info);
        b.backend = cli_backend_name(model);
        b.n_vocab = info.n_vocab;
        double speed = 0;
        if (strcmp(info.backend, "cuda") == 0 && wina_model_copy_speed(model, &speed) == WINA_OK)
            b.copy_gb_s = speed / 1e9;
        uint32_t state = 1;
        for (int64_t i = 0; i < need; i++) {
            state = state * 1664525u + 1013904223u;
            tokens[i] = (int32_t)((state >> 8) % (uint32_t)info.n_vocab);
        }
        b.tokens = tokens;
        cli_interrupt_session(b.session);
        json j = {.out = stdout};
        b.json = o->json ? &j : NULL;
        if (b.json)
            json_open(&j, NULL, '[');
        status = measure_all(&b, sparsities, n);
        if (b.json)
            json_close(&j, ']'), putchar('\n');
        cli_interrupt_session(NULL);
    }
    int code = status == WINA_OK ? 0 : cli_report(status);
    free(tokens);
    wina_session_free(b.session);
    wina_model_free(model);
    return code;
}

/* wina perplexity: windows of c tokens, each from an empty context; the second half of a window is
 * scored (token c/2 + 1 is the first that is predicted). With sparsity every token is sparse but
 * the first --dense-prefix of its window, and the dense model runs beside it for the KL divergence.
 */
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "cli.h"

enum { SLICE = 32 }; /* positions whose logits are held at once */

typedef struct scorer {
    const cli_options *o;
    wina_session *sparse, *dense; /* dense: NULL if no divergence is asked for */
    float *logits, *reference;    /* (SLICE, n_vocab) */
    int32_t n_vocab, n_ctx;
    double nll, nll_squares, kld;
    int64_t n_scored;
} scorer;

/* log(sum(exp(x))) of n logits. */
static double log_sum(const float *x, int32_t n) {
    float max = x[0];
    for (int32_t i = 1; i < n; i++)
        max = x[i] > max ? x[i] : max;
    double sum = 0;
    for (int32_t i = 0; i < n; i++)
        sum += exp((double)x[i] - (double)max);
    return log(sum) + (double)max;
}

static double divergence(const float *p, const float *q, int32_t n, double log_q) {
    double log_p = log_sum(p, n), kld = 0;
    for (int32_t i = 0; i < n; i++) {
        double a = (double)p[i] - log_p;
        kld += exp(a) * (a - ((double)q[i] - log_q));
    }
    return kld;
}

/* Evaluates tokens [begin, begin + n) of a window; logits may be NULL. */
static int32_t evaluate(wina_session *s, const int32_t *window, int32_t begin, int32_t n,
                        int32_t n_dense, float *logits) {
    wina_eval e = {.tokens = window + begin,
                   .n_tokens = n,
                   .n_dense = n_dense > begin ? n_dense - begin : 0,
                   .logits = logits};
    cli_interrupt_session(s);
    /* A SIGINT cancels the evaluation under way, or is seen before the next one. */
    return cli_interrupted() ? WINA_E_CANCELLED : wina_session_eval(s, &e);
}

static int32_t score_slice(scorer *s, const int32_t *window, int32_t begin, int32_t n) {
    int32_t status = evaluate(s->sparse, window, begin, n, (int32_t)s->o->dense_prefix, s->logits);
    if (status == WINA_OK && s->dense)
        status = evaluate(s->dense, window, begin, n, 0, s->reference);
    for (int32_t i = 0; i < n && status == WINA_OK && begin + i + 1 < s->n_ctx; i++) {
        const float *x = s->logits + (int64_t)i * s->n_vocab;
        double total = log_sum(x, s->n_vocab);
        double nll = total - (double)x[window[begin + i + 1]];
        s->nll += nll;
        s->nll_squares += nll * nll;
        s->n_scored++;
        if (s->dense)
            s->kld += divergence(s->reference + (int64_t)i * s->n_vocab, x, s->n_vocab, total);
    }
    return status;
}

static int32_t score_window(scorer *s, const int32_t *window) {
    const int32_t first = s->n_ctx / 2;
    int32_t status = wina_session_truncate(s->sparse, 0);
    if (status == WINA_OK && first > 0)
        status = evaluate(s->sparse, window, 0, first, (int32_t)s->o->dense_prefix, NULL);
    if (status == WINA_OK && s->dense) {
        status = wina_session_truncate(s->dense, 0);
        if (status == WINA_OK && first > 0)
            status = evaluate(s->dense, window, 0, first, 0, NULL);
    }
    for (int32_t begin = first; begin < s->n_ctx && status == WINA_OK; begin += SLICE) {
        int32_t n = s->n_ctx - begin < SLICE ? s->n_ctx - begin : SLICE;
        status = score_slice(s, window, begin, n);
    }
    return status;
}

static bool is_sparse(const cli_options *o) {
    return o->sparsity.sparsity > 0 && o->sparsity.method != WINA_METHOD_DENSE;
}

static void report(const scorer *s, const double *windows, int64_t n_windows) {
    double n = (double)s->n_scored, mean = s->nll / n, ppl = exp(mean);
    double variance = s->nll_squares / n - mean * mean;
    double error = n > 1 && variance > 0 ? ppl * sqrt(variance / (n - 1)) : 0;
    double kld = s->dense ? s->kld / n : is_sparse(s->o) ? NAN : 0;
    wina_stats stats;
    wina_session_get_stats(s->sparse, &stats);
    if (!s->o->json) {
        printf("perplexity %.4f +/- %.4f over %lld tokens in %lld windows, kept %.4f", ppl, error,
               (long long)s->n_scored, (long long)n_windows, stats.kept_fraction);
        if (s->dense)
            printf(", KL divergence %.5f", kld);
        putchar('\n');
        return;
    }
    json j = {.out = stdout};
    json_open(&j, NULL, '{');
    json_number(&j, "ppl", ppl);
    json_number(&j, "ppl_stderr", error);
    json_int(&j, "n_tokens", s->n_scored);
    json_number(&j, "kept_fraction", stats.kept_fraction);
    json_number(&j, "kld", kld);
    json_float(&j, "sparsity", s->o->sparsity.sparsity);
    cli_json_sparsity(&j, &s->o->sparsity);
    json_int(&j, "n_ctx", s->n_ctx);
    json_open(&j, "nll_per_window", '[');
    for (int64_t i = 0; i < n_windows; i++)
        json_number(&j, NULL, windows[i]);
    json_close(&j, ']');
    json_close(&j, '}');
    putchar('\n');
}

static void show_progress(int64_t done, int64_t n, double start) {
    if (!isatty(2))
        return;
    double left = (cli_now() - start) / (double)done * (double)(n - done);
    fprintf(stderr, "\rwindow %lld of %lld, %.0f s left ", (long long)done, (long long)n, left);
    if (done == n)
        fputc('\n', stderr);
}

static int score_text(scorer *s, const wina_model_info *info, int32_t *tokens, size_t n_tokens) {
    int64_t n_windows = (int64_t)n_tokens / s->n_ctx;
    if (n_windows < 1)
        return cli_fail("the text has %zu tokens, one window needs %d: use a longer text or a "
                        "smaller --ctx-size",
                        n_tokens, s->n_ctx);
    if (s->o->chunks && s->o->chunks < n_windows)
        n_windows = s->o->chunks;
    double *windows = malloc((size_t)n_windows * sizeof *windows);
    if (!windows)
        return cli_no_memory("windows");
    double start = cli_now();
    int32_t status = WINA_OK;
    int64_t n_done = 0;
    while (n_done < n_windows && status == WINA_OK) {
        int32_t *window = tokens + n_done * s->n_ctx;
        const scorer before = *s;
        if (info->add_bos)
            window[0] = info->bos_token;
        status = score_window(s, window);
        if (status != WINA_OK) {
            *s = before; /* whole windows only */
            break;
        }
        windows[n_done++] = (s->nll - before.nll) / (double)(s->n_scored - before.n_scored);
        show_progress(n_done, n_windows, start);
    }
    if (status == WINA_OK || (status == WINA_E_CANCELLED && n_done > 0))
        report(s, windows, n_done);
    free(windows);
    return status == WINA_OK ? 0 : cli_report(status);
}

static int32_t create_sessions(scorer *s, const wina_model *model) {
    wina_session_params p = cli_session(s->o);
    int32_t status = wina_session_create(model, &p, &s->sparse);
    if (status == WINA_OK && is_sparse(s->o) && !s->o->no_kld) {
        p.sparsity.method = WINA_METHOD_DENSE;
        status = wina_session_create(model, &p, &s->dense);
    }
    return status;
}

int cli_perplexity(const cli_options *o) {
    size_t n_bytes, n_tokens = 0;
    int code;
    char *text = cli_read_text(o, &n_bytes, &code);
    if (!text)
        return code;
    wina_model *model = NULL;
    scorer s = {.o = o, .n_ctx = (int32_t)o->ctx};
    int32_t *tokens = NULL;
    int32_t status = s.n_ctx < 4 ? WINA_E_ARGUMENT : cli_load(o, NULL, &model);
    if (s.n_ctx < 4)
        code = cli_fail("--ctx-size: %d is too small for a window", s.n_ctx);
    else if (status != WINA_OK || (status = create_sessions(&s, model)) != WINA_OK)
        code = cli_report(status);
    if (status == WINA_OK) {
        wina_model_info info;
        wina_model_get_info(model, &info);
        s.n_vocab = info.n_vocab;
        size_t n = (size_t)SLICE * (size_t)info.n_vocab;
        s.logits = malloc(n * sizeof *s.logits);
        s.reference = malloc(n * sizeof *s.reference);
        tokens = cli_tokens(model, text, n_bytes, WINA_TOKENIZE_ADD_SPECIAL, &n_tokens, &code);
        if (tokens && s.logits && s.reference)
            code = score_text(&s, &info, tokens, n_tokens);
        else if (tokens)
            code = cli_no_memory("logits");
        cli_interrupt_session(NULL);
    }
    free(tokens);
    free(s.logits);
    free(s.reference);
    wina_session_free(s.dense);
    wina_session_free(s.sparse);
    wina_model_free(model);
    free(text);
    return code;
}

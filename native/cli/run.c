/* wina run, wina tokenize: text to text, text to tokens. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { OUT_OF_MEMORY = -1 }; /* our own, and told already */

typedef struct generation {
    char *text;
    size_t n_bytes, capacity;
    int32_t *tokens;
    size_t n_tokens, token_capacity;
    int32_t finish;
} generation;

static bool append(generation *g, const wina_chunk *c) {
    if (g->n_bytes + c->n_bytes > g->capacity) {
        char *text = realloc(g->text, g->capacity = 2 * (g->n_bytes + c->n_bytes) + 256);
        if (!text)
            return false;
        g->text = text;
    }
    if (c->n_bytes > 0)
        memcpy(g->text + g->n_bytes, c->text, c->n_bytes);
    g->n_bytes += c->n_bytes;
    if (c->token < 0 || c->finish == WINA_FINISH_EOG)
        return true;
    if (g->n_tokens == g->token_capacity) {
        g->token_capacity = 2 * g->token_capacity + 64;
        int32_t *tokens = realloc(g->tokens, g->token_capacity * sizeof *tokens);
        if (!tokens)
            return false;
        g->tokens = tokens;
    }
    g->tokens[g->n_tokens++] = c->token;
    return true;
}

/* Runs the stream to its end, writing text as it comes unless the output is JSON. */
static int32_t generate(wina_stream *stream, const cli_options *o, generation *g) {
    wina_chunk chunk = {.finish = WINA_FINISH_NONE};
    int32_t status = WINA_OK;
    while (chunk.finish == WINA_FINISH_NONE && !cli_interrupted()) {
        status = wina_stream_next(stream, &chunk);
        if (status != WINA_OK)
            break;
        if (!append(g, &chunk)) {
            cli_no_memory("the text");
            return OUT_OF_MEMORY;
        }
        if (!o->json) {
            fwrite(chunk.text, 1, chunk.n_bytes, stdout);
            fflush(stdout);
        }
    }
    g->finish = chunk.finish;
    if (!o->json && (status == WINA_OK || g->n_bytes > 0))
        fputc('\n', stdout);
    return cli_interrupted() ? WINA_E_CANCELLED : status;
}

static const char *finish_name(int32_t finish) {
    switch (finish) {
    case WINA_FINISH_EOG:
        return "eog";
    case WINA_FINISH_STOP:
        return "stop";
    case WINA_FINISH_LENGTH:
        return "length";
    case WINA_FINISH_CONTEXT:
        return "context";
    default:
        return "interrupted";
    }
}

static double rate(int64_t n, double seconds) {
    return seconds > 0 ? (double)n / seconds : 0;
}

static void report(const cli_options *o, const wina_model *model, const generation *g,
                   wina_session *session, size_t n_prompt, double load_s, int64_t seed) {
    wina_stats s;
    wina_session_get_stats(session, &s);
    double prefill = rate(s.n_prefill, s.prefill_s), decode = rate(s.n_decode, s.decode_s);
    if (!o->json) {
        fprintf(stderr,
                "wina: prompt %zu tokens, %.1f tok/s; generated %zu tokens, %.1f tok/s; kept %.3f; "
                "%s\n",
                n_prompt, prefill, g->n_tokens, decode, s.kept_fraction, finish_name(g->finish));
        return;
    }
    json j = {.out = stdout};
    json_open(&j, NULL, '{');
    json_string(&j, "text", g->text ? g->text : "", g->n_bytes);
    json_open(&j, "tokens", '[');
    for (size_t i = 0; i < g->n_tokens; i++)
        json_int(&j, NULL, g->tokens[i]);
    json_close(&j, ']');
    json_int(&j, "prompt_tokens", (int64_t)n_prompt);
    json_number(&j, "kept_fraction", s.kept_fraction);
    json_text(&j, "finish_reason", finish_name(g->finish));
    json_open(&j, "timings", '{');
    json_number(&j, "load_s", load_s);
    json_number(&j, "prefill_tok_s", prefill);
    json_number(&j, "decode_tok_s", decode);
    json_close(&j, '}');
    json_int(&j, "seed", seed);
    json_float(&j, "sparsity", o->sparsity.sparsity);
    cli_json_sparsity(&j, &o->sparsity);
    json_text(&j, "backend", cli_backend_name(model));
    json_int(&j, "n_threads", wina_session_n_threads(session));
    json_close(&j, '}');
    putchar('\n');
}

/* A random seed, drawn here so that it can be told. */
static int64_t draw_seed(void) {
    wina_sampler *sampler = NULL;
    int64_t seed = 0;
    if (wina_sampler_create(NULL, &sampler) == WINA_OK)
        seed = wina_sampler_seed(sampler);
    wina_sampler_free(sampler);
    return seed;
}

static int run_prompt(const cli_options *o, const wina_model *model, const char *text,
                      size_t n_bytes, double load_s) {
    int code = 0;
    size_t n_tokens = 0;
    int32_t *tokens =
        cli_tokens(model, text, n_bytes, WINA_TOKENIZE_ADD_SPECIAL | WINA_TOKENIZE_PARSE_SPECIAL,
                   &n_tokens, &code);
    if (!tokens)
        return code;
    wina_session *session = NULL;
    wina_stream *stream = NULL;
    generation g = {0};
    const wina_session_params p = cli_session(o);
    wina_stream_params sp;
    wina_stream_params_init(&sp);
    sp.tokens = tokens;
    sp.n_tokens = (int32_t)n_tokens;
    sp.max_tokens = (int32_t)o->n_predict;
    sp.sampler = o->sampler;
    if (sp.sampler.seed < 0)
        sp.sampler.seed = draw_seed();
    sp.stop = o->stops;
    sp.n_stop = o->n_stops;
    sp.special = o->special;
    sp.ignore_eog = o->ignore_eog;
    int32_t status = wina_session_create(model, &p, &session);
    if (status == WINA_OK)
        status = wina_stream_create(session, &sp, &stream);
    if (status == WINA_OK) {
        char rule[256] = "";
        wina_model_describe_rule(model, &o->sparsity, rule, sizeof rule);
        const char *backend = cli_backend_name(model);
        fprintf(stderr, "wina: %s (%s), %d threads, context %d, sparsity %g\nwina: %s\n",
                strcmp(backend, "cuda") == 0 ? "gpu" : "cpu", backend,
                wina_session_n_threads(session), wina_session_n_ctx(session),
                (double)o->sparsity.sparsity, rule);
        cli_interrupt_session(session);
        status = generate(stream, o, &g);
        if (status == WINA_OK || status == WINA_E_CANCELLED)
            report(o, model, &g, session, n_tokens, load_s, sp.sampler.seed);
    }
    code = status == WINA_OK ? 0 : status == OUT_OF_MEMORY ? EXIT_RUN : cli_report(status);
    cli_interrupt_session(NULL);
    wina_stream_free(stream);
    wina_session_free(session);
    free(g.text);
    free(g.tokens);
    free(tokens);
    return code;
}

int cli_run(const cli_options *o) {
    size_t n_bytes;
    int code;
    char *text = cli_read_text(o, &n_bytes, &code);
    if (!text)
        return code;
    wina_model *model = NULL;
    double start = cli_now();
    if (n_bytes == 0) {
        code = cli_fail("the prompt is empty");
    } else {
        int32_t status = cli_load(o, NULL, &model);
        code = status == WINA_OK ? run_prompt(o, model, text, n_bytes, cli_now() - start)
                                 : cli_report(status);
    }
    wina_model_free(model);
    free(text);
    return code;
}

/* ---- tokenize ----------------------------------------------------------------------------- */

static void print_tokens(const cli_options *o, const wina_model *model, const int32_t *tokens,
                         size_t n) {
    json j = {.out = stdout};
    if (o->json) {
        json_open(&j, NULL, '{');
        json_open(&j, "tokens", '[');
        for (size_t i = 0; i < n; i++)
            json_int(&j, NULL, tokens[i]);
        json_close(&j, ']');
        json_close(&j, '}');
        putchar('\n');
        return;
    }
    for (size_t i = 0; i < n; i++) {
        char piece[4096]; /* the rest of a longer one is not shown */
        size_t n_bytes = 0;
        if (wina_detokenize(model, &tokens[i], 1, 1, piece, sizeof piece, &n_bytes) != WINA_OK)
            n_bytes = n_bytes > sizeof piece ? sizeof piece : 0;
        printf("%6d -> ", tokens[i]);
        json line = {.out = stdout};
        json_string(&line, NULL, piece, n_bytes);
        putchar('\n');
    }
}

int cli_tokenize(const cli_options *o) {
    size_t n_bytes, n_tokens = 0;
    int code;
    char *text = cli_read_text(o, &n_bytes, &code);
    if (!text)
        return code;
    wina_model *model = NULL;
    wina_model_params p;
    wina_model_params_init(&p);
    p.vocab_only = 1;
    int32_t status = cli_load(o, &p, &model);
    code = status == WINA_OK ? 0 : cli_report(status);
    if (status == WINA_OK) {
        int32_t flags = o->special ? WINA_TOKENIZE_PARSE_SPECIAL : WINA_TOKENIZE_PLAIN;
        int32_t *tokens = cli_tokens(model, text, n_bytes, flags, &n_tokens, &code);
        if (tokens)
            print_tokens(o, model, tokens, n_tokens);
        free(tokens);
    }
    wina_model_free(model);
    free(text);
    return code;
}

/* What the commands share: messages, loading, texts, tokens and SIGINT. The handler touches two
 * variables only: a flag, and the session whose evaluation it cancels. */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cli.h"

int cli_fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("wina: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return EXIT_INPUT;
}

int cli_no_memory(const char *what) {
    cli_fail("out of memory: %s", what);
    return EXIT_RUN;
}

int cli_report(int32_t status) {
    if (status == WINA_E_CANCELLED)
        return EXIT_INTERRUPTED;
    cli_fail("%s", wina_error());
    bool running = status == WINA_E_NUMERIC || status == WINA_E_MEMORY || status == WINA_E_STATE;
    return running ? EXIT_RUN : EXIT_INPUT;
}

double cli_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Names of a choice's values in the order of their numbers. */
static const char *const BACKENDS[] = {"auto", "cpu", "cuda", NULL};
static const char *const MASKS[] = {"group", "projection", NULL};
static const char *const BUDGETS[] = {"auto", "uniform", "profile", "calibrated", NULL};
static const char *const NORMS[] = {"auto", "l2", "calibrated", NULL};
static const char *const SELECTIONS[] = {"topk", "threshold", NULL};

const char *cli_choice_name(cli_choice choice, int32_t value) {
    static const char *const *const NAMES[] = {NULL, MASKS, BUDGETS, NORMS, SELECTIONS, BACKENDS};
    if (choice == CLI_METHOD)
        return wina_method_name(value);
    if (choice == CLI_CACHE)
        return wina_cache_type_name(value);
    for (int32_t i = 0; NAMES[choice][i]; i++)
        if (i == value)
            return NAMES[choice][i];
    return NULL;
}

void cli_json_sparsity(json *j, const wina_sparsity *s) {
    json_text(j, "method", cli_choice_name(CLI_METHOD, s->method));
    json_text(j, "mask", cli_choice_name(CLI_MASK, s->mask));
    json_text(j, "budget", cli_choice_name(CLI_BUDGET, s->budget));
    json_text(j, "norms", cli_choice_name(CLI_NORMS, s->norms));
    json_text(j, "select", cli_choice_name(CLI_SELECT, s->selection));
    if (s->exponent >= 0)
        json_float(j, "exponent", s->exponent);
}

const char *cli_backend_name(const wina_model *model) {
    wina_model_info info;
    wina_model_get_info(model, &info);
    return strcmp(info.backend, "cuda") == 0 ? "cuda" : wina_cpu_name();
}

void cli_print_clean(const char *text, int width) {
    int n = 0;
    for (const char *p = text; *p; p++) {
        putchar((unsigned char)*p < ' ' || *p == 0x7f ? ' ' : *p);
        n += ((unsigned char)*p & 0xc0) != 0x80;
    }
    for (; n < width; n++)
        putchar(' ');
}

static int32_t stop_load(float progress, void *user) {
    (void)progress, (void)user;
    return cli_interrupted();
}

wina_session_params cli_session(const cli_options *o) {
    wina_session_params p;
    wina_session_params_init(&p);
    p.n_ctx = (int32_t)o->ctx;
    p.n_threads = (int32_t)o->threads;
    p.n_batch = (int32_t)o->batch;
    p.sparsity = o->sparsity;
    p.cache_type_k = o->cache_type_k;
    p.cache_type_v = o->cache_type_v;
    return p;
}

int32_t cli_load(const cli_options *o, const wina_model_params *params, wina_model **model) {
    wina_model_params p;
    wina_model_params_init(&p);
    if (params)
        p = *params;
    p.n_threads = (int32_t)o->threads;
    p.progress = stop_load;
    p.backend = o->backend;
    p.n_gpu_layers = (int32_t)o->gpu_layers;
    p.no_mmap = o->no_mmap;
    p.mlock = o->mlock;
    const wina_session_params session = cli_session(o);
    p.mem_limit = o->mem_limit;
    p.resident = o->resident;
    p.session = p.session ? p.session : &session;
    double start = cli_now();
    int32_t status = wina_model_load(o->model, &p, model);
    if (status == WINA_OK && o->verbose) {
        wina_model_info info;
        wina_model_get_info(*model, &info);
        fprintf(stderr,
                "wina: %s: %s, %lld weights, %d layers, width %d, %d tokens; file %.1f MB, panels "
                "%.1f MB%s; loaded in %.3f s\n",
                o->model, info.architecture, (long long)info.n_params, info.n_layer, info.n_embd,
                info.n_vocab, (double)info.file_bytes / 1e6, (double)info.weight_bytes / 1e6,
                info.packed && !o->no_mmap ? " (mapped)" : "", cli_now() - start);
        wina_memory_plan plan = {0};
        wina_model_plan_memory(*model, p.session, &plan);
        if (info.device[0])
            fprintf(stderr,
                    "wina: %d layers: %s on %s; there weights %.1f MB, keys and values %.1f MB, "
                    "buffers %.1f MB; here weights %.1f MB\n",
                    info.n_layer, info.backend_note[0] ? info.backend_note : "all", info.device,
                    (double)plan.gpu_weight_bytes / 1e6, (double)plan.gpu_cache_bytes / 1e6,
                    (double)plan.gpu_buffer_bytes / 1e6, (double)plan.weight_bytes / 1e6);
        else if (info.backend_note[0])
            fprintf(stderr, "wina: on the CPU: %s\n", info.backend_note);
    }
    return status;
}

/* NULL if there is no memory or the stream cannot be read; *code says which. */
static char *read_stream(FILE *f, const char *name, size_t *n_bytes, int *code) {
    size_t n = 0, capacity = 1 << 16;
    char *text = malloc(capacity);
    while (text) {
        size_t got = fread(text + n, 1, capacity - n, f);
        n += got;
        if (got == 0)
            break;
        if (n == capacity) {
            char *more = realloc(text, capacity *= 2);
            if (!more)
                free(text);
            text = more;
        }
    }
    if (!text)
        *code = cli_no_memory(name);
    if (text && ferror(f)) {
        *code = cli_fail("cannot read %s: %s", name, strerror(errno));
        free(text);
        text = NULL;
    }
    *n_bytes = n;
    return text;
}

char *cli_read_text(const cli_options *o, size_t *n_bytes, int *code) {
    *code = EXIT_INPUT;
    if (o->prompt && o->file) {
        cli_fail("give either --prompt or --file");
        return NULL;
    }
    if (o->prompt) {
        *n_bytes = strlen(o->prompt);
        char *copy = malloc(*n_bytes + 1);
        if (copy)
            memcpy(copy, o->prompt, *n_bytes + 1);
        else
            *code = cli_no_memory("prompt");
        return copy;
    }
    if (!o->file) {
        cli_fail("a text is needed: --prompt TEXT or --file FILE");
        return NULL;
    }
    if (strcmp(o->file, "-") == 0)
        return read_stream(stdin, "standard input", n_bytes, code);
    FILE *f = fopen(o->file, "rb");
    if (!f) {
        cli_fail("cannot open %s: %s", o->file, strerror(errno));
        return NULL;
    }
    char *text = read_stream(f, o->file, n_bytes, code);
    fclose(f);
    return text;
}

int32_t *cli_tokens(const wina_model *model, const char *text, size_t n_bytes, int32_t flags,
                    size_t *n_tokens, int *code) {
    size_t capacity = n_bytes / 2 + 64;
    for (;;) {
        int32_t *tokens = malloc(capacity * sizeof *tokens);
        if (!tokens) {
            *code = cli_no_memory("tokens");
            return NULL;
        }
        int32_t status = wina_tokenize(model, text, n_bytes, flags, tokens, capacity, n_tokens);
        if (status == WINA_OK)
            return tokens;
        free(tokens);
        if (status != WINA_E_SPACE || *n_tokens <= capacity) {
            *code = cli_report(status);
            return NULL;
        }
        capacity = *n_tokens;
    }
}

static wina_session *volatile interruptible;
static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
    wina_session *session = interruptible;
    if (session)
        wina_session_cancel(session);
}

void cli_interrupt_session(wina_session *session) {
    interruptible = session;
}

void cli_catch_interrupt(void) {
    interrupted = 0;
    struct sigaction action = {.sa_handler = on_interrupt};
    action.sa_flags = (int)SA_RESETHAND; /* a second Ctrl-C ends the program */
    sigaction(SIGINT, &action, NULL);
}

bool cli_interrupted(void) {
    return interrupted != 0;
}

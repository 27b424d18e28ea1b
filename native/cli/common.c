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

int cli_report(int32_t status) {
    if (status == WINA_E_CANCELLED)
        return EXIT_INTERRUPTED;
    cli_fail("%s", wina_error());
    return status == WINA_E_NUMERIC || status == WINA_E_MEMORY ? EXIT_RUN : EXIT_INPUT;
}

double cli_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const char *cli_method_name(int32_t method) {
    return method == WINA_METHOD_DENSE ? "dense" : method == WINA_METHOD_TEAL ? "teal" : "wina";
}

const char *cli_mask_name(int32_t mask) {
    return mask == WINA_MASK_PROJECTION ? "projection" : "group";
}

static char *read_stream(FILE *f, const char *name, size_t *n_bytes) {
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
        cli_fail("out of memory: %s", name);
    if (text && ferror(f)) {
        cli_fail("cannot read %s: %s", name, strerror(errno));
        free(text);
        text = NULL;
    }
    *n_bytes = n;
    return text;
}

char *cli_read_text(const cli_options *o, size_t *n_bytes) {
    if (o->prompt && o->file) {
        cli_fail("give either --prompt or --file");
        return NULL;
    }
    if (o->prompt) {
        *n_bytes = strlen(o->prompt);
        char *copy = malloc(*n_bytes + 1);
        if (copy)
            memcpy(copy, o->prompt, *n_bytes + 1);
        return copy;
    }
    if (!o->file) {
        cli_fail("a text is needed: --prompt TEXT or --file FILE");
        return NULL;
    }
    if (strcmp(o->file, "-") == 0)
        return read_stream(stdin, "standard input", n_bytes);
    FILE *f = fopen(o->file, "rb");
    if (!f) {
        cli_fail("cannot open %s: %s", o->file, strerror(errno));
        return NULL;
    }
    char *text = read_stream(f, o->file, n_bytes);
    fclose(f);
    return text;
}

int32_t *cli_tokens(const wina_model *model, const char *text, size_t n_bytes, int32_t flags,
                    size_t *n_tokens, int *code) {
    size_t capacity = n_bytes / 2 + 64;
    for (;;) {
        int32_t *tokens = malloc(capacity * sizeof *tokens);
        if (!tokens) {
            *code = cli_fail("out of memory: tokens");
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

static wina_session *interruptible;
static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    interrupted = 1;
    if (interruptible)
        wina_session_cancel(interruptible);
}

void cli_catch_interrupt(wina_session *session) {
    interruptible = session;
    struct sigaction action = {.sa_handler = on_interrupt};
    action.sa_flags = (int)SA_RESETHAND; /* a second Ctrl-C ends the program */
    sigaction(SIGINT, &action, NULL);
}

bool cli_interrupted(void) {
    return interrupted != 0;
}

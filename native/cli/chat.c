/* wina chat: a conversation. The session keeps what was said; a turn evaluates only what is new.
 * Ctrl-C ends an answer, not the program. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "chatform.h"
#include "cli.h"

typedef struct chat {
    const cli_options *o;
    const chatform *form;
    wina_session *session;
    wina_sparsity sparsity;
    chatform_prompt said; /* all of the conversation; the session holds a beginning of it */
    const char *system;
    size_t n_system;
    bool terminal;
} chat;

static int32_t append_turn(chat *c, const char *text, size_t n) {
    return chatform_append_turn(&c->said, c->form, c->system, c->n_system, text, n);
}

static int32_t write_answer(chat *c, wina_stream *stream) {
    wina_chunk chunk = {.finish = WINA_FINISH_NONE};
    int32_t status = WINA_OK;
    while (chunk.finish == WINA_FINISH_NONE && status == WINA_OK && !cli_interrupted()) {
        status = wina_stream_next(stream, &chunk);
        if (status != WINA_OK)
            break;
        fwrite(chunk.text, 1, chunk.n_bytes, stdout);
        fflush(stdout);
        if (chunk.token >= 0 && chunk.finish != WINA_FINISH_EOG)
            status = chatform_append_token(&c->said, chunk.token);
    }
    putchar('\n');
    fflush(stdout);
    if (chunk.finish == WINA_FINISH_CONTEXT)
        fputs("wina: the context is full; /clear starts anew\n", stderr);
    return cli_interrupted() ? WINA_OK : status;
}

/* One turn. A message that does not fit is taken back. */
static int32_t answer(chat *c, const char *text, size_t n_bytes) {
    size_t before = c->said.n_tokens;
    wina_stream *stream = NULL;
    wina_stream_params p;
    int32_t status = append_turn(c, text, n_bytes);
    if (status != WINA_OK) {
        c->said.n_tokens = before;
        return status;
    }
    wina_stream_params_init(&p);
    p.tokens = c->said.tokens;
    p.n_tokens = (int32_t)c->said.n_tokens;
    p.n_held = wina_session_n_past(c->session);
    p.max_tokens = (int32_t)c->o->n_predict;
    p.sampler = c->o->sampler;
    p.stop = c->o->stops;
    p.n_stop = c->o->n_stops;
    p.special = c->o->special;
    p.ignore_eog = c->o->ignore_eog;
    status = wina_stream_create(c->session, &p, &stream);
    if (status == WINA_OK) {
        cli_interrupt_session(c->session);
        status = write_answer(c, stream);
        cli_interrupt_session(NULL);
    } else if (status == WINA_E_CONTEXT) {
        cli_fail("%s; /clear starts anew", wina_error());
        c->said.n_tokens = before;
        status = WINA_OK;
    }
    wina_stream_free(stream);
    cli_catch_interrupt();
    return status;
}

static void print_stats(const chat *c) {
    wina_stats s;
    wina_session_get_stats(c->session, &s);
    fprintf(stderr,
            "wina: %s; %d of %d tokens; prompts %.1f tok/s, answers %.1f tok/s; sparsity %g, kept "
            "%.3f\n",
            c->form->name, wina_session_n_past(c->session), wina_session_n_ctx(c->session),
            s.prefill_s > 0 ? (double)s.n_prefill / s.prefill_s : 0,
            s.decode_s > 0 ? (double)s.n_decode / s.decode_s : 0, (double)c->sparsity.sparsity,
            s.kept_fraction);
}

static void set_sparsity(chat *c, const char *text) {
    char *end;
    wina_sparsity s = c->sparsity;
    s.sparsity = strtof(text, &end);
    if (end == text || *end || !(s.sparsity >= 0 && s.sparsity < 1))
        cli_fail("/sparsity needs a number, 0 <= S < 1");
    else if (wina_session_set_sparsity(c->session, &s) == WINA_OK)
        c->sparsity = s;
    else
        cli_fail("%s", wina_error());
}

/* False: /exit. */
static bool obey(chat *c, const char *line) {
    if (strcmp(line, "/exit") == 0)
        return false;
    if (strcmp(line, "/clear") == 0) {
        wina_session_truncate(c->session, 0);
        c->said.n_tokens = 0;
    } else if (strcmp(line, "/stats") == 0) {
        print_stats(c);
    } else if (strncmp(line, "/sparsity ", 10) == 0) {
        set_sparsity(c, line + 10);
    } else {
        cli_fail("commands: /exit, /clear, /sparsity S, /stats");
    }
    return true;
}

static int converse(chat *c) {
    char *line = NULL;
    size_t capacity = 0;
    int32_t status = WINA_OK;
    if (c->o->prompt)
        status = answer(c, c->o->prompt, strlen(c->o->prompt));
    while (status == WINA_OK) {
        if (c->terminal)
            fputs("> ", stderr);
        errno = 0;
        ssize_t n = getline(&line, &capacity, stdin);
        if (n < 0 && errno == EINTR && c->terminal) {
            fputs("\nwina: /exit or Ctrl-D ends the program\n", stderr);
            clearerr(stdin);
            cli_catch_interrupt();
            continue;
        }
        if (n < 0)
            break;
        if (n > 0 && line[n - 1] == '\n')
            line[--n] = '\0';
        if (n == 0)
            continue;
        if (line[0] != '/')
            status = answer(c, line, (size_t)n);
        else if (!obey(c, line))
            break;
    }
    free(line);
    if (status == WINA_OK)
        return cli_interrupted() ? EXIT_INTERRUPTED : 0;
    return status == WINA_E_MEMORY ? cli_no_memory("the conversation") : cli_report(status);
}

/* The tokens of the first turn. */
static int show_prompt(chat *c) {
    const char *text = c->o->prompt ? c->o->prompt : "";
    if (append_turn(c, text, strlen(text)) != WINA_OK)
        return EXIT_RUN;
    json j = {.out = stdout};
    json_open(&j, NULL, '{');
    json_text(&j, "format", c->form->name);
    json_open(&j, "tokens", '[');
    for (size_t i = 0; i < c->said.n_tokens; i++)
        json_int(&j, NULL, c->said.tokens[i]);
    json_close(&j, ']');
    json_close(&j, '}');
    putchar('\n');
    return 0;
}

int cli_chat(const cli_options *o) {
    chat c = {.o = o, .sparsity = o->sparsity, .terminal = isatty(STDIN_FILENO)};
    wina_model *model = NULL;
    wina_model_params mp;
    wina_model_params_init(&mp);
    mp.vocab_only = o->show_prompt;
    int32_t status = cli_load(o, &mp, &model);
    if (status != WINA_OK)
        return cli_report(status);
    int code = EXIT_INPUT;
    c.said.model = model;
    c.form = chatform_find(model);
    c.system = o->system ? o->system : chatform_default_system(model, &c.n_system);
    if (o->system)
        c.n_system = strlen(o->system);
    const wina_session_params p = cli_session(o);
    if (c.form && o->show_prompt)
        code = show_prompt(&c);
    else if (c.form && (status = wina_session_create(model, &p, &c.session)) == WINA_OK)
        code = converse(&c);
    else if (c.form)
        code = cli_report(status);
    chatform_free(&c.said);
    wina_session_free(c.session);
    wina_model_free(model);
    return code;
}

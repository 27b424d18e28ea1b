/* cli: what the commands of the `wina` program share. Text goes to stdout, notes to stderr. A
 * command returns the exit code: 0 done, 1 failed while running, 2 bad input or usage, 130
 * interrupted. */
#ifndef WINA_CLI_H
#define WINA_CLI_H

#include <stdbool.h>
#include <stdio.h>

#include "wina.h"

enum { EXIT_RUN = 1, EXIT_INPUT = 2, EXIT_INTERRUPTED = 130 };

/* Everything that can be said on a command line, with its default. */
typedef struct cli_options {
    const char *model, *prompt, *file;
    const char *system; /* of chat */
    const char *output; /* of pack */
    int64_t n_predict;  /* -1: to the end */
    int64_t n_prompt;   /* of bench */
    int64_t ctx, threads, batch, repetitions, depth, chunks, dense_prefix;
    int64_t gpu_layers;                 /* -1: as many as fit */
    int32_t backend;                    /* wina_backend_kind */
    int64_t mem_limit;                  /* bytes; 0: none */
    int64_t resident;                   /* bytes; 0: off */
    int32_t cache_type_k, cache_type_v; /* wina_cache_type */
    wina_sampler_params sampler;
    wina_sparsity sparsity;
    const char *sparsities; /* list, of bench */
    const char **stops;
    int32_t n_stops;
    bool no_mmap, mlock, verify, dry_run;
    bool json, special, ignore_eog, no_kld, verbose, show_prompt;
} cli_options;

int cli_run(const cli_options *o);
int cli_chat(const cli_options *o);
int cli_tokenize(const cli_options *o);
int cli_inspect(const cli_options *o);
int cli_perplexity(const cli_options *o);
int cli_bench(const cli_options *o);
int cli_pack(const cli_options *o);

/* Prints "wina: " and the message; returns EXIT_INPUT. */
int cli_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Says that there is no memory for something; returns EXIT_RUN. */
int cli_no_memory(const char *what);
/* Reports wina_error() of a failed call; returns the exit code for its status. */
int cli_report(int32_t status);

/* Loads o->model, with its weights unless p says otherwise; SIGINT ends it with
 * WINA_E_CANCELLED. p: NULL or parameters without progress; without a session, the memory limit is
 * for cli_session. -v tells what was loaded. */
int32_t cli_load(const cli_options *o, const wina_model_params *p, wina_model **model);

/* The session that the options ask for. */
wina_session_params cli_session(const cli_options *o);

/* The prompt (-p) or the file (-f, "-" is stdin), owned by the caller. NULL after a message;
 * *code is the exit code. */
char *cli_read_text(const cli_options *o, size_t *n_bytes, int *code);
/* Tokens of a text, owned by the caller. NULL after a message; *code is the exit code. */
int32_t *cli_tokens(const wina_model *model, const char *text, size_t n_bytes, int32_t flags,
                    size_t *n_tokens, int *code);

/* Options whose values have names; the names of a choice are numbered from 0, NULL after the last.
 */
typedef enum cli_choice {
    CLI_METHOD,
    CLI_MASK,
    CLI_BUDGET,
    CLI_NORMS,
    CLI_SELECT,
    CLI_BACKEND,
    CLI_CACHE
} cli_choice;
const char *cli_choice_name(cli_choice choice, int32_t value);

/* What runs the model: "cuda", or the instruction set. */
const char *cli_backend_name(const wina_model *model);

double cli_now(void); /* seconds */

/* From cli_catch_interrupt on the first SIGINT is noted, and ends the evaluation under way in the
 * session told last (NULL: none); a second one ends the program. A further call forgets the first.
 */
void cli_catch_interrupt(void);
void cli_interrupt_session(wina_session *session);
bool cli_interrupted(void);

/* Prints text from a file with its control characters as spaces. */
void cli_print_clean(const char *text, int width);

/* json.c: values written as they come. key may be NULL (inside an array). */
typedef struct json {
    FILE *out;
    bool comma; /* the next value needs one before it */
} json;
/* The fields of a sparsity but its number. */
void cli_json_sparsity(json *j, const wina_sparsity *s);
void json_open(json *j, const char *key, char bracket);
void json_close(json *j, char bracket);
void json_string(json *j, const char *key, const char *text, size_t n_bytes);
void json_text(json *j, const char *key, const char *text);
void json_int(json *j, const char *key, int64_t value);
void json_number(json *j, const char *key, double value); /* null unless finite */
void json_float(json *j, const char *key, float value);   /* the same; as it was typed */

#endif

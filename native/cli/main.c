/* wina: the command line of libwina. The table below holds every option once: its spelling, kind,
 * range, the commands that know it and its help. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { RUN = 1, TOKENIZE = 2, INSPECT = 4, PERPLEXITY = 8, BENCH = 16, PACK = 32, CHAT = 64 };
enum { TALK = RUN | CHAT };
enum { SPARSE = TALK | PERPLEXITY | INSPECT, SESSION = TALK | PERPLEXITY | BENCH, ALL = 127 };
enum { RULES = SESSION | INSPECT };

/* CHOICE + a cli_choice: one of its names. */
typedef enum kind { FLAG, INTEGER, NUMBER, TEXT, STOP, SEED, LAYERS, SIZE, CHOICE } kind;

typedef struct option_row {
    const char *brief, *name, *argument;
    int kind;
    double low, high;
    size_t offset; /* in cli_options */
    int commands;
    const char *help;
} option_row;

#define AT(field) offsetof(cli_options, field)

static const option_row OPTIONS[] = {
    {"-m", "--model", "FILE", TEXT, 0, 0, AT(model), ALL, "GGUF file"},
    {"-p", "--prompt", "TEXT", TEXT, 0, 0, AT(prompt), TALK | TOKENIZE,
     "the text; chat: the first message"},
    {NULL, "--system", "TEXT", TEXT, 0, 0, AT(system), CHAT, "what the model is told first"},
    {NULL, "--show-prompt", NULL, FLAG, 0, 0, AT(show_prompt), CHAT,
     "tokens of the first message, and no answer"},
    {"-p", "--n-prompt", "N", INTEGER, 0, 1 << 20, AT(n_prompt), BENCH,
     "prompt tokens to time, 0: none (128)"},
    {"-f", "--file", "FILE", TEXT, 0, 0, AT(file), RUN | TOKENIZE | PERPLEXITY,
     "read the text from a file, - is standard input"},
    {"-n", "--n-predict", "N", INTEGER, -1, 1 << 24, AT(n_predict), TALK,
     "tokens to generate, -1: to the end (-1)"},
    {"-n", "--n-gen", "N", INTEGER, 0, 1 << 20, AT(n_predict), BENCH,
     "tokens to decode, 0: none (64)"},
    {"-c", "--ctx-size", "N", INTEGER, 1, 1 << 27, AT(ctx), SESSION | INSPECT,
     "context in tokens; perplexity: window (512)"},
    {"-t", "--threads", "N", INTEGER, 1, 512, AT(threads), SESSION | PACK | INSPECT,
     "threads (physical cores)"},
    {NULL, "--backend", "NAME", CHOICE + CLI_BACKEND, 0, 0, AT(backend), SESSION,
     "auto, cpu or cuda (auto)"},
    {"-ngl", "--gpu-layers", "N", LAYERS, 0, 1 << 20, AT(gpu_layers), SESSION,
     "layers on the GPU: a number, auto or all (auto)"},
    {"-ctk", "--cache-type-k", "TYPE", CHOICE + CLI_CACHE, 0, 0, AT(cache_type_k),
     SESSION | INSPECT, "how keys are kept: f16, q8_0 or f32 (f16)"},
    {"-ctv", "--cache-type-v", "TYPE", CHOICE + CLI_CACHE, 0, 0, AT(cache_type_v),
     SESSION | INSPECT, "how values are kept: f16, q8_0 or f32 (f16)"},
    {NULL, "--mem-limit", "SIZE", SIZE, 1, 0x1p62, AT(mem_limit), SESSION,
     "fail at once if more memory is needed: bytes, or with K, M or G (none)"},
    {NULL, "--resident", "SIZE", SIZE, 1, 0x1p62, AT(resident), SESSION | INSPECT,
     "of a packed file larger than the memory: bytes of its layers to keep there (all)"},
    {NULL, "--no-mmap", NULL, FLAG, 0, 0, AT(no_mmap), SESSION,
     "read a packed file into memory instead of mapping it"},
    {NULL, "--mlock", NULL, FLAG, 0, 0, AT(mlock), SESSION, "keep the weights in memory"},
    {"-o", "--output", "FILE", TEXT, 0, 0, AT(output), PACK, "the packed file to write"},
    {NULL, "--dry-run", NULL, FLAG, 0, 0, AT(dry_run), PACK, "say what would be written"},
    {NULL, "--verify", NULL, FLAG, 0, 0, AT(verify), INSPECT,
     "compare the checksums of a packed file"},
    {"-b", "--batch-size", "N", INTEGER, 1, 4096, AT(batch), SESSION | INSPECT,
     "prompt tokens evaluated together (128)"},
    {"-s", "--seed", "N", SEED, -1, 9007199254740992.0, AT(sampler.seed), TALK,
     "seed, -1: a random one (-1)"},
    {NULL, "--temp", "X", NUMBER, 0, 1e9, AT(sampler.temperature), TALK,
     "temperature, 0: greedy (0.8)"},
    {NULL, "--top-k", "N", INTEGER, -1, 1 << 24, AT(sampler.top_k), TALK,
     "keep the N likeliest tokens, 0: all (40)"},
    {NULL, "--top-p", "X", NUMBER, 0, 1, AT(sampler.top_p), TALK,
     "keep tokens up to this total probability (0.95)"},
    {NULL, "--min-p", "X", NUMBER, 0, 1, AT(sampler.min_p), TALK,
     "least probability relative to the likeliest (0.05)"},
    {NULL, "--repeat-last-n", "N", INTEGER, -1, 1 << 24, AT(sampler.repeat_last_n), TALK,
     "tokens that penalties look at, -1: all (64)"},
    {NULL, "--repeat-penalty", "X", NUMBER, 1e-6, 1e6, AT(sampler.repeat_penalty), TALK,
     "divides repeated tokens' logits, 1: off (1)"},
    {NULL, "--presence-penalty", "X", NUMBER, -1e6, 1e6, AT(sampler.presence_penalty), TALK,
     "lowers tokens that occurred (0)"},
    {NULL, "--frequency-penalty", "X", NUMBER, -1e6, 1e6, AT(sampler.frequency_penalty), TALK,
     "lowers tokens by how often they occurred (0)"},
    {NULL, "--stop", "TEXT", STOP, 0, 0, 0, TALK, "end before this text; may be repeated"},
    {NULL, "--sparsity", "S", NUMBER, 0, 1, AT(sparsity.sparsity), SPARSE,
     "share of the sparsified weights' bytes to skip, 0 <= S < 1 (0)"},
    {NULL, "--sparsity", "S,S", TEXT, 0, 0, AT(sparsities), BENCH, "sparsities to time (0)"},
    {NULL, "--method", "NAME", CHOICE + CLI_METHOD, 0, 0, AT(sparsity.method), RULES,
     "wina, teal, cats or dense (wina)"},
    {NULL, "--mask", "NAME", CHOICE + CLI_MASK, 0, 0, AT(sparsity.mask), RULES,
     "group or projection (group)"},
    {NULL, "--budget", "NAME", CHOICE + CLI_BUDGET, 0, 0, AT(sparsity.budget), RULES,
     "uniform, profile, calibrated or auto (auto)"},
    {NULL, "--norms", "NAME", CHOICE + CLI_NORMS, 0, 0, AT(sparsity.norms), RULES,
     "l2, calibrated or auto (auto)"},
    {NULL, "--exponent", "X", NUMBER, 0, 4, AT(sparsity.exponent), RULES,
     "of the norms (the best that is known)"},
    {NULL, "--select", "NAME", CHOICE + CLI_SELECT, 0, 0, AT(sparsity.selection), RULES,
     "topk, or calibrated threshold (topk)"},
    {NULL, "--sparse-prefill", NULL, FLAG, 0, 0, AT(sparsity.prefill), TALK | BENCH,
     "the prompt is sparse too"},
    {NULL, "--dense-prefix", "N", INTEGER, 0, 1 << 20, AT(dense_prefix), PERPLEXITY,
     "first tokens of a window that are dense (5)"},
    {NULL, "--chunks", "N", INTEGER, 1, 1 << 24, AT(chunks), PERPLEXITY, "windows to score (all)"},
    {NULL, "--no-kld", NULL, FLAG, 0, 0, AT(no_kld), PERPLEXITY,
     "leave out the divergence from the dense model"},
    {"-r", "--repetitions", "N", INTEGER, 1, 10000, AT(repetitions), BENCH, "repetitions (3)"},
    {"-d", "--depth", "N", INTEGER, 0, 1 << 24, AT(depth), BENCH,
     "tokens in the context before decoding (0)"},
    {NULL, "--special", NULL, FLAG, 0, 0, AT(special), TALK | TOKENIZE,
     "run: show control tokens; tokenize: recognise them"},
    {NULL, "--ignore-eos", NULL, FLAG, 0, 0, AT(ignore_eog), TALK, "go on after the answer's end"},
    {NULL, "--json", NULL, FLAG, 0, 0, AT(json), ALL, "machine-readable output"},
    {"-v", "--verbose", NULL, FLAG, 0, 0, AT(verbose), ALL, "more notes"},
};
enum { N_OPTIONS = sizeof OPTIONS / sizeof OPTIONS[0] };

typedef struct command {
    const char *name;
    int bit;
    int (*run)(const cli_options *o);
    const char *help;
} command;

static const command COMMANDS[] = {
    {"run", RUN, cli_run, "continue a prompt"},
    {"chat", CHAT, cli_chat, "talk with a model"},
    {"tokenize", TOKENIZE, cli_tokenize, "text to token ids"},
    {"inspect", INSPECT, cli_inspect, "metadata, tensors and memory of a file"},
    {"perplexity", PERPLEXITY, cli_perplexity, "how well a model predicts a text"},
    {"pack", PACK, cli_pack, "lay the weights out once, so that loading is mapping"},
    {"bench", BENCH, cli_bench, "time prompts and decoding"},
};
enum { N_COMMANDS = sizeof COMMANDS / sizeof COMMANDS[0] };

static void print_usage(FILE *out, const command *c) {
    if (!c) {
        fprintf(out, "usage: wina COMMAND -m FILE [options]\n\ncommands:\n");
        for (int i = 0; i < N_COMMANDS; i++)
            fprintf(out, "  %-12s %s\n", COMMANDS[i].name, COMMANDS[i].help);
        fprintf(out, "\nwina COMMAND --help lists a command's options; wina --version.\n");
        return;
    }
    fprintf(out, "usage: wina %s -m FILE [options]\n%s\n\n", c->name, c->help);
    for (int i = 0; i < N_OPTIONS; i++) {
        const option_row *o = &OPTIONS[i];
        char left[64];
        if (!(o->commands & c->bit))
            continue;
        snprintf(left, sizeof left, "%s%s%s %s", o->brief ? o->brief : "", o->brief ? ", " : "    ",
                 o->name, o->argument ? o->argument : "");
        fprintf(out, "  %-28s %s\n", left, o->help);
    }
}

/* ---- parsing ------------------------------------------------------------------------------ */

static bool parse_number(const option_row *row, const char *text, double *out) {
    char *end;
    bool whole = row->kind == INTEGER || row->kind == SEED || row->kind == LAYERS;
    /* Only these characters: strtod would take blanks, hexadecimal, "inf" and "nan" as well. */
    const char *allowed = whole ? "+-0123456789" : "+-.0123456789eE";
    *out = strtod(text, &end);
    if (end == text || text[strspn(text, allowed)] || *end || !isfinite(*out)) {
        cli_fail("%s: \"%s\" is not %s", row->name, text, whole ? "a whole number" : "a number");
        return false;
    }
    bool sparsity = row->offset == AT(sparsity.sparsity);
    if (*out < row->low || *out > row->high || (sparsity && *out >= 1)) {
        cli_fail("%s: %s is outside %.10g..%.16g%s", row->name, text, row->low, row->high,
                 sparsity ? " (1 excluded)" : "");
        return false;
    }
    return true;
}

/* 1500000, 800K, 512M, 1.5G: powers of 1024. */
static bool parse_size(const option_row *row, const char *text, int64_t *out) {
    char *end;
    const double number = strtod(text, &end);
    const char *units = "KMG", *unit = *end ? strchr(units, *end & ~0x20) : NULL;
    const double scale = unit ? (double)(1ll << (10 * (unit - units + 1))) : 1;
    const bool digits = end != text && strspn(text, "0123456789.") == (size_t)(end - text);
    if (!digits || (*end && (!unit || end[1])) || !(number * scale >= row->low) ||
        number * scale > row->high) {
        cli_fail("%s: \"%s\" is no size such as 800M or 1.5G", row->name, text);
        return false;
    }
    *out = (int64_t)(number * scale);
    return true;
}

static bool parse_name(const option_row *row, const char *text, int32_t *out) {
    const char *name;
    for (int32_t i = 0; (name = cli_choice_name((cli_choice)(row->kind - CHOICE), i)); i++)
        if (strcmp(text, name) == 0) {
            *out = i;
            return true;
        }
    cli_fail("%s: \"%s\" is not known (%s)", row->name, text, row->help);
    return false;
}

/* Fields are of the type that the offset says: sampler and sparsity fields are 32 bits wide. */
static bool is_int32(size_t offset) {
    return offset == AT(sampler.top_k) || offset == AT(sampler.repeat_last_n);
}

static bool set_option(const option_row *row, const char *text, cli_options *o) {
    char *field = (char *)o + row->offset;
    double number;
    switch (row->kind) {
    case FLAG:
        if (row->offset == AT(sparsity.prefill))
            o->sparsity.prefill = 1;
        else
            *(bool *)field = true;
        return true;
    case TEXT:
        *(const char **)field = text;
        return true;
    case STOP:
        if (!*text) {
            cli_fail("--stop: the text is empty");
            return false;
        }
        o->stops[o->n_stops++] = text;
        return true;
    case SIZE:
        return parse_size(row, text, (int64_t *)field);
    case LAYERS:
        if (strcmp(text, "auto") == 0 || strcmp(text, "all") == 0) {
            o->gpu_layers = -1;
            if (text[1] == 'l') /* all: or say why not */
                o->backend = WINA_BACKEND_CUDA;
            return true;
        }
        break;
    default:
        break;
    }
    if (row->kind >= CHOICE)
        return parse_name(row, text, (int32_t *)field);
    if (!parse_number(row, text, &number))
        return false;
    if (row->kind == NUMBER)
        *(float *)field = (float)number;
    else if (is_int32(row->offset))
        *(int32_t *)field = (int32_t)number;
    else
        *(int64_t *)field = (int64_t)number;
    return true;
}

static const option_row *find_option(const char *name, size_t n, int bit) {
    for (int i = 0; i < N_OPTIONS; i++) {
        const option_row *row = &OPTIONS[i];
        if ((row->commands & bit) &&
            ((strlen(row->name) == n && memcmp(row->name, name, n) == 0) ||
             (row->brief && strlen(row->brief) == n && memcmp(row->brief, name, n) == 0)))
            return row;
    }
    return NULL;
}

/* Returns -1 to go on, or an exit code. */
static int parse(int argc, char **argv, const command *c, cli_options *o) {
    for (int i = 2; i < argc; i++) {
        const char *arg = argv[i], *equals = strncmp(arg, "--", 2) == 0 ? strchr(arg, '=') : NULL;
        if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
            print_usage(stdout, c);
            return 0;
        }
        size_t n = equals ? (size_t)(equals - arg) : strlen(arg);
        const option_row *row = find_option(arg, n, c->bit);
        if (!row)
            return cli_fail("%s: unknown %s \"%.*s\"; see wina %s --help", c->name,
                            arg[0] == '-' ? "option" : "argument", (int)n, arg, c->name);
        const char *value = equals ? equals + 1 : NULL;
        if (row->kind == FLAG && value)
            return cli_fail("%s takes no value", row->name);
        if (row->kind != FLAG && !value) {
            if (++i == argc)
                return cli_fail("%s needs a value: %s", row->name, row->argument);
            value = argv[i];
        }
        if (!set_option(row, value, o))
            return EXIT_INPUT;
    }
    if (!o->model)
        return cli_fail("%s: a model is needed: -m FILE", c->name);
    return -1;
}

static void set_defaults(cli_options *o, int bit) {
    o->n_predict = bit == BENCH ? 64 : -1;
    o->n_prompt = 128;
    o->ctx = bit == PERPLEXITY ? 512 : 0;
    o->repetitions = 3;
    o->gpu_layers = -1;
    o->dense_prefix = 5;
    o->sparsities = "0";
    wina_sampler_params_init(&o->sampler);
    wina_sparsity_init(&o->sparsity);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        print_usage(stderr, NULL);
        return EXIT_INPUT;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_usage(stdout, NULL);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("wina %s\n", wina_version());
        return 0;
    }
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(argv[1], COMMANDS[i].name) != 0)
            continue;
        cli_options o = {0};
        set_defaults(&o, COMMANDS[i].bit);
        o.stops = calloc((size_t)argc, sizeof *o.stops);
        int code = o.stops ? parse(argc, argv, &COMMANDS[i], &o) : cli_no_memory("options");
        if (code < 0) {
            cli_catch_interrupt();
            code = COMMANDS[i].run(&o);
        }
        free(o.stops);
        if ((fflush(stdout) != 0 || ferror(stdout)) && code == 0) {
            cli_fail("cannot write the output");
            code = EXIT_RUN;
        }
        return code;
    }
    return cli_fail("unknown command \"%s\"; see wina --help", argv[1]);
}

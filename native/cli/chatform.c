/* Text is gathered until a control token comes and then tokenized as one piece, as the tokenizer
 * saw it in training. A marker that the vocabulary does not have as a control token, such as the
 * [INST] of llama-2, is text. */
#include "chatform.h"

#include <stdlib.h>
#include <string.h>

#include "cli.h"

#define CONTROL(text) "\1" text "\2"
#define BOS           "\3"
#define EOS           "\4"

/* The first row whose markers all occur is the one. */
static const chatform FORMS[] = {
    {.name = "phi-4",
     .markers = {"<|im_start|>", "<|im_sep|>"},
     .system = {CONTROL("<|im_start|>") "system" CONTROL("<|im_sep|>"), CONTROL("<|im_end|>")},
     .user = {CONTROL("<|im_start|>") "user" CONTROL("<|im_sep|>"),
              CONTROL("<|im_end|>") CONTROL("<|im_start|>") "assistant" CONTROL("<|im_sep|>")},
     .answered = CONTROL("<|im_end|>")},
    {.name = "chatml",
     .markers = {"<|im_start|>", "<|im_end|>"},
     .system = {CONTROL("<|im_start|>") "system\n", CONTROL("<|im_end|>") "\n"},
     .user = {CONTROL("<|im_start|>") "user\n",
              CONTROL("<|im_end|>") "\n" CONTROL("<|im_start|>") "assistant\n"},
     .answered = CONTROL("<|im_end|>") "\n"},
    {.name = "llama-3",
     .markers = {"<|start_header_id|>", "<|eot_id|>"},
     .begin = BOS,
     .system = {CONTROL("<|start_header_id|>") "system" CONTROL("<|end_header_id|>") "\n\n",
                CONTROL("<|eot_id|>")},
     .user = {CONTROL("<|start_header_id|>") "user" CONTROL("<|end_header_id|>") "\n\n",
              CONTROL("<|eot_id|>")
                  CONTROL("<|start_header_id|>") "assistant" CONTROL("<|end_header_id|>") "\n\n"},
     .answered = CONTROL("<|eot_id|>"),
     .trim = true},
    {.name = "gemma",
     .markers = {"<start_of_turn>", "<end_of_turn>"},
     .begin = BOS,
     .system = {"", "\n\n"},
     .user = {CONTROL("<start_of_turn>") "user\n",
              CONTROL("<end_of_turn>") "\n" CONTROL("<start_of_turn>") "model\n"},
     .answered = CONTROL("<end_of_turn>") "\n",
     .system_in_user = true,
     .trim = true},
    {.name = "granite",
     .markers = {"<|start_of_role|>", "<|end_of_role|>"},
     .system = {CONTROL("<|start_of_role|>") "system" CONTROL("<|end_of_role|>"),
                CONTROL("<|end_of_text|>") "\n"},
     .user = {CONTROL("<|start_of_role|>") "user" CONTROL("<|end_of_role|>"),
              CONTROL("<|end_of_text|>") "\n" CONTROL("<|start_of_role|>") "assistant" CONTROL(
                  "<|end_of_role|>")},
     .answered = CONTROL("<|end_of_text|>") "\n"},
    {.name = "phi-3",
     .markers = {"<|assistant|>", "<|end|>\\n"},
     .system = {CONTROL("<|system|>") "\n", CONTROL("<|end|>") "\n"},
     .user = {CONTROL("<|user|>") "\n", CONTROL("<|end|>") "\n" CONTROL("<|assistant|>") "\n"},
     .answered = CONTROL("<|end|>") "\n"},
    {.name = "phi-3",
     .markers = {"<|assistant|>", "<|end|>\n"},
     .system = {CONTROL("<|system|>") "\n", CONTROL("<|end|>") "\n"},
     .user = {CONTROL("<|user|>") "\n", CONTROL("<|end|>") "\n" CONTROL("<|assistant|>") "\n"},
     .answered = CONTROL("<|end|>") "\n"},
    {.name = "zephyr",
     .markers = {"<|user|>", "<|assistant|>", "eos_token"},
     .system = {CONTROL("<|system|>") "\n", EOS "\n"},
     .user = {CONTROL("<|user|>") "\n", EOS "\n" CONTROL("<|assistant|>") "\n"},
     .answered = EOS "\n"},
    {.name = "llama-2",
     .markers = {"[INST]", "<<SYS>>"},
     .system = {"<<SYS>>\n", "\n<</SYS>>\n\n"},
     .user = {BOS CONTROL("[INST]") " ", " " CONTROL("[/INST]")},
     .answered = " " EOS,
     .system_in_user = true,
     .trim = true},
    {.name = "mistral-v7",
     .markers = {"[INST]", "[SYSTEM_PROMPT]"},
     .begin = BOS,
     .system = {CONTROL("[SYSTEM_PROMPT]"), CONTROL("[/SYSTEM_PROMPT]")},
     .user = {CONTROL("[INST]"), CONTROL("[/INST]")},
     .answered = EOS},
    {.name = "mistral-v1",
     .markers = {"[INST] ", " [/INST]"},
     .begin = BOS,
     .system = {"", "\n\n"},
     .user = {CONTROL("[INST]") " ", " " CONTROL("[/INST]")},
     .answered = EOS,
     .system_in_user = true},
    {.name = "mistral-v3",
     .markers = {"[INST] ", "[/INST]"},
     .begin = BOS,
     .system = {"", "\n\n"},
     .user = {CONTROL("[INST]") " ", CONTROL("[/INST]")},
     .answered = EOS,
     .system_in_user = true},
    {.name = "mistral-tekken",
     .markers = {"[INST]", "[/INST]"},
     .begin = BOS,
     .system = {"", "\n\n"},
     .user = {CONTROL("[INST]"), CONTROL("[/INST]")},
     .answered = EOS,
     .system_in_user = true},
};
enum { N_FORMS = sizeof FORMS / sizeof FORMS[0] };

static const char *find_text(const char *text, size_t n_bytes, const char *wanted) {
    return memmem(text, n_bytes, wanted, strlen(wanted));
}

const chatform *chatform_find(const wina_model *model) {
    const char *text;
    size_t n_bytes;
    if (wina_model_get_meta_string(model, "tokenizer.chat_template", &text, &n_bytes) != WINA_OK) {
        cli_fail("the file has no chat template; wina run continues any text");
        return NULL;
    }
    for (int i = 0; i < N_FORMS; i++) {
        bool all = true;
        for (int k = 0; k < 3 && FORMS[i].markers[k]; k++)
            all = all && find_text(text, n_bytes, FORMS[i].markers[k]);
        if (all)
            return &FORMS[i];
    }
    cli_fail("the file's chat template is of no format known here; pywina chat runs any template");
    return NULL;
}

const char *chatform_default_system(const wina_model *model, size_t *n_bytes) {
    static const char START[] = "<|im_start|>system", END[] = "<|im_end|>";
    const char *text, *end;
    size_t n;
    *n_bytes = 0;
    if (wina_model_get_meta_string(model, "tokenizer.chat_template", &text, &n) != WINA_OK)
        return NULL;
    /* A literal from the marker of its start to that of its end, with no expression between. */
    for (end = text + n; (text = find_text(text, (size_t)(end - text), START));) {
        text += sizeof START - 1;
        size_t left = (size_t)(end - text);
        size_t newline = left > 0 && *text == '\n'                       ? 1
                         : left > 1 && text[0] == '\\' && text[1] == 'n' ? 2
                                                                         : 0;
        const char *stop = find_text(text, left, END);
        if (!newline || !stop)
            continue;
        text += newline;
        size_t n_literal = (size_t)(stop - text);
        bool literal = stop > text;
        for (size_t i = 0; i < n_literal; i++)
            literal = literal && !strchr("'\"{}\\", text[i]);
        if (literal) {
            *n_bytes = n_literal;
            return text;
        }
    }
    return NULL;
}

int32_t chatform_append_token(chatform_prompt *p, int32_t token) {
    if (p->n_tokens == p->capacity) {
        size_t capacity = 2 * p->capacity + 256;
        int32_t *tokens = realloc(p->tokens, capacity * sizeof *tokens);
        if (!tokens)
            return p->status = WINA_E_MEMORY;
        p->tokens = tokens;
        p->capacity = capacity;
    }
    p->tokens[p->n_tokens++] = token;
    return WINA_OK;
}

static void put_text(chatform_prompt *p, const char *text, size_t n_bytes) {
    if (n_bytes == 0)
        return;
    if (p->n_text + n_bytes > p->text_capacity) {
        size_t capacity = 2 * (p->n_text + n_bytes) + 256;
        char *more = realloc(p->text, capacity);
        if (!more) {
            p->status = WINA_E_MEMORY;
            return;
        }
        p->text = more;
        p->text_capacity = capacity;
    }
    memcpy(p->text + p->n_text, text, n_bytes);
    p->n_text += n_bytes;
}

/* The gathered text becomes tokens. */
static void flush_text(chatform_prompt *p) {
    size_t n = 0;
    int code;
    if (p->n_text == 0 || p->status != WINA_OK)
        return;
    int32_t *tokens = cli_tokens(p->model, p->text, p->n_text, WINA_TOKENIZE_PLAIN, &n, &code);
    if (!tokens)
        p->status = WINA_E_ARGUMENT;
    for (size_t i = 0; i < n && p->status == WINA_OK; i++)
        chatform_append_token(p, tokens[i]);
    free(tokens);
    p->n_text = 0;
}

static void put_control(chatform_prompt *p, const char *marker, size_t n_bytes) {
    int32_t token;
    size_t n = 0;
    if (wina_tokenize(p->model, marker, n_bytes, WINA_TOKENIZE_PARSE_SPECIAL, &token, 1, &n) !=
            WINA_OK ||
        n != 1 || !wina_token_is_special(p->model, token)) {
        put_text(p, marker, n_bytes);
        return;
    }
    flush_text(p);
    chatform_append_token(p, token);
}

/* A part of a format; NULL is an empty one. */
static void put_part(chatform_prompt *p, const char *part) {
    wina_model_info info;
    wina_model_get_info(p->model, &info);
    while (part && *part && p->status == WINA_OK) {
        size_t n = strcspn(part, "\1\3\4");
        put_text(p, part, n);
        part += n;
        if (*part == '\1') {
            n = strcspn(++part, "\2");
            put_control(p, part, n);
            part += n + 1;
        } else if (*part) {
            int32_t token = *part++ == '\3' ? info.bos_token : info.eos_token;
            flush_text(p);
            if (token >= 0)
                chatform_append_token(p, token);
        }
    }
}

static void put_message(chatform_prompt *p, const chatform *f, const char *text, size_t n) {
    static const char BLANKS[] = " \t\n\r\v\f";
    while (f->trim && n > 0 && memchr(BLANKS, text[0], sizeof BLANKS - 1))
        text++, n--;
    while (f->trim && n > 0 && memchr(BLANKS, text[n - 1], sizeof BLANKS - 1))
        n--;
    put_text(p, text, n);
}

int32_t chatform_append_turn(chatform_prompt *p, const chatform *f, const char *system,
                             size_t n_system, const char *user, size_t n_user) {
    bool first = p->n_tokens == 0, has_system = first && n_system > 0;
    p->status = WINA_OK;
    p->n_text = 0;
    put_part(p, first ? f->begin : f->answered);
    if (has_system && f->system_in_user)
        put_part(p, f->user[0]);
    if (has_system) {
        put_part(p, f->system[0]);
        put_message(p, f, system, n_system);
        put_part(p, f->system[1]);
    }
    if (!has_system || !f->system_in_user)
        put_part(p, f->user[0]);
    put_message(p, f, user, n_user);
    put_part(p, f->user[1]);
    flush_text(p);
    return p->status;
}

void chatform_free(chatform_prompt *p) {
    free(p->tokens);
    free(p->text);
}

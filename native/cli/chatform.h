/* chatform: the prompt tokens of a conversation, for the common chat formats. There is no jinja
 * here: a format is recognised by marker strings in the file's tokenizer.chat_template and then
 * written from a table. What a user types is always tokenized as plain text, so it never becomes a
 * control token. */
#ifndef WINA_CHATFORM_H
#define WINA_CHATFORM_H

#include <stdbool.h>

#include "wina.h"

/* The parts of a format. Control tokens stand in them between \1 and \2; \3 is BOS, \4 EOS. */
typedef struct chatform {
    const char *name;
    const char *markers[3]; /* all of them occur in the template */
    const char *begin;      /* once, before everything */
    const char *system[2];  /* before and after the system text */
    const char *user[2];    /* before and after what the user says; the answer follows */
    const char *answered;   /* after an answer */
    bool system_in_user;    /* the system text stands in the first message, after user[0] */
    bool trim;              /* messages without blanks around them */
} chatform;

typedef struct chatform_prompt {
    const wina_model *model;
    int32_t *tokens; /* (n_tokens), owned */
    size_t n_tokens, capacity;
    char *text; /* plain text that is not tokenized yet, owned */
    size_t n_text, text_capacity;
    int32_t status; /* of the first call that failed */
} chatform_prompt;

/* The format of the model's template. NULL after a message if it has none that is known. */
const chatform *chatform_find(const wina_model *model);

/* The system text that the template has for conversations without one; *n_bytes 0: none. */
const char *chatform_default_system(const wina_model *model, size_t *n_bytes);

/* Appends what stands before an answer: the start of a conversation if p is empty, else the end of
 * the answer before it; and the message. */
int32_t chatform_append_turn(chatform_prompt *p, const chatform *f, const char *system,
                             size_t n_system, const char *user, size_t n_user);
int32_t chatform_append_token(chatform_prompt *p, int32_t token);
void chatform_free(chatform_prompt *p);

#endif

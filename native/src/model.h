/* model: everything about a model that does not change while it runs. */
#ifndef WINA_MODEL_H
#define WINA_MODEL_H

#include "config.h"
#include "gguf.h"
#include "tokenizer.h"
#include "weights.h"
#include "wina.h"

struct wina_model {
    wina_gguf *gguf;
    wina_config config;
    wina_tokenizer *tokenizer; /* NULL with meta_only */
    wina_weights weights;      /* sizes only with meta_only; empty with vocab_only */
    bool has_plan;             /* config and weights were read */
};

#endif

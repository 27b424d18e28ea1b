/* tokenizer: text to token ids and back, from the vocabulary in a GGUF file. Two families share
 * this front: byte-level BPE (bpe.c; a pre-tokenizer per model name) and SentencePiece-style
 * unigram merges with byte fallback (spm.c). Special tokens are recognised in text only when the
 * caller asks: text typed by a user never becomes a control token. Immutable after creation. */
#ifndef WINA_TOKENIZER_H
#define WINA_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "gguf.h"

typedef struct wina_tokenizer wina_tokenizer;

/* Reads tokenizer.ggml.*; keeps pointers into the mapping, so gguf must outlive it. Unknown models
 * and pre-tokenizers are errors that name them. */
int32_t wina_tokenizer_create(const wina_gguf *gguf, wina_tokenizer **out);
void wina_tokenizer_free(wina_tokenizer *tokenizer); /* accepts NULL */

/* As wina_tokenize and wina_detokenize in wina.h. */
int32_t wina_tokenizer_encode(const wina_tokenizer *tokenizer, const char *text, size_t n_bytes,
                              int32_t flags, int32_t *tokens, size_t capacity, size_t *n_tokens);
int32_t wina_tokenizer_decode(const wina_tokenizer *tokenizer, const int32_t *tokens,
                              size_t n_tokens, int32_t special, char *text, size_t capacity,
                              size_t *n_bytes);

/* Bytes of one token as it appears in running text (control tokens: "" unless special). For SPM no
 * leading space is removed. Same capacity rules; at most 64 KiB. */
int32_t wina_tokenizer_piece(const wina_tokenizer *tokenizer, int32_t token, int32_t special,
                             char *text, size_t capacity, size_t *n_bytes);

int32_t wina_tokenizer_n_vocab(const wina_tokenizer *tokenizer);
int32_t wina_tokenizer_bos(const wina_tokenizer *tokenizer); /* -1 if none */
int32_t wina_tokenizer_eos(const wina_tokenizer *tokenizer); /* -1 if none */
int32_t wina_tokenizer_adds_bos(const wina_tokenizer *tokenizer);
int32_t wina_tokenizer_is_eog(const wina_tokenizer *tokenizer, int32_t token);
int32_t wina_tokenizer_is_special(const wina_tokenizer *tokenizer, int32_t token);

#endif

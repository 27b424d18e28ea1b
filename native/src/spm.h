/* spm: SentencePiece's BPE as GGUF stores it (tokenizer.ggml.model "llama"). Spaces are written as
 * U+2581; of all neighbours whose joined text is a token, those with the highest score are joined
 * first; a character that is no token becomes the byte tokens "<0x00>" to "<0xFF>". */
#ifndef WINA_SPM_H
#define WINA_SPM_H

#include <stddef.h>
#include <stdint.h>

#include "gguf.h"
#include "vocab.h"

typedef struct wina_spm wina_spm;

/* vocab must outlive it. */
int32_t wina_spm_create(const wina_gguf *gguf, const wina_vocab *vocab, wina_spm **out);
void wina_spm_free(wina_spm *spm); /* accepts NULL */

/* tokenizer.ggml.add_space_prefix, default true. */
bool wina_spm_adds_space(const wina_spm *spm);

/* Appends the tokens of text[0..n), which holds no special tokens; any bytes. prefix: as if a space
 * stood before the text. */
int32_t wina_spm_encode(const wina_spm *spm, const uint8_t *text, size_t n, bool prefix,
                        wina_vocab_sink *sink);

/* Bytes of a normal or byte token into out, which has room for its text: U+2581 is a space again.
 * Returns how many bytes. */
size_t wina_spm_decode(const wina_spm *spm, int32_t token, uint8_t *out);

#endif

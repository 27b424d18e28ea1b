/* bpe: byte-level BPE (tokenizer.ggml.model "gpt2"). Every byte has a printable stand-in character,
 * and the vocabulary is written in those; a pre-tokenizer cuts the text into words, and inside a
 * word the pair that comes first in tokenizer.ggml.merges is joined first. Text is not normalised
 * (Qwen's own tokenizer brings it to NFC first; GGUF has no key for that). */
#ifndef WINA_BPE_H
#define WINA_BPE_H

#include <stddef.h>
#include <stdint.h>

#include "gguf.h"
#include "vocab.h"

typedef struct wina_bpe wina_bpe;

/* vocab must outlive it. */
int32_t wina_bpe_create(const wina_gguf *gguf, const wina_vocab *vocab, wina_bpe **out);
void wina_bpe_free(wina_bpe *bpe); /* accepts NULL */

/* Whether the pre-tokenizer is one whose models start with BOS unless the file says otherwise. */
bool wina_bpe_adds_bos(const wina_bpe *bpe);

/* Appends the tokens of text[0..n), which holds no special tokens and is valid UTF-8. */
int32_t wina_bpe_encode(const wina_bpe *bpe, const uint8_t *text, size_t n, wina_vocab_sink *sink);

/* Bytes of a normal token: stand-in characters back to bytes, into out, which has room for text.n.
 * A text with a character that stands for no byte is written as it is. Returns how many bytes. */
size_t wina_bpe_decode(wina_str text, uint8_t *out);

#endif

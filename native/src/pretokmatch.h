/* pretokmatch: the stages of pre-tokenizers, each the hand-written form of one regular expression
 * that stands above its function in pretokmatch.c. */
#ifndef WINA_PRETOKMATCH_H
#define WINA_PRETOKMATCH_H

#include <stddef.h>
#include <stdint.h>

/* End of the match that starts at text[at], or at if there is none; at < end. text[at..end) is
 * valid UTF-8 (or, after a stage that cuts between bytes, a part of that), and nothing beyond end
 * is looked at. */
typedef size_t (*wina_pretok_stage)(const uint8_t *text, size_t at, size_t end);

/* Whole expressions of model families. */
size_t wina_pretokmatch_gpt2(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_llama3(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_qwen2(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_qwen35(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_seed(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_minicpm(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_gpt4o(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_tekken(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_deepseek3(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_bloom(const uint8_t *text, size_t at, size_t end);

/* Parts that families combine. */
size_t wina_pretokmatch_digit(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_digits3(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_newline(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_letters(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_punctuation(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_ideographs(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_cased(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_listed(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_trailing(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_kana(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_signs(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_byte_digits(const uint8_t *text, size_t at, size_t end);
size_t wina_pretokmatch_triple(const uint8_t *text, size_t at, size_t end);

#endif

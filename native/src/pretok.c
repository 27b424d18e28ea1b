/* pretok: the table of pre-tokenizers and the walk through their stages. The names, and which of
 * them share an expression, are llama.cpp's; the expressions are those of the models' own
 * tokenizer.json files, which for falcon, deepseek-llm, tekken and gpt-4o cut a little differently
 * from llama.cpp's. */
#include "pretok.h"

#include <string.h>

#include "status.h"
#include "unicode.h"

#define GPT2                                                                                       \
    { wina_pretokmatch_gpt2 }
#define STARCODER                                                                                  \
    { wina_pretokmatch_digit, wina_pretokmatch_gpt2 }
#define LLAMA3                                                                                     \
    { wina_pretokmatch_llama3 }
#define QWEN2                                                                                      \
    { wina_pretokmatch_qwen2 }
#define GPT4O                                                                                      \
    { wina_pretokmatch_gpt4o }
#define BLOOM                                                                                      \
    { wina_pretokmatch_bloom }
#define DEEPSEEK3                                                                                  \
    { wina_pretokmatch_digits3, wina_pretokmatch_kana, wina_pretokmatch_deepseek3 }
#define MERGES      false
#define WHOLE_WORDS true
#define NO_BOS      false
#define BOS         true

static const wina_pretok rows[] = {
    {"gpt-2", MERGES, NO_BOS, GPT2},
    {"phi-2", MERGES, NO_BOS, GPT2},
    {"mpt", MERGES, NO_BOS, GPT2},
    {"olmo", MERGES, NO_BOS, GPT2},
    {"jais", MERGES, NO_BOS, GPT2},
    {"trillion", MERGES, NO_BOS, GPT2},
    {"granite-docling", MERGES, NO_BOS, GPT2},
    {"gigachat", MERGES, NO_BOS, GPT2},
    {"exaone4", MERGES, NO_BOS, GPT2},
    {"a.x-4.0", MERGES, NO_BOS, GPT2},
    {"mellum", MERGES, NO_BOS, GPT2},
    {"smollm", MERGES, NO_BOS, STARCODER},
    {"starcoder", MERGES, NO_BOS, STARCODER},
    {"refact", MERGES, NO_BOS, STARCODER}, /* and granite */
    {"command-r", MERGES, NO_BOS, STARCODER},
    {"codeshell", MERGES, NO_BOS, STARCODER},
    {"exaone", MERGES, NO_BOS, STARCODER},
    {"minerva-7b", MERGES, NO_BOS, STARCODER},
    {"mellum2", MERGES, NO_BOS, STARCODER},
    {"llama-bpe", WHOLE_WORDS, BOS, LLAMA3},
    {"llama3", WHOLE_WORDS, BOS, LLAMA3},
    {"llama-v3", WHOLE_WORDS, BOS, LLAMA3},
    {"falcon3", WHOLE_WORDS, BOS, LLAMA3},
    {"falcon-h1", WHOLE_WORDS, BOS, LLAMA3},
    {"pixtral", WHOLE_WORDS, BOS, LLAMA3},
    {"midm-2.0", WHOLE_WORDS, BOS, LLAMA3},
    {"lfm2", WHOLE_WORDS, BOS, LLAMA3},
    {"dbrx", MERGES, NO_BOS, LLAMA3}, /* cl100k: phi-4, olmo2, granite 4 */
    {"smaug-bpe", MERGES, NO_BOS, LLAMA3},
    {"glm4", MERGES, NO_BOS, LLAMA3},
    {"chatglm-bpe", MERGES, NO_BOS, LLAMA3},
    {"qwen2", MERGES, NO_BOS, QWEN2},
    {"stablelm2", MERGES, NO_BOS, QWEN2},
    {"megrez", MERGES, NO_BOS, QWEN2},
    {"hunyuan", MERGES, NO_BOS, QWEN2},
    {"solar-open", MERGES, NO_BOS, QWEN2},
    {"deepseek-r1-qwen", MERGES, NO_BOS, QWEN2},
    {"kormo", MERGES, NO_BOS, QWEN2},
    {"grok-2", MERGES, NO_BOS, QWEN2},
    {"bailingmoe", MERGES, NO_BOS, QWEN2},
    {"bailingmoe2", MERGES, NO_BOS, QWEN2},
    {"llada-moe", MERGES, NO_BOS, QWEN2},
    {"qwen35", MERGES, NO_BOS, {wina_pretokmatch_qwen35}},
    {"seed-coder", MERGES, NO_BOS, {wina_pretokmatch_seed}},
    {"minicpm5", WHOLE_WORDS, NO_BOS, {wina_pretokmatch_digits3, wina_pretokmatch_minicpm}},
    {"gpt-4o", MERGES, NO_BOS, GPT4O}, /* o200k: phi-4-mini, gpt-oss */
    {"llama4", MERGES, NO_BOS, GPT4O},
    {"kanana2", MERGES, NO_BOS, GPT4O},
    {"minimax-m2", MERGES, NO_BOS, GPT4O},
    {"tekken", WHOLE_WORDS, BOS, {wina_pretokmatch_tekken}},
    {"deepseek-llm",
     MERGES,
     NO_BOS,
     {wina_pretokmatch_newline, wina_pretokmatch_cased, wina_pretokmatch_listed,
      wina_pretokmatch_trailing, wina_pretokmatch_ideographs, wina_pretokmatch_digit}},
    {"deepseek-coder",
     MERGES,
     NO_BOS,
     {wina_pretokmatch_newline, wina_pretokmatch_letters, wina_pretokmatch_punctuation,
      wina_pretokmatch_ideographs, wina_pretokmatch_digit}},
    {"deepseek-v3", MERGES, NO_BOS, DEEPSEEK3}, /* and r1 */
    {"hunyuan-dense", MERGES, NO_BOS, DEEPSEEK3},
    {"joyai-llm", MERGES, NO_BOS, DEEPSEEK3},
    {"falcon",
     MERGES,
     NO_BOS,
     {wina_pretokmatch_signs, wina_pretokmatch_gpt2, wina_pretokmatch_byte_digits,
      wina_pretokmatch_triple}},
    {"bloom", MERGES, NO_BOS, BLOOM},
    {"poro-chat", MERGES, NO_BOS, BLOOM},
    {"gpt3-finnish", MERGES, NO_BOS, BLOOM},
    {"viking", MERGES, NO_BOS, {wina_pretokmatch_bloom, wina_pretokmatch_digit}},
};

const wina_pretok *wina_pretok_find(const char *name, size_t n) {
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (strlen(rows[i].name) == n && memcmp(rows[i].name, name, n) == 0)
            return &rows[i];
    return NULL;
}

typedef struct split {
    const wina_pretok *pretok;
    const uint8_t *text;
    wina_pretok_fn fn;
    void *user;
} split;

/* Cuts text[at..end) by the given stage and hands the pieces to the next; at most
 * WINA_PRETOK_MAX_STAGES deep. */
static int32_t run_stage(const split *s, size_t stage, size_t at, size_t end) {
    if (stage == WINA_PRETOK_MAX_STAGES || s->pretok->stages[stage] == NULL)
        return s->fn(s->user, s->text + at, end - at);
    size_t gap = at;
    while (at < end) {
        size_t after = s->pretok->stages[stage](s->text, at, end);
        if (after == at) {
            uint32_t cp;
            at += wina_unicode_decode(s->text + at, end - at, &cp);
            continue;
        }
        if (gap < at)
            WINA_TRY(run_stage(s, stage + 1, gap, at));
        WINA_TRY(run_stage(s, stage + 1, at, after));
        gap = at = after;
    }
    return gap < end ? run_stage(s, stage + 1, gap, end) : WINA_OK;
}

int32_t wina_pretok_split(const wina_pretok *pretok, const uint8_t *text, size_t n,
                          wina_pretok_fn fn, void *user) {
    const split s = {pretok, text, fn, user};
    return run_stage(&s, 0, 0, n);
}

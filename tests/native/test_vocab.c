/* test_vocab: vocabularies that are wrong in one place are refused with an error that names it. */
#include <stdbool.h>
#include <unistd.h>

#include "check.h"
#include "status.h"
#include "tokenizer.h"
#include "vocab_file.h"

enum { NORMAL = 1, UNKNOWN = 2, CONTROL = 3, USER = 4, BYTE = 6 };

/* Writes, loads, frees; the status of the load. */
static int32_t load(const vocab_file *v) {
    char path[] = "/tmp/pywina-vocab-XXXXXX";
    wina_gguf *gguf = NULL;
    wina_tokenizer *tokenizer = NULL;
    vocab_file_write(v, path);
    int32_t status = wina_gguf_open(path, &gguf);
    unlink(path);
    if (status == WINA_OK)
        status = wina_tokenizer_create(gguf, &tokenizer);
    CHECK((status == WINA_OK) == (tokenizer != NULL));
    wina_tokenizer_free(tokenizer);
    wina_gguf_close(gguf);
    return status;
}

/* a b c ab, merge "a b". */
static void good_bpe(vocab_file *v) {
    *v = (vocab_file){.model = "gpt2", .pre = "gpt-2", .architecture = "llama"};
    vocab_file_add(v, "a", NORMAL, 0);
    vocab_file_add(v, "b", NORMAL, 0);
    vocab_file_add(v, "c", NORMAL, 0);
    vocab_file_add(v, "ab", NORMAL, 0);
    v->merges[v->n_merges++] = "a b";
}

static void good_spm(vocab_file *v) {
    *v = (vocab_file){.model = "llama", .architecture = "llama", .no_merges = true};
    vocab_file_add(v, "<unk>", UNKNOWN, 0);
    vocab_file_add(v, "<s>", CONTROL, 0);
    vocab_file_add(v, "</s>", CONTROL, 0);
    vocab_file_add(v, "<0x41>", BYTE, 0);
    vocab_file_add(v, "a", NORMAL, -1);
}

/* The file must be refused with this status, and the error must hold the word. */
static void refuse(const vocab_file *v, int32_t status, const char *word) {
    int32_t got = load(v);
    CHECK_MSG(got == status && strstr(wina_error(), word) != NULL, "%s, \"%s\" (wanted \"%s\")",
              wina_status_name(got), wina_error(), word);
}

static void test_arrays(void) {
    vocab_file good, v;
    good_bpe(&good);
    CHECK(load(&good) == WINA_OK);
    v = good, v.n_items = 0, v.n_merges = 0;
    refuse(&v, WINA_E_FORMAT, "tokenizer.ggml.tokens");
    v = good, v.types_off = 1;
    refuse(&v, WINA_E_FORMAT, "tokenizer.ggml.token_type");
    v = good, v.types_off = -1;
    refuse(&v, WINA_E_FORMAT, "tokenizer.ggml.token_type");
    v = good, v.types_as = WINA_GGUF_F32;
    refuse(&v, WINA_E_FORMAT, "tokenizer.ggml.token_type");
    v = good, v.items[1].type = 7;
    refuse(&v, WINA_E_FORMAT, "token 1 has type 7");
    v = good, v.items[1].type = -1;
    refuse(&v, WINA_E_FORMAT, "token 1 has type -1");
    v = good, v.no_merges = true;
    refuse(&v, WINA_E_FORMAT, "tokenizer.ggml.merges");
    v = good, v.no_types = true;
    CHECK(load(&v) == WINA_OK);
    v = good, v.no_scores = true;
    CHECK(load(&v) == WINA_OK);
    v = good, v.scores_off = 1; /* not needed here, still checked */
    refuse(&v, WINA_E_FORMAT, "tokenizer.ggml.scores");

    good_spm(&good);
    CHECK(load(&good) == WINA_OK);
    v = good, v.no_scores = true;
    refuse(&v, WINA_E_FORMAT, "tokenizer.ggml.scores");
    v = good, v.scores_off = -1;
    refuse(&v, WINA_E_FORMAT, "tokenizer.ggml.scores");
    v = good, v.scores_as = WINA_GGUF_I32;
    refuse(&v, WINA_E_FORMAT, "tokenizer.ggml.scores");
    v = good, v.items[4].score = 0.0f / 0.0f;
    refuse(&v, WINA_E_FORMAT, "token 4 has score");
    v = good, v.items[4].score = -1.0f / 0.0f;
    refuse(&v, WINA_E_FORMAT, "token 4 has score");
}

static void test_texts(void) {
    static const char *const wrong_bytes[] = {"<0x4>",  "<0x414>", "<0xG1>", "0x41",
                                              "<0x41 ", "< x41>",  "",       "<0x+1>"};
    vocab_file good, v;
    good_spm(&good);
    for (size_t i = 0; i < sizeof wrong_bytes / sizeof wrong_bytes[0]; i++) {
        v = good, v.items[3].text = wrong_bytes[i];
        refuse(&v, WINA_E_FORMAT, "byte token 3");
    }
    v = good, v.items[3].text = "<0xfe>";
    CHECK(load(&v) == WINA_OK);
    v = good, v.items[4].text = ""; /* allowed: some real vocabularies have them */
    CHECK(load(&v) == WINA_OK);

    static char longest[64 * 1024 + 2];
    memset(longest, 'x', sizeof longest - 1);
    v = good, v.items[4].text = longest;
    refuse(&v, WINA_E_FORMAT, "token 4 has 65537 bytes");
    v = good, v.items[4].text = longest + 1;
    CHECK(load(&v) == WINA_OK);
    v = good, v.items[1].text = longest + 1;
    refuse(&v, WINA_E_FORMAT, "special token 1 has 65536 bytes");
    v = good, v.items[1].text = longest + (64 * 1024 + 1 - 1024);
    CHECK(load(&v) == WINA_OK);

    /* Two tokens with one text: the last normal one counts, whatever stands around it. */
    good_bpe(&v);
    vocab_file_add(&v, "ab", NORMAL, 0);
    vocab_file_add(&v, "ab", CONTROL, 0);
    CHECK(load(&v) == WINA_OK);
}

static void test_merges(void) {
    static const struct {
        const char *merge, *word;
    } wrong[] = {
        {"ab", "merge 0 is not"},          {"", "merge 0 is not"},
        {" ab", "merge 0 is not"},         {"ab ", "merge 0 is not"},
        {"a b c", "merge 0 is not"},       {"a  b", "merge 0 is not"},
        {"x b", "merge 0: its left side"}, {"a x", "merge 0: its right side"},
        {"b a", "merge 0: its result"},
    };
    vocab_file v;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        good_bpe(&v);
        v.merges[0] = wrong[i].merge;
        refuse(&v, WINA_E_FORMAT, wrong[i].word);
    }
    good_bpe(&v);
    v.merges[v.n_merges++] = "a b"; /* a merge twice: the first counts */
    CHECK(load(&v) == WINA_OK);
    /* Of many the first that is wrong is named, in whichever way it is. */
    for (int at = 0; at < 40; at += 3)
        for (int malformed = 0; malformed < 2; malformed++) {
            char word[32];
            good_bpe(&v);
            while (v.n_merges < 40)
                v.merges[v.n_merges++] = "a b";
            v.merges[at] = malformed ? "a" : "x b";
            for (int later = at + 1; later < 40; later += 5)
                v.merges[later] = malformed ? "x b" : "a";
            snprintf(word, sizeof word, "merge %d%s", at, malformed ? " is not" : ": its left");
            refuse(&v, WINA_E_FORMAT, word);
        }
}

static void test_names(void) {
    vocab_file v;
    good_bpe(&v), v.model = NULL;
    refuse(&v, WINA_E_FORMAT, "tokenizer.ggml.model");
    good_bpe(&v), v.model = "gpt3";
    refuse(&v, WINA_E_UNSUPPORTED, "\"gpt3\"");
    good_bpe(&v), v.pre = NULL;
    refuse(&v, WINA_E_FORMAT, "tokenizer.ggml.pre");
    good_bpe(&v), v.pre = "qwen";
    refuse(&v, WINA_E_UNSUPPORTED, "\"qwen\"");
    good_bpe(&v), v.pre = "default";
    refuse(&v, WINA_E_UNSUPPORTED, "\"default\"");
    good_bpe(&v), v.pre = "";
    refuse(&v, WINA_E_UNSUPPORTED, "\"\"");
}

static void test_ids(void) {
    static const char *const keys[] = {
        "bos_token_id",     "eos_token_id",     "unknown_token_id",   "padding_token_id",
        "eot_token_id",     "eom_token_id",     "seperator_token_id", "separator_token_id",
        "cls_token_id",     "mask_token_id",    "fim_pre_token_id",   "fim_suf_token_id",
        "fim_mid_token_id", "fim_pad_token_id", "fim_rep_token_id",   "fim_sep_token_id",
        "prefix_token_id",  "suffix_token_id",  "middle_token_id",
    };
    vocab_file v;
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        good_bpe(&v);
        v.extras[0] = (extra){keys[i], WINA_GGUF_U32, 4, NULL};
        refuse(&v, WINA_E_FORMAT, keys[i]);
        v.extras[0] = (extra){keys[i], WINA_GGUF_U32, 0xFFFFFFFF, NULL};
        refuse(&v, WINA_E_FORMAT, keys[i]);
        v.extras[0] = (extra){keys[i], WINA_GGUF_I32, -1, NULL};
        refuse(&v, WINA_E_FORMAT, keys[i]);
        v.extras[0] = (extra){keys[i], WINA_GGUF_STRING, 0, "0"};
        refuse(&v, WINA_E_FORMAT, keys[i]);
        v.extras[0] = (extra){keys[i], WINA_GGUF_I32, 3, NULL};
        CHECK_MSG(load(&v) == WINA_OK, "%s: %s", keys[i], wina_error());
    }
    /* SentencePiece's defaults must exist too. */
    good_spm(&v);
    v.n_items = 2;
    refuse(&v, WINA_E_FORMAT, "eos_token_id (default): 2");
    v.n_items = 1;
    refuse(&v, WINA_E_FORMAT, "bos_token_id (default): 1");
    v.extras[0] = (extra){"bos_token_id", WINA_GGUF_U32, 0, NULL};
    v.extras[1] = (extra){"eos_token_id", WINA_GGUF_U32, 0, NULL};
    CHECK(load(&v) == WINA_OK);

    good_bpe(&v);
    v.extras[0] = (extra){"add_bos_token", WINA_GGUF_BOOL, 1, NULL};
    refuse(&v, WINA_E_FORMAT, "add_bos_token");
    v.extras[0] = (extra){"add_eos_token", WINA_GGUF_BOOL, 1, NULL};
    refuse(&v, WINA_E_FORMAT, "add_eos_token");
    v.extras[0] = (extra){"add_bos_token", WINA_GGUF_U32, 1, NULL};
    refuse(&v, WINA_E_FORMAT, "add_bos_token");
    good_spm(&v);
    v.extras[0] = (extra){"add_space_prefix", WINA_GGUF_STRING, 0, "no"};
    refuse(&v, WINA_E_FORMAT, "add_space_prefix");
}

int main(void) {
    test_arrays();
    test_texts();
    test_merges();
    test_names();
    test_ids();
    return check_report("vocab");
}

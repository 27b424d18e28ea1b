/* test_pretok: the words of every pre-tokenizer, against tests/golden/pretok.txt (made from the
 * models' regular expressions by tools/make_tokenizer_golden.py) and a few cases by hand. */
#include <stdlib.h>
#include <time.h>

#include "check.h"
#include "pretok.h"
#include "wina.h"

#define MAX_LINE (64 * 1024)

/* The words found so far, as "7468 65 " in hexadecimal. */
typedef struct found {
    char hex[MAX_LINE];
    size_t n;
} found;

static int32_t append(void *user, const uint8_t *word, size_t n) {
    found *f = user;
    if (n == 0 || f->n + 2 * n + 2 > sizeof f->hex)
        return WINA_E_SPACE;
    for (size_t i = 0; i < n; i++, f->n += 2)
        snprintf(f->hex + f->n, 3, "%02x", word[i]);
    f->hex[f->n++] = ' ';
    return WINA_OK;
}

static int hex_digit(char c) {
    return c <= '9' ? c - '0' : c - 'a' + 10;
}

/* Words in hexadecimal to the text they make up; number of bytes. */
static size_t join(const char *hex, uint8_t *text) {
    size_t n = 0;
    for (; *hex != '\0'; hex++)
        if (*hex != ' ') {
            text[n++] = (uint8_t)(hex_digit(hex[0]) * 16 + hex_digit(hex[1]));
            hex++;
        }
    return n;
}

/* The golden file lies beside this one's folder; tests may run from anywhere the path leads from.
 */
static FILE *open_golden(void) {
    char path[1024];
    const char *slash = strrchr(__FILE__, '/');
    snprintf(path, sizeof path, "%.*s../golden/pretok.txt",
             slash == NULL ? 0 : (int)(slash + 1 - __FILE__), __FILE__);
    return fopen(path, "rb");
}

static void test_golden(void) {
    static char line[MAX_LINE];
    static uint8_t text[MAX_LINE];
    static found got;
    FILE *file = open_golden();
    CHECK_MSG(file != NULL, "tests/golden/pretok.txt: run from the root of the repository");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        char *words = strchr(line, ' ');
        if (words == NULL)
            words = line + strlen(line);
        else
            *words++ = '\0';
        const wina_pretok *pretok = wina_pretok_find(line, strlen(line));
        CHECK_MSG(pretok != NULL, "%s", line);
        if (pretok == NULL)
            continue;
        size_t n = join(words, text);
        got.n = 0;
        CHECK(wina_pretok_split(pretok, text, n, append, &got) == WINA_OK);
        if (got.n > 0)
            got.n--; /* the last space */
        got.hex[got.n] = '\0';
        CHECK_MSG(strcmp(got.hex, words) == 0, "%s: got %s, wanted %s", line, got.hex, words);
    }
    if (file != NULL)
        fclose(file);
}

/* Words by hand, separated by '|'. */
static void check_words(const char *name, const char *want) {
    char text[256], got[256];
    found f = {.n = 0};
    size_t n = 0, n_got = 0;
    for (const char *c = want; *c != '\0'; c++)
        if (*c != '|')
            text[n++] = *c;
    const wina_pretok *pretok = wina_pretok_find(name, strlen(name));
    CHECK(pretok != NULL);
    if (pretok == NULL)
        return;
    CHECK(wina_pretok_split(pretok, (const uint8_t *)text, n, append, &f) == WINA_OK);
    for (size_t i = 0; i + 1 < f.n; i++) {
        if (f.hex[i] == ' ') {
            got[n_got++] = '|';
            continue;
        }
        got[n_got++] = (char)(hex_digit(f.hex[i]) * 16 + hex_digit(f.hex[i + 1]));
        i++;
    }
    got[n_got] = '\0';
    CHECK_MSG(strcmp(got, want) == 0, "%s: got \"%s\", wanted \"%s\"", name, got, want);
}

static void test_by_hand(void) {
    check_words("gpt-2", "I|'ve| 1234| words|!!|  | ok|'|S|\n\n| a|\n");
    check_words("smollm", "I|'ve| |1|2|3|4| words|!!|  | ok|'|S|\n\n| a|\n");
    check_words("starcoder", "a| |1|b");
    check_words("llama-bpe", "I|'VE| |123|4| words|!!\n\n|  | ok|'S|\n\n| a|\n");
    check_words("llama3", "12|\t  \n|\t| \u00E4|'\u017F|.x");
    check_words("llama-v3", "123|4");
    check_words("qwen2", "I|'ve| |1|2| words|!!\n\n|  | ok|'S|\n \n| a|\n");
    check_words("gpt-4o", "Camel|Case's|HTML| |123|4|!//\n|\u0301A中文'll| x");
    check_words("tekken", "Camel|Case|'s|HTML| |1|2|!/\n|\u4E2D|A");
    check_words("deepseek-v3", "I|'ve| |123|4| words|!!\n|\u3042\u4E2D|.a| +\n");
    check_words("deepseek-llm", "I|'|ve| |1|2| \u00FC|\n|\u2603|  ");
    check_words("falcon", "a| |123|4|...| b|+=|x");
    check_words("bloom", " a| b|,| c|..| d");
    check_words("deepseek-coder", "I|'|ve| |1|2| words|!!|\n|\n|  | ok|,|\u4E2D\u6587| $ |\n");
}

static void test_names(void) {
    CHECK(wina_pretok_find("gpt-2", 4) == NULL);
    CHECK(wina_pretok_find("gpt-2x", 6) == NULL);
    CHECK(wina_pretok_find("default", 7) == NULL);
    CHECK(wina_pretok_find("", 0) == NULL);
    static const char *const names[] = {"dbrx", "refact", "command-r", "olmo", "llama4", "viking"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        CHECK_MSG(wina_pretok_find(names[i], strlen(names[i])) != NULL, "%s", names[i]);
}

static int32_t count(void *user, const uint8_t *word, size_t n) {
    (void)word;
    *(size_t *)user += n;
    return WINA_OK;
}

/* Texts that a matcher which goes back over a run for each of its characters would not finish. */
static void test_linear(void) {
    static const char *const names[] = {"gpt-2",       "smollm",   "llama-bpe",    "qwen2",
                                        "qwen35",      "minicpm5", "seed-coder",   "gpt-4o",
                                        "tekken",      "falcon",   "deepseek-llm", "deepseek-coder",
                                        "deepseek-v3", "bloom",    "viking"};
    static const char *const fills[] = {
        "a",      "A",   " ",      "\n",      "1",       "!",      "\n ",
        "' ",     "/",   "\u0301", "\u0301A", "\u4E2DA", "\u3000", "\u3000\u3000x",
        "\u4E2D", "\x01"};
#if defined(WINA_SANITIZED)
    enum { SIZE = 16 * 1024 }; /* thousands of texts */
#else
    enum { SIZE = 256 * 1024 };
#endif
    static uint8_t text[SIZE];
    for (size_t p = 0; p < sizeof names / sizeof names[0]; p++) {
        const wina_pretok *pretok = wina_pretok_find(names[p], strlen(names[p]));
        CHECK(pretok != NULL);
        for (size_t f = 0; pretok != NULL && f < sizeof fills / sizeof fills[0]; f++) {
            size_t length = strlen(fills[f]);
            size_t n = SIZE / length * length;
            for (size_t i = 0; i < n; i++)
                text[i] = (uint8_t)fills[f][i % length];
            for (size_t tail = 0; tail < 2; tail++) { /* the same before another character */
                if (tail)
                    text[n - length] = 'x', n -= length - 1;
                size_t total = 0;
                clock_t started = clock();
                CHECK(wina_pretok_split(pretok, text, n, count, &total) == WINA_OK && total == n);
                double seconds = (double)(clock() - started) / CLOCKS_PER_SEC;
                CHECK_MSG(seconds < check_time(1), "%s, fill %zu: %.2f s", names[p], f, seconds);
            }
        }
    }
}

int main(void) {
    test_golden();
    test_by_hand();
    test_linear();
    test_names();
    return check_report("pretok");
}

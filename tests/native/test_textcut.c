/* However a text is cut into pieces, what comes out is the same: valid UTF-8, up to the first stop
 * string. The expected text is computed here by a plain whole-string method. */
#include <stdlib.h>

#include "check.h"
#include "textcut.h"
#include "wina.h"

static char joined[4096];

/* Feeds text cut after the positions whose bits are set in `cuts`. */
static size_t feed(const char *text, size_t n, const char *const *stops, int32_t n_stops,
                   unsigned long long cuts) {
    wina_textcut cut;
    size_t length = 0, begin = 0;
    CHECK(wina_textcut_init(&cut, stops, n_stops) == WINA_OK);
    for (size_t i = 1; i <= n; i++) {
        if (i < n && !(cuts >> (i % 64) & 1))
            continue;
        const char *piece;
        size_t n_piece;
        CHECK(wina_textcut_add(&cut, text + begin, i - begin, i == n, &piece, &n_piece) == WINA_OK);
        memcpy(joined + length, piece, n_piece);
        length += n_piece;
        begin = i;
    }
    wina_textcut_clear(&cut);
    joined[length] = 0;
    return length;
}

static void expect(const char *text, const char *const *stops, int32_t n_stops, const char *want) {
    size_t n = strlen(text);
    int n_wrong = 0;
    unsigned long long n_ways = n <= 12 ? 1ull << n : 4096, seed = 7;
    for (unsigned long long i = 0; i < n_ways; i++) {
        unsigned long long cuts = n <= 12 ? i << 1 : check_random(&seed);
        size_t length = feed(text, n, stops, n_stops, cuts);
        n_wrong += length != strlen(want) || memcmp(joined, want, length) != 0;
    }
    CHECK_MSG(n_wrong == 0, "\"%s\": %d of %llu ways to cut it went wrong, last: \"%s\"", text,
              n_wrong, n_ways, joined);
}

/* The same by looking at the whole text at once; the letters are all ASCII. */
static void test_random(void) {
    unsigned long long seed = 99;
    static const char *const sets[][3] = {
        {"aab", "ba", "bbb"}, {"abab", "baba", "c"}, {"aaa", "aab", "ca"}};
    for (int i = 0; i < 3000; i++) {
        char text[40], want[40];
        size_t n = 1 + check_random(&seed) % 24;
        for (size_t j = 0; j < n; j++)
            text[j] = (char)('a' + check_random(&seed) % 3);
        text[n] = 0;
        const char *const *stops = sets[i % 3];
        strcpy(want, text);
        char *first = NULL;
        for (int s = 0; s < 3; s++) {
            char *p = strstr(want, stops[s]);
            if (p && (!first || p < first))
                first = p;
        }
        if (first)
            *first = 0;
        size_t length = feed(text, n, stops, 3, check_random(&seed));
        CHECK_MSG(length == strlen(want) && memcmp(joined, want, length) == 0,
                  "\"%s\": got \"%s\", want \"%s\"", text, joined, want);
    }
}

int main(void) {
    const char *const aab[] = {"aab"}, *const two[] = {"xyz", "yz!"}, *const user[] = {"\nUser:"};
    expect("hello", NULL, 0, "hello");
    expect("aaab", aab, 1, "a");
    expect("aaaa", aab, 1, "aaaa");
    expect("wxyz!", two, 2, "w");
    expect("wyz!xyz", two, 2, "w");
    expect("fine\nUse", user, 1, "fine\nUse");
    expect("fine\nUser: more", user, 1, "fine");
    expect("h\xc3\xa9 \xf0\x9f\xa6\x99!", NULL, 0, "h\xc3\xa9 \xf0\x9f\xa6\x99!");
    const char *const llama[] = {"\xf0\x9f\xa6\x99"}, *const e[] = {"\xc3\xa9"};
    expect("a\xf0\x9f\xa6\x99z", llama, 1, "a");
    expect("a\xc3\xa8\xc3\xa9", e, 1, "a\xc3\xa8");
    expect("a\xff"
           "b",
           NULL, 0,
           "a\xef\xbf\xbd"
           "b");
    expect("a\xf0\x9f", NULL, 0, "a\xef\xbf\xbd\xef\xbf\xbd");
    expect("\xed\xa0\x80", NULL, 0, "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"); /* a surrogate */
    expect("\xc0\x80", NULL, 0, "\xef\xbf\xbd\xef\xbf\xbd");                 /* overlong */
    expect("\xe2\x82"
           "a",
           NULL, 0,
           "\xef\xbf\xbd\xef\xbf\xbd"
           "a");
    test_random();

    wina_textcut cut;
    const char *const empty[] = {"ok", ""};
    CHECK(wina_textcut_init(&cut, empty, 2) == WINA_E_ARGUMENT);
    CHECK(strstr(wina_error(), "stop string 2") != NULL);

    /* Text is not held back longer than it must be. */
    const char *piece;
    size_t n;
    CHECK(wina_textcut_init(&cut, user, 1) == WINA_OK);
    CHECK(wina_textcut_add(&cut, "abc", 3, false, &piece, &n) == WINA_OK && n == 3);
    CHECK(wina_textcut_add(&cut, "\nUs", 3, false, &piece, &n) == WINA_OK && n == 0);
    CHECK(wina_textcut_add(&cut, "A", 1, false, &piece, &n) == WINA_OK && n == 4);
    wina_textcut_clear(&cut);
    return check_report("textcut");
}

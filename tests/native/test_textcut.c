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

/* ---- the same by looking at the whole text at once ---------------------------------------- */

/* Appends the character at s, or U+FFFD for one byte; returns the bytes used. By the value of the
 * code point, not by tables of bytes. */
static size_t copy_character(const unsigned char *s, size_t n, char *out, size_t *n_out) {
    static const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t length = s[0] < 0x80 ? 1 : s[0] >> 5 == 6 ? 2 : s[0] >> 4 == 14 ? 3 : 4;
    unsigned code = length == 1 ? s[0] : s[0] & (0xffu >> (length + 1));
    bool good = length <= n && (s[0] < 0x80 || (s[0] >= 0xc0 && s[0] < 0xf8));
    for (size_t i = 1; good && i < length; i++) {
        good = s[i] >> 6 == 2;
        code = code << 6 | (s[i] & 0x3fu);
    }
    good = good && code >= least[length] && code <= 0x10ffff && (code < 0xd800 || code > 0xdfff);
    memcpy(out + *n_out, good ? (const char *)s : "\xef\xbf\xbd", good ? length : 3);
    *n_out += good ? length : 3;
    return good ? length : 1;
}

/* Repaired, then cut before the stop string that ends first (of several: that begins first). */
static size_t cut_whole(const char *text, size_t n, const char *const *stops, int n_stops,
                        char *want) {
    size_t length = 0, begin, end;
    for (size_t i = 0; i < n;)
        i += copy_character((const unsigned char *)text + i, n - i, want, &length);
    for (end = 1; end <= length; end++)
        for (begin = 0; begin < end; begin++)
            for (int s = 0; s < n_stops; s++)
                if (strlen(stops[s]) == end - begin && !memcmp(want + begin, stops[s], end - begin))
                    return begin;
    return length;
}

/* Random texts of letters, characters and halves of characters, cut in random ways. */
static void test_random(void) {
    static const char *const parts[] = {"a",    "b",        "c",        "\xc3\xa9", "\xc3",
                                        "\xa9", "\xf0\x9f", "\xa6\x99", "\xe2\x82", "\xff"};
    static const char *const sets[][3] = {
        {"aab", "ba", "bbb"},
        {"abab", "baba", "c"},
        {"aaa", "aab", "ca"},
        {"abcab", "bc", "cabcab"},
        {"abaabaab", "abaa", "aabaab"},
        {"a\xc3\xa9z", "\xc3\xa9", "b"},
        {"\xef\xbf\xbd", "aaaa", "bb"},
        {"b\xf0\x9f\xa6\x99", "\xf0\x9f\xa6\x99\xf0\x9f\xa6\x99", "cc"},
    };
    unsigned long long seed = 99;
    for (int i = 0; i < 40000; i++) {
        char text[128], want[512];
        size_t n = 0, n_parts = 1 + check_random(&seed) % 24, kinds = i % 2 ? 3 : 10;
        for (size_t j = 0; j < n_parts; j++) {
            const char *part = parts[(check_random(&seed) >> 20) % kinds];
            memcpy(text + n, part, strlen(part));
            n += strlen(part);
        }
        const char *const *stops = sets[(check_random(&seed) >> 20) % 8];
        int n_stops = (int)((check_random(&seed) >> 20) % 4);
        size_t n_want = cut_whole(text, n, stops, n_stops, want);
        /* Many cuts, few cuts, one piece. */
        unsigned long long cuts = check_random(&seed), fewer = check_random(&seed);
        cuts = i % 5 == 0 ? 0 : i % 5 == 1 ? cuts & fewer : i % 5 == 2 ? cuts | fewer : cuts;
        size_t length = feed(text, n, stops, n_stops, cuts);
        CHECK_MSG(length == n_want && memcmp(joined, want, length) == 0,
                  "\"%.*s\": got \"%s\", want \"%.*s\"", (int)n, text, joined, (int)n_want, want);
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
    /* One stop string inside another: what is complete first counts, however the text is cut. */
    const char *const nested[] = {"abcd", "c"}, *const same_end[] = {"END", "##END"};
    expect("xabcdef", nested, 2, "xab");
    expect("xab", nested, 2, "xab");
    expect("x##END", same_end, 2, "x");
    test_random();

    wina_textcut cut;
    const char *const half[] = {"\xc3\xa9", "\xa9"}, *const cut_off[] = {"a\xe2\x82"};
    CHECK(wina_textcut_init(&cut, half, 2) == WINA_E_ARGUMENT);
    CHECK(strstr(wina_error(), "stop string 2 is not valid UTF-8") != NULL);
    CHECK(wina_textcut_init(&cut, cut_off, 1) == WINA_E_ARGUMENT);
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

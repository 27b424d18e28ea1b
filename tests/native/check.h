/* check: the few lines our C tests need. A test is a function that uses CHECK; main ends in
 * `return check_report("name");` and the process fails if any check failed or none ran. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int check_n_passed, check_n_failed;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (condition)                                                                             \
            check_n_passed++;                                                                      \
        else {                                                                                     \
            check_n_failed++;                                                                      \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                \
        }                                                                                          \
    } while (0)

/* Like CHECK, with a printf-style explanation. */
#define CHECK_MSG(condition, ...)                                                                  \
    do {                                                                                           \
        if (condition)                                                                             \
            check_n_passed++;                                                                      \
        else {                                                                                     \
            check_n_failed++;                                                                      \
            fprintf(stderr, "%s:%d: failed: %s: ", __FILE__, __LINE__, #condition);                \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
        }                                                                                          \
    } while (0)

/* Skips are said aloud: the reason goes to the test's output. */
static inline int check_report(const char *name) {
    printf("%s: %d passed, %d failed\n", name, check_n_passed, check_n_failed);
    return check_n_failed != 0 || check_n_passed == 0;
}

/* Under emulation (tools/test_emulated.sh) times and the process's own memory mean nothing. */
static inline int check_emulated(void) {
    return getenv("WINA_EMULATED") != NULL;
}

/* Seconds that something may take which takes so many at most: sanitizers are slower. */
static inline double check_time(double seconds) {
#if defined(WINA_SANITIZED)
    seconds *= 30;
#endif
    return check_emulated() ? 1e9 : seconds;
}

/* Bytes of the pages that a mapping of n bytes takes. */
static inline long check_whole_pages(size_t n) {
    const long page = sysconf(_SC_PAGESIZE);
    return ((long)n + page - 1) / page * page;
}

/* xorshift64*: the same random numbers everywhere. */
static inline unsigned long long check_random(unsigned long long *state) {
    unsigned long long x = *state;
    x ^= x >> 12, x ^= x << 25, x ^= x >> 27;
    *state = x;
    return x * 2685821657736338717ULL;
}

#endif

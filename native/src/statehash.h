/* statehash: the sums that saved states carry, in a header of their own for tools that make states
 * up (tools/time_depth.c). */
#ifndef WINA_STATEHASH_H
#define WINA_STATEHASH_H

#include <stdint.h>
#include <string.h>

#define WINA_STATEHASH_START 0xcbf29ce484222325u

/* FNV-1a. */
static inline uint64_t wina_statehash_bytes(uint64_t h, const void *data, uint64_t n) {
    const unsigned char *p = data;
    for (uint64_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 0x100000001b3u; /* NOLINT(clang-analyzer-core*): bytes of integers */
    return h;
}

/* FNV-1a by 8 bytes: caches are megabytes. */
static inline uint64_t wina_statehash_words(uint64_t h, const void *data, uint64_t n) {
    const unsigned char *p = data;
    uint64_t word;
    for (; n >= sizeof word; n -= sizeof word, p += sizeof word) {
        memcpy(&word, p, sizeof word);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return wina_statehash_bytes(h, p, n);
}

#endif

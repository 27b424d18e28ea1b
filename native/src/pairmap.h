/* pairmap: a hash map from pairs of 32-bit numbers to a 32-bit number, open addressing, load at
 * most 1/2. The first value put for a pair stays. The hash is seeded, so that no file can be made
 * whose pairs all collide; what is found does not depend on the seed. */
#ifndef WINA_PAIRMAP_H
#define WINA_PAIRMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WINA_PAIRMAP_NONE UINT32_MAX /* no value may be this */

typedef struct wina_pairmap_slot {
    uint32_t a, b;
    uint32_t value; /* WINA_PAIRMAP_NONE: empty */
    uint32_t extra; /* a second value, free to use */
} wina_pairmap_slot;

typedef struct wina_pairmap {
    wina_pairmap_slot *slots; /* (n_slots), a power of two */
    uint64_t n_slots;
    uint64_t n_used;
    uint64_t seed;
} wina_pairmap;

/* Room for n_pairs without growing; what names the map in an error. */
int32_t wina_pairmap_create(uint64_t n_pairs, uint64_t seed, const char *what, wina_pairmap *out);
void wina_pairmap_free(wina_pairmap *map); /* accepts a zeroed map */

/* A number that differs from run to run. */
uint64_t wina_pairmap_make_seed(void);

/* Puts a pair, growing if need be; *added is false if the pair was there already. */
int32_t wina_pairmap_put(wina_pairmap *map, uint32_t a, uint32_t b, uint32_t value, uint32_t extra,
                         const char *what, bool *added);

static inline uint64_t wina_pairmap_hash(uint64_t key, uint64_t seed) {
    unsigned __int128 product = (unsigned __int128)(key ^ seed) * 0x9E3779B97F4A7C15u;
    return (uint64_t)product ^ (uint64_t)(product >> 64) ^ seed >> 32;
}

/* A pair that is going to be put or found soon. */
static inline void wina_pairmap_fetch(const wina_pairmap *map, uint32_t a, uint32_t b) {
    const uint64_t i = wina_pairmap_hash((uint64_t)a << 32 | b, map->seed);
    __builtin_prefetch(&map->slots[i & (map->n_slots - 1)]);
}

/* NULL if absent. */
static inline const wina_pairmap_slot *wina_pairmap_find(const wina_pairmap *map, uint32_t a,
                                                         uint32_t b) {
    uint64_t mask = map->n_slots - 1;
    for (uint64_t i = wina_pairmap_hash((uint64_t)a << 32 | b, map->seed);; i++) {
        const wina_pairmap_slot *slot = &map->slots[i & mask];
        if (slot->value == WINA_PAIRMAP_NONE)
            return NULL;
        if (slot->a == a && slot->b == b)
            return slot;
    }
}

#endif

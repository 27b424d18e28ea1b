/* pairmap: linear probing; grows by doubling. */
#include "pairmap.h"

#include <stdlib.h>
#include <time.h>

#include "mem.h"
#include "status.h"

static int32_t create_slots(uint64_t n_slots, const char *what, wina_pairmap_slot **out) {
    WINA_TRY(wina_mem_create(n_slots, sizeof **out, what, out));
    for (uint64_t i = 0; i < n_slots; i++)
        (*out)[i].value = WINA_PAIRMAP_NONE;
    return WINA_OK;
}

int32_t wina_pairmap_create(uint64_t n_pairs, uint64_t seed, const char *what, wina_pairmap *out) {
    *out = (wina_pairmap){.seed = seed, .n_slots = 16};
    while (out->n_slots / 2 <= n_pairs) {
        uint64_t doubled;
        if (!wina_mem_mul(out->n_slots, 2, &doubled))
            return wina_fail(WINA_E_MEMORY, "%s: too many", what);
        out->n_slots = doubled;
    }
    return create_slots(out->n_slots, what, &out->slots);
}

void wina_pairmap_free(wina_pairmap *map) {
    free(map->slots);
    *map = (wina_pairmap){0};
}

uint64_t wina_pairmap_make_seed(void) {
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    /* The stack's address is random where the system randomises it. */
    uint64_t mixed = (uint64_t)(uintptr_t)&now ^ (uint64_t)now.tv_nsec << 40 ^ (uint64_t)now.tv_sec;
    return wina_pairmap_hash(mixed, 0x243F6A8885A308D3u);
}

static void put_new(wina_pairmap_slot *slots, uint64_t n_slots, uint64_t seed,
                    wina_pairmap_slot item) {
    uint64_t i = wina_pairmap_hash((uint64_t)item.a << 32 | item.b, seed);
    while (slots[i & (n_slots - 1)].value != WINA_PAIRMAP_NONE)
        i++;
    slots[i & (n_slots - 1)] = item;
}

static int32_t grow(wina_pairmap *map, const char *what) {
    uint64_t n_slots;
    if (!wina_mem_mul(map->n_slots, 2, &n_slots))
        return wina_fail(WINA_E_MEMORY, "%s: too many", what);
    wina_pairmap_slot *slots;
    WINA_TRY(create_slots(n_slots, what, &slots));
    for (uint64_t i = 0; i < map->n_slots; i++)
        if (map->slots[i].value != WINA_PAIRMAP_NONE)
            put_new(slots, n_slots, map->seed, map->slots[i]);
    free(map->slots);
    map->slots = slots;
    map->n_slots = n_slots;
    return WINA_OK;
}

int32_t wina_pairmap_put(wina_pairmap *map, uint32_t a, uint32_t b, uint32_t value, uint32_t extra,
                         const char *what, bool *added) {
    *added = wina_pairmap_find(map, a, b) == NULL;
    if (!*added)
        return WINA_OK;
    if (map->n_used + 1 > map->n_slots / 2)
        WINA_TRY(grow(map, what));
    put_new(map->slots, map->n_slots, map->seed, (wina_pairmap_slot){a, b, value, extra});
    map->n_used++;
    return WINA_OK;
}

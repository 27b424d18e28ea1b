/* mem: all memory of the library comes from here. Sizes arrive as 64-bit factors and are
 * multiplied checked; large blocks are mapped on a 2 MiB border so that the system can back them
 * with huge pages, which the column walks over packed weights depend on. */
#include "mem.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "status.h"

#define MAPPED_FROM (4ull << 20)
#define CACHE_LINE  64ull

static void store(void *out, void *pointer) {
    memcpy(out, &pointer, sizeof pointer);
}

static int32_t fail_bytes(uint64_t n_bytes, const char *what) {
    return wina_fail(WINA_E_MEMORY, "out of memory: %llu bytes for %s", (unsigned long long)n_bytes,
                     what);
}

int32_t wina_mem_create(uint64_t count, uint64_t size, const char *what, void *out) {
    store(out, NULL);
    uint64_t n_bytes;
    if (!wina_mem_mul(count, size, &n_bytes) || n_bytes > PTRDIFF_MAX)
        return wina_fail(WINA_E_MEMORY, "out of memory: %llu x %llu bytes for %s",
                         (unsigned long long)count, (unsigned long long)size, what);
    void *memory = calloc(1, n_bytes ? (size_t)n_bytes : 1);
    if (!memory)
        return fail_bytes(n_bytes, what);
    store(out, memory);
    return WINA_OK;
}

/* Bytes that a block of n_bytes occupies, as allocated and as freed. */
static uint64_t mapped_bytes(uint64_t n_bytes) {
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return (n_bytes + page - 1) & ~(page - 1);
}

/* Maps up to 2 MiB too much and gives back what lies outside the aligned block. */
static void *map_aligned(uint64_t n_bytes) {
    uint64_t used = mapped_bytes(n_bytes), total = used + WINA_MEM_HUGE_PAGE;
    uint8_t *base =
        mmap(NULL, (size_t)total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    uint64_t head = (WINA_MEM_HUGE_PAGE - ((uintptr_t)base & (WINA_MEM_HUGE_PAGE - 1))) &
                    (WINA_MEM_HUGE_PAGE - 1);
    if (head)
        munmap(base, (size_t)head);
    if (WINA_MEM_HUGE_PAGE - head)
        munmap(base + head + used, (size_t)(WINA_MEM_HUGE_PAGE - head));
    madvise(base + head, (size_t)used, MADV_HUGEPAGE); /* a wish: small pages work too */
    return base + head;
}

int32_t wina_mem_create_big(uint64_t n_bytes, const char *what, void *out) {
    store(out, NULL);
    if (n_bytes > PTRDIFF_MAX - (2 * WINA_MEM_HUGE_PAGE))
        return fail_bytes(n_bytes, what);
    void *memory;
    if (n_bytes >= MAPPED_FROM) {
        memory = map_aligned(n_bytes);
    } else {
        size_t whole = (size_t)((n_bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE);
        whole = whole ? whole : CACHE_LINE;
        memory = aligned_alloc(CACHE_LINE, whole);
        if (memory)
            memset(memory, 0, whole);
    }
    if (!memory)
        return fail_bytes(n_bytes, what);
    store(out, memory);
    return WINA_OK;
}

void wina_mem_free_big(void *memory, uint64_t n_bytes) {
    if (!memory)
        return;
    if (n_bytes >= MAPPED_FROM)
        munmap(memory, (size_t)mapped_bytes(n_bytes));
    else
        free(memory);
}

void wina_mem_drop_big(void *memory, uint64_t n_bytes) {
    if (n_bytes >= MAPPED_FROM)
        madvise(memory, (size_t)mapped_bytes(n_bytes), MADV_DONTNEED);
}

void wina_mem_drop_part(void *memory, uint64_t n_bytes) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)memory;
    const uintptr_t begin = (at + page - 1) & ~(page - 1), end = (at + n_bytes) & ~(page - 1);
    if (begin < end)
        madvise((uint8_t *)memory + (begin - at), end - begin, MADV_DONTNEED);
}

uint64_t wina_mem_undropped(uint64_t n_bytes) {
    return n_bytes >= MAPPED_FROM ? 0 : n_bytes;
}

int32_t wina_mem_grow(void *array, uint64_t *capacity, uint64_t want, uint64_t size,
                      const char *what) {
    if (want <= *capacity)
        return WINA_OK;
    uint64_t count = *capacity > UINT64_MAX / 2 ? want : *capacity * 2;
    if (count < 16)
        count = 16;
    if (count < want)
        count = want;
    uint64_t n_bytes;
    if (!wina_mem_mul(count, size, &n_bytes) || n_bytes > PTRDIFF_MAX)
        return wina_fail(WINA_E_MEMORY, "out of memory: %llu x %llu bytes for %s",
                         (unsigned long long)count, (unsigned long long)size, what);
    uint8_t *old;
    memcpy(&old, array, sizeof old);
    uint8_t *grown = realloc(old, (size_t)n_bytes);
    if (!grown)
        return fail_bytes(n_bytes, what);
    uint64_t used_bytes = *capacity * size;
    memset(grown + used_bytes, 0, (size_t)(n_bytes - used_bytes));
    store(array, grown);
    *capacity = count;
    return WINA_OK;
}

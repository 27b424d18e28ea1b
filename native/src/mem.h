/* mem: sizes that cannot wrap, and allocations that say what failed. */
#ifndef WINA_MEM_H
#define WINA_MEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* *out = a * b (a + b); false if the result does not fit, *out is then unspecified. */
static inline bool wina_mem_mul(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool wina_mem_add(uint64_t a, uint64_t b, uint64_t *out) {
    return !__builtin_add_overflow(a, b, out);
}

/* Zeroed memory for count elements of size bytes; what names it in the error text. *out is NULL on
 * failure (WINA_E_MEMORY). count == 0 gives a valid pointer. Free with free(). */
int32_t wina_mem_create(uint64_t count, uint64_t size, const char *what, void *out);

#define WINA_MEM_HUGE_PAGE (2ull << 20)

/* Like wina_mem_create, with a start aligned to 64 bytes. From 4 MiB on the memory is mapped, in
 * huge pages where the system gives them. Free with wina_mem_free_big and the same size. */
int32_t wina_mem_create_big(uint64_t n_bytes, const char *what, void *out);
void wina_mem_free_big(void *memory, uint64_t n_bytes);
/* The system takes its pages back, and the content with them; small blocks stay as they are. */
void wina_mem_drop_big(void *memory, uint64_t n_bytes);
/* What stays of it. */
/* The same for whole pages inside any part of a block, or of a file that is mapped, which is read
 * again when it is needed. */
void wina_mem_drop_part(void *memory, uint64_t n_bytes);
uint64_t wina_mem_undropped(uint64_t n_bytes);

/* Grows *array (n used, *capacity allocated elements of size bytes) to hold at least want elements;
 * doubling. On failure the array is left as it was. */
int32_t wina_mem_grow(void *array, uint64_t *capacity, uint64_t want, uint64_t size,
                      const char *what);

#endif

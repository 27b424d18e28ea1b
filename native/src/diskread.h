/* diskread: many pieces of a file read at once, past the page cache. A disk is fast at small pieces
 * only if it has many of them to do, and if each lies together in memory: the pieces go to buffers
 * in huge pages. Where the system has no io_uring they are read one after the other. */
#ifndef WINA_DISKREAD_H
#define WINA_DISKREAD_H

#include <stdint.h>

typedef struct wina_diskread wina_diskread;

enum { WINA_DISKREAD_LONGEST = 128 << 10 }; /* bytes of a piece at most */

int32_t wina_diskread_create(const char *path, wina_diskread **out);
void wina_diskread_free(wina_diskread *d); /* accepts NULL */
uint64_t wina_diskread_memory(void);       /* bytes that one holds */

typedef struct wina_diskread_piece {
    uint64_t offset;
    uint32_t n_bytes;
    uint32_t tag; /* the caller's */
} wina_diskread_piece;

/* Reads n pieces; calls use() for each in the order in which they come. The data is there until
 * use() returns. */
int32_t wina_diskread_run(wina_diskread *d, const wina_diskread_piece *pieces, uint64_t n,
                          void (*use)(const wina_diskread_piece *piece, const uint8_t *data,
                                      void *user),
                          void *user);

#endif

/* diskread: many pieces of a file read at once, past the page cache. A disk is fast at small pieces
 * only if it has many of them to do, and if each lies together in memory: the pieces go to buffers
 * in huge pages. Where the system has no io_uring they are read one after the other. */
#ifndef WINA_DISKREAD_H
#define WINA_DISKREAD_H

#include "mapfile.h"

typedef struct wina_diskread wina_diskread;

enum { WINA_DISKREAD_LONGEST = 128 << 10, WINA_DISKREAD_DEEPEST = 256 };

/* The most pieces of a run (more than WINA_DISKREAD_DEEPEST take turns) and the longest of them;
 * over WINA_DISKREAD_LONGEST nothing is gained. */
typedef struct wina_diskread_size {
    uint64_t n_pieces, n_bytes;
} wina_diskread_size;

/* Bytes that a reader holds, from its beginning. */
uint64_t wina_diskread_memory(const wina_diskread_size *size);
/* The path must lead to the file that is mapped. */
int32_t wina_diskread_create(const char *path, const wina_mapfile *map,
                             const wina_diskread_size *size, wina_diskread **out);
void wina_diskread_free(wina_diskread *d); /* accepts NULL */
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

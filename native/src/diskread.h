/* diskread: many pieces of a file read at once, past the page cache, straight to where they are
 * wanted. A disk is fast at small pieces only if it has many of them to do, and if each lies
 * together in memory (in huge pages, say). Where the system has no io_uring they are read one after
 * the other. */
#ifndef WINA_DISKREAD_H
#define WINA_DISKREAD_H

#include <stdbool.h>

#include "mapfile.h"

typedef struct wina_diskread wina_diskread;

enum { WINA_DISKREAD_ALIGN = 4096 }; /* what is read begins and ends within multiples of it */

/* The path must lead to the file that is mapped. */
int32_t wina_diskread_create(const char *path, const wina_mapfile *map, wina_diskread **out);
void wina_diskread_free(wina_diskread *d); /* accepts NULL */

typedef struct wina_diskread_piece {
    uint64_t offset;
    uint8_t *to;      /* congruent to offset modulo WINA_DISKREAD_ALIGN */
    uint32_t n_bytes; /* what else of the file is in the blocks they touch is read too */
    uint32_t tag;     /* the caller's */
} wina_diskread_piece;

/* What the caller does besides. */
typedef struct wina_diskread_user {
    void (*use)(const wina_diskread_piece *piece, void *user); /* for each, as they come */
    /* Some work while pieces are under way and none has come; false: there is none just now. What
     * it has left to do at the end, all of it perhaps, it does then. */
    bool (*work)(void *user);
    void *user;
} wina_diskread_user;

/* Reads n pieces. Where that fails what they lead to is undefined, and no piece is under way unless
 * the message says that one does not come back. */
int32_t wina_diskread_run(wina_diskread *d, const wina_diskread_piece *pieces, uint64_t n,
                          const wina_diskread_user *user);

#endif

/* mapfile: a whole file mapped read-only. A file that is cut short while it is mapped makes
 * reads of the lost pages fail with SIGBUS: that is what the system gives, and it is documented. */
#ifndef WINA_MAPFILE_H
#define WINA_MAPFILE_H

#include <stdint.h>

typedef struct wina_mapfile {
    const uint8_t *data; /* n_bytes; NULL if nothing is mapped */
    uint64_t n_bytes;
    uint64_t device, inode; /* which file it is */
} wina_mapfile;

/* Errors name the path: missing, a directory, empty, not readable. */
int32_t wina_mapfile_open(const char *path, wina_mapfile *out);

/* Tells the system that [offset, offset + n_bytes) is not needed any more (its pages leave our
 * resident set; they can be read again from the file). */
void wina_mapfile_release(const wina_mapfile *map, uint64_t offset, uint64_t n_bytes);

/* Accepts a map that was never opened. */
void wina_mapfile_close(wina_mapfile *map);

#endif

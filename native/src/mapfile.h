/* mapfile: a whole file mapped read-only. What others write into the file shows in the mapping, and
 * reads of pages that are cut off end in SIGBUS; so whoever reads asks before and afterwards
 * whether the file is as it was. Only one that is cut short in between still meets SIGBUS
 * (documented). */
#ifndef WINA_MAPFILE_H
#define WINA_MAPFILE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct wina_mapfile {
    const uint8_t *data; /* n_bytes; NULL if nothing is mapped */
    uint64_t n_bytes;
    uint64_t device, inode; /* which file it is */
    bool watched;           /* the rest is known */
    int fd;                 /* open as long as the mapping: the path may lead elsewhere by then */
    int64_t changed_s, changed_ns; /* when it was last written to */
} wina_mapfile;

/* Errors name the path: missing, a directory, empty, not readable. */
int32_t wina_mapfile_open(const char *path, wina_mapfile *out);

/* WINA_E_IO if the file has another size now or was written to; one that is deleted, or replaced by
 * another under its name, is mapped as it was. */
int32_t wina_mapfile_check(const wina_mapfile *map);

/* Tells the system that [offset, offset + n_bytes) is not needed any more (its pages leave our
 * resident set; they can be read again from the file). */
void wina_mapfile_release(const wina_mapfile *map, uint64_t offset, uint64_t n_bytes);

/* Accepts a map that was never opened. */
void wina_mapfile_close(wina_mapfile *map);

#endif

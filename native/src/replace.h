/* replace: writing a file whole or not at all. It is written under a temporary name in the target's
 * folder, flushed and renamed, and the folder is flushed, so that the target is absent, old or
 * complete whenever the writer is killed. A writer holds a lock on its temporary file; those of
 * killed writers have none and are removed when the same target is written again. Names and locks
 * are those of pywina/_replace.py: each side cleans up after the other.
 */
#ifndef WINA_REPLACE_H
#define WINA_REPLACE_H

#include <stdint.h>

typedef struct wina_replace {
    char *path; /* the target */
    char *part; /* the temporary file */
    int fd;     /* open for reading and writing, locked */
    int folder; /* open from the start: a want of descriptors must not come after the renaming */
} wina_replace;

/* Creates the temporary file. After WINA_OK, end with commit or abort. */
int32_t wina_replace_begin(const char *path, wina_replace *out);

/* The temporary file becomes the target; nothing is left of it after a failure. */
int32_t wina_replace_commit(wina_replace *r);
void wina_replace_abort(wina_replace *r);

#endif

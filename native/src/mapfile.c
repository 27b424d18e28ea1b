/* mapfile: opening and mapping, with the reasons why it can fail told apart. The descriptor
 * is kept to see whether the file is written to. */
#include "mapfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "status.h"

static int32_t fail_errno(const char *path, const char *doing, int error) {
    return wina_fail(WINA_E_IO, "%s: cannot %s: %s", path, doing, strerror(error));
}

static int32_t map_descriptor(const char *path, int fd, wina_mapfile *out) {
    struct stat st;
    if (fstat(fd, &st) != 0)
        return fail_errno(path, "read its size", errno);
    if (S_ISDIR(st.st_mode))
        return wina_fail(WINA_E_IO, "%s: is a directory, not a file", path);
    if (!S_ISREG(st.st_mode))
        return wina_fail(WINA_E_IO, "%s: is not a regular file", path);
    if (st.st_size <= 0)
        return wina_fail(WINA_E_FORMAT, "%s: the file is empty", path);
    if ((uint64_t)st.st_size > PTRDIFF_MAX)
        return wina_fail(WINA_E_IO, "%s: %lld bytes are too many to map", path,
                         (long long)st.st_size);
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return fail_errno(path, "map it", errno);
    out->data = data;
    out->n_bytes = (uint64_t)st.st_size;
    out->device = (uint64_t)st.st_dev;
    out->inode = (uint64_t)st.st_ino;
    out->changed_s = st.st_mtim.tv_sec;
    out->changed_ns = st.st_mtim.tv_nsec;
    out->fd = fd;
    out->watched = true;
    return WINA_OK;
}

int32_t wina_mapfile_open(const char *path, wina_mapfile *out) {
    *out = (wina_mapfile){0};
    if (!path || !path[0])
        return wina_fail(WINA_E_ARGUMENT, "no file name given");
    /* O_NONBLOCK: opening a pipe must fail below, not wait here for a writer. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return fail_errno(path, "open it", errno);
    int32_t status = map_descriptor(path, fd, out);
    if (status != WINA_OK)
        close(fd);
    return status;
}

int32_t wina_mapfile_check(const wina_mapfile *map) {
    struct stat st;
    if (!map->watched)
        return WINA_OK;
    if (fstat(map->fd, &st) != 0)
        return wina_fail(WINA_E_IO, "the model's file cannot be looked at: %s", strerror(errno));
    if ((uint64_t)st.st_size < map->n_bytes)
        return wina_fail(WINA_E_IO,
                         "the model's file was cut short to %lld bytes after it was opened with "
                         "%llu: load it again",
                         (long long)st.st_size, (unsigned long long)map->n_bytes);
    if ((uint64_t)st.st_size != map->n_bytes || st.st_mtim.tv_sec != map->changed_s ||
        st.st_mtim.tv_nsec != map->changed_ns)
        return wina_fail(WINA_E_IO,
                         "the model's file was changed after it was opened: load it again");
    return WINA_OK;
}

void wina_mapfile_release(const wina_mapfile *map, uint64_t offset, uint64_t n_bytes) {
    if (!map->data || offset > map->n_bytes || n_bytes > map->n_bytes - offset)
        return;
    /* Only pages that lie inside the range whole. */
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t start = (offset + page - 1) & ~(page - 1);
    uint64_t end = (offset + n_bytes) & ~(page - 1);
    if (offset + n_bytes == map->n_bytes)
        end = (map->n_bytes + page - 1) & ~(page - 1);
    if (start < end)
        madvise((void *)(uintptr_t)(map->data + start), (size_t)(end - start), MADV_DONTNEED);
}

void wina_mapfile_close(wina_mapfile *map) {
    if (map->data)
        munmap((void *)(uintptr_t)map->data, (size_t)map->n_bytes);
    if (map->watched)
        close(map->fd);
    map->watched = false;
    map->data = NULL;
    map->n_bytes = 0;
}

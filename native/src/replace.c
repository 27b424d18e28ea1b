#include "replace.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "mem.h"
#include "status.h"

enum { TRIES = 16 };

static int32_t fail_errno(const char *path, const char *doing) {
    char text[96];
    return wina_fail(WINA_E_IO, "%s: cannot %s: %s", path, doing,
                     strerror_r(errno, text, sizeof text));
}

static const char *base_of(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

/* Bytes of the folder in a path, its slash included. */
static int folder_bytes(const char *path) {
    return (int)(base_of(path) - path);
}

static int open_folder(const char *path) {
    char *folder = NULL;
    int n = folder_bytes(path);
    if (wina_mem_create((uint64_t)n + 2, 1, "file name", &folder) != WINA_OK) {
        errno = ENOMEM;
        return -1;
    }
    snprintf(folder, (size_t)n + 2, "%.*s", n ? n : 1, n ? path : ".");
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    free(folder);
    return fd;
}

/* ".NAME.*.tmp" for the target NAME. */
static int is_part_of(const char *entry, const char *base) {
    size_t n = strlen(entry), n_base = strlen(base);
    return n > n_base + 6 && entry[0] == '.' && memcmp(entry + 1, base, n_base) == 0 &&
           entry[1 + n_base] == '.' && strcmp(entry + n - 4, ".tmp") == 0;
}

/* Failures are of no consequence: what is left stays left. */
static void remove_stale(int folder, const char *path) {
    int own = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *entries = own < 0 ? NULL : fdopendir(own);
    if (!entries) {
        if (own >= 0)
            close(own);
        return;
    }
    for (struct dirent *e; (e = readdir(entries));) {
        if (!is_part_of(e->d_name, base_of(path)))
            continue;
        int fd = openat(folder, e->d_name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        struct stat st;
        /* The lock fails while its writer lives. Folders are left to the side that makes them. */
        if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &st) == 0 &&
            S_ISREG(st.st_mode))
            unlinkat(folder, e->d_name, 0);
        if (fd >= 0)
            close(fd);
    }
    closedir(entries);
}

static uint64_t draw(const void *salt) {
    uint64_t number = 0;
    if (getrandom(&number, sizeof number, GRND_NONBLOCK) != (ssize_t)sizeof number) {
        struct timespec now = {0, 0};
        clock_gettime(CLOCK_REALTIME, &now);
        number = (uint64_t)(uintptr_t)salt ^ (uint64_t)now.tv_nsec << 32 ^ (uint64_t)getpid();
    }
    return number;
}

static int32_t create(wina_replace *r) {
    const int n = folder_bytes(r->path);
    const size_t cap = strlen(r->path) + 32;
    WINA_TRY(wina_mem_create(cap, 1, "file name", &r->part));
    for (int i = 0; i < TRIES; i++) {
        snprintf(r->part, cap, "%.*s.%s.%016llx.tmp", n, r->path, base_of(r->path),
                 (unsigned long long)draw(r));
        r->fd = open(r->part, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (r->fd < 0 && (errno == EEXIST || errno == EINTR))
            continue;
        struct stat st;
        if (r->fd < 0)
            return fail_errno(r->path, "create a file beside it");
        if (flock(r->fd, LOCK_EX) != 0 || fstat(r->fd, &st) != 0) {
            int32_t status = fail_errno(r->path, "lock a file beside it");
            unlink(r->part);
            return status; /* the caller closes it */
        }
        if (st.st_nlink > 0) /* else another writer took it for stale before the lock */
            return WINA_OK;
        close(r->fd);
        r->fd = -1;
    }
    return wina_fail(WINA_E_IO, "%s: cannot create a file beside it", r->path);
}

static void forget(wina_replace *r) {
    if (r->fd >= 0)
        close(r->fd); /* and its lock: nobody may take the file for stale before it has its name */
    if (r->folder >= 0)
        close(r->folder);
    free(r->path);
    free(r->part);
    *r = (wina_replace){.fd = -1, .folder = -1};
}

int32_t wina_replace_begin(const char *path, wina_replace *out) {
    *out = (wina_replace){.fd = -1, .folder = -1};
    if (!path || !path[0])
        return wina_fail(WINA_E_ARGUMENT, "no file name given");
    const size_t n = strlen(path) + 1;
    WINA_TRY(wina_mem_create(n, 1, "file name", &out->path));
    memcpy(out->path, path, n);
    out->folder = open_folder(path);
    int32_t status = out->folder < 0 ? fail_errno(path, "open its folder") : WINA_OK;
    if (status == WINA_OK) {
        remove_stale(out->folder, path);
        status = create(out);
    }
    if (status != WINA_OK)
        forget(out);
    return status;
}

void wina_replace_abort(wina_replace *r) {
    unlink(r->part);
    forget(r);
}

int32_t wina_replace_commit(wina_replace *r) {
    int32_t status = WINA_OK;
    if (fsync(r->fd) != 0)
        status = fail_errno(r->path, "write it");
    else if (rename(r->part, r->path) != 0)
        status = fail_errno(r->path, "replace it");
    if (status != WINA_OK) {
        wina_replace_abort(r);
        return status;
    }
    /* The file is whole; what can still be lost is its name. */
    if (fsync(r->folder) != 0 && errno != EINVAL)
        status = fail_errno(r->path, "flush its folder");
    forget(r);
    return status;
}

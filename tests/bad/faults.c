/* A library for LD_PRELOAD that makes the n-th call of a kind fail once it is told to. File calls
 * count wherever in the process they come from; allocations and threads only if libwina asks for
 * them, since the interpreter's own are not ours to test. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MEMORY, THREAD, OPEN, READ, WRITE, SYNC, RENAME, MAP, SHORT };

static atomic_int armed = -1, fault_errno, n_fired;
static atomic_long countdown;
static uintptr_t ours_begin, ours_end;

void fault_arm(int kind, long n, int error);
int fault_disarm(void);
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t count, size_t n);
void *__libc_realloc(void *old, size_t n);
void *__libc_memalign(size_t alignment, size_t n);

static int find_ours(struct dl_phdr_info *info, size_t n, void *user) {
    (void)n, (void)user;
    if (!strstr(info->dlpi_name, "libwina.so"))
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (p->p_type == PT_LOAD && p->p_flags & PF_X) {
            ours_begin = info->dlpi_addr + p->p_vaddr;
            ours_end = ours_begin + p->p_memsz;
        }
    }
    return 1;
}

/* n <= 0 counts nothing; SHORT concerns every call until disarmed. */
void fault_arm(int kind, long n, int error) {
    dl_iterate_phdr(find_ours, NULL);
    n_fired = 0;
    fault_errno = error;
    countdown = n;
    armed = kind;
}

/* How many calls failed. */
int fault_disarm(void) {
    armed = -1;
    return n_fired;
}

static int fails(int kind) {
    if (armed != kind || countdown <= 0 || --countdown != 0)
        return 0;
    n_fired++;
    errno = fault_errno;
    return 1;
}

static int asked_by_us(const void *caller) {
    return (uintptr_t)caller >= ours_begin && (uintptr_t)caller < ours_end;
}

#define OURS asked_by_us(__builtin_return_address(0))

void *malloc(size_t n) {
    return armed == MEMORY && OURS && fails(MEMORY) ? NULL : __libc_malloc(n);
}

void *calloc(size_t count, size_t n) {
    return armed == MEMORY && OURS && fails(MEMORY) ? NULL : __libc_calloc(count, n);
}

void *realloc(void *old, size_t n) {
    return armed == MEMORY && OURS && fails(MEMORY) ? NULL : __libc_realloc(old, n);
}

void *aligned_alloc(size_t alignment, size_t n) {
    return armed == MEMORY && OURS && fails(MEMORY) ? NULL : __libc_memalign(alignment, n);
}

int posix_memalign(void **out, size_t alignment, size_t n) {
    if (armed == MEMORY && OURS && fails(MEMORY))
        return ENOMEM;
    *out = __libc_memalign(alignment, n);
    return *out ? 0 : ENOMEM;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                   void *user) {
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    return armed == THREAD && OURS && fails(THREAD) ? EAGAIN : real(thread, attributes, run, user);
}

static int open_at(int folder, const char *path, int flags, int mode) {
    return fails(OPEN) ? -1 : (int)syscall(SYS_openat, folder, path, flags, mode);
}

#define MODE                                                                                       \
    int mode = 0;                                                                                  \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                           \
        va_list args;                                                                              \
        va_start(args, flags);                                                                     \
        mode = va_arg(args, int);                                                                  \
        va_end(args);                                                                              \
    }

int open(const char *path, int flags, ...) {
    MODE return open_at(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE return open_at(AT_FDCWD, path, flags, mode);
}

int openat(int folder, const char *path, int flags, ...) {
    MODE return open_at(folder, path, flags, mode);
}

int openat64(int folder, const char *path, int flags, ...) {
    MODE return open_at(folder, path, flags, mode);
}

static size_t shortened(size_t n) {
    if (armed != SHORT || n < 2)
        return n;
    n_fired++;
    return n / 2;
}

ssize_t read(int fd, void *out, size_t n) {
    return fails(READ) ? -1 : syscall(SYS_read, fd, out, shortened(n));
}

ssize_t write(int fd, const void *data, size_t n) {
    return fails(WRITE) ? -1 : syscall(SYS_write, fd, data, shortened(n));
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at) {
    return fails(WRITE) ? -1 : syscall(SYS_pwrite64, fd, data, shortened(n), at);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) {
    return fails(WRITE) ? -1 : syscall(SYS_pwrite64, fd, data, shortened(n), at);
}

int ftruncate(int fd, off_t n) {
    return fails(WRITE) ? -1 : (int)syscall(SYS_ftruncate, fd, n);
}

int ftruncate64(int fd, off64_t n) {
    return fails(WRITE) ? -1 : (int)syscall(SYS_ftruncate, fd, n);
}

int fsync(int fd) {
    return fails(SYNC) ? -1 : (int)syscall(SYS_fsync, fd);
}

int rename(const char *from, const char *to) {
    return fails(RENAME) ? -1 : (int)syscall(SYS_rename, from, to);
}

/* Maps of files only: the allocator's own are MEMORY. */
void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    if (fd >= 0 && fails(MAP))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, n, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t n, int protection, int flags, int fd, off64_t offset) {
    return mmap(at, n, protection, flags, fd, offset);
}

/* diskread: many pieces give what the file has, whatever the system does meanwhile: no io_uring,
 * calls that fail, reads that are short, fail or never end. The calls are wrapped by the linker
 * (Makefile); what the kernel is asked for is changed in its queue. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "diskread.h"
#include "wina.h"

/* SHORT, BAD and STUCK change an entry of the queue: fewer bytes, a wrong descriptor, a pipe that
 * has nothing. */
typedef enum kind {
    NONE,
    SETUP,
    ENTER,
    SHORT,
    BAD,
    STUCK,
    READ,
    SHORT_READ,
    DIRECT,
    MAPPING,
    STATX,
    BLOCKS
} kind;

static struct {
    kind kind;
    long countdown;
    int error;
    bool forever; /* every one from then on */
    int n_fired;
} fault;

static int ring = -1, stuck = -1;
static uint8_t *params, *queue, *entries;
static long mapped; /* bytes */
static int n_naps;
static bool opened_direct;

static bool fails(kind k) {
    if (k != fault.kind || fault.countdown <= 0 || --fault.countdown != 0)
        return false;
    fault.countdown = fault.forever;
    fault.n_fired++;
    errno = fault.error;
    return true;
}

long __real_syscall(long number, ...);
ssize_t __real_pread(int fd, void *to, size_t n, off_t at);
int __real_open(const char *path, int flags, ...);
void *__real_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t n);
int __real_nanosleep(const struct timespec *wanted, struct timespec *left);
long __wrap_syscall(long number, ...);
ssize_t __wrap_pread(int fd, void *to, size_t n, off_t at);
int __wrap_open(const char *path, int flags, ...);
void *__wrap_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t n);
int __wrap_nanosleep(const struct timespec *wanted, struct timespec *left);

static uint32_t get(const uint8_t *at) {
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

/* What is new in the queue. Offsets are those of linux/io_uring.h. */
static void change_entries(uint32_t n) {
    const uint32_t tail = get(queue + get(params + 44)), mask = get(queue + get(params + 48));
    for (uint32_t i = 0; i < n; i++) {
        uint8_t *e = entries + (size_t)((tail - n + i) & mask) * 64;
        if (fails(SHORT))
            memcpy(e + 24, &(uint32_t){512}, 4);
        if (fails(BAD))
            memcpy(e + 4, &(int32_t){-1}, 4);
        if (fails(STUCK)) {
            memcpy(e + 4, &stuck, 4);
            memcpy(e + 8, &(int64_t){-1}, 8);
        }
    }
}

long __wrap_syscall(long number, ...) {
    va_list args;
    long a[6];
    va_start(args, number);
    for (int i = 0; i < 2; i++)
        a[i] = va_arg(args, long);
    if (number == SYS_io_uring_setup) {
        va_end(args);
        if (fails(SETUP))
            return -1;
        params = (uint8_t *)a[1]; /* NOLINT: as it was given */
        ring = (int)__real_syscall(number, (unsigned)a[0], params);
        return ring;
    }
    for (int i = 2; i < 6; i++)
        a[i] = va_arg(args, long);
    va_end(args);
    if (number == SYS_statx) {
        if (fails(STATX))
            return -1;
        const long done = __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
        if (fails(BLOCKS)) /* stx_dio_mem_align, of linux/stat.h */
            memcpy((uint8_t *)a[4] + 152, &(uint32_t){3}, 4); /* NOLINT: as it was given */
        return done;
    }
    if (number == SYS_io_uring_enter) {
        if (fails(ENTER))
            return -1;
        if (fault.kind == STUCK && fault.n_fired) { /* and now the queue fails */
            errno = fault.error;
            return -1;
        }
        change_entries((uint32_t)a[1]);
    }
    return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

ssize_t __wrap_pread(int fd, void *to, size_t n, off_t at) {
    if (fails(READ))
        return -1;
    return __real_pread(fd, to, n > 512 && fails(SHORT_READ) ? n / 1024 * 512 : n, at);
}

int __wrap_open(const char *name, int flags, ...) {
    const int fd = flags & O_DIRECT && fails(DIRECT) ? -1 : __real_open(name, flags);
    opened_direct = fd >= 0 && flags & O_DIRECT;
    return fd;
}

void *__wrap_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    if (fails(MAPPING))
        return MAP_FAILED;
    uint8_t *p = __real_mmap(at, n, protection, flags, fd, offset);
    if (p == MAP_FAILED)
        return p;
    mapped += check_whole_pages(n);
    if (fd >= 0 && fd == ring && offset == 0)
        queue = p;
    if (fd >= 0 && fd == ring && offset == 0x10000000)
        entries = p;
    return p;
}

int __wrap_munmap(void *at, size_t n) {
    mapped -= check_whole_pages(n);
    return __real_munmap(at, n);
}

int __wrap_nanosleep(const struct timespec *wanted, struct timespec *left) {
    n_naps++;
    return fault.kind == STUCK ? 0 : __real_nanosleep(wanted, left);
}

/* ---- reading ------------------------------------------------------------------------------ */

enum { N_PIECES = 700, N_BYTES = (3 << 20) + 1234, LONGEST = 128 << 10 };

static char path[128];
static uint8_t *content;
static uint8_t *target; /* as long as the file in whole blocks, and aligned like it */
static wina_mapfile map;
static wina_diskread_piece pieces[N_PIECES];
static uint8_t seen[N_PIECES];
static int n_wrong, n_worked;
static bool has_ring;

/* Now and then there is nothing to do. */
static bool work(void *user) {
    CHECK(user == content);
    return ++n_worked % 3 != 0;
}

static void use(const wina_diskread_piece *piece, void *user) {
    CHECK(user == content);
    n_wrong +=
        seen[piece->tag]++ || memcmp(piece->to, content + piece->offset, piece->n_bytes) != 0;
}

static int32_t run(wina_diskread *d, const wina_diskread_piece *some, uint64_t n) {
    const wina_diskread_user user = {use, work, content};
    memset(target, 0, N_BYTES);
    memset(seen, 0, sizeof seen);
    n_wrong = n_worked = 0;
    return wina_diskread_run(d, some, n, &user);
}

static int32_t read_all(wina_diskread *d) {
    int n_seen = 0;
    const int32_t status = run(d, pieces, N_PIECES);
    for (int i = 0; i < N_PIECES; i++)
        n_seen += seen[i];
    CHECK_MSG(n_wrong == 0, "%d pieces are wrong or came twice", n_wrong);
    CHECK((n_seen == N_PIECES) == (status == WINA_OK));
    return status;
}

static void arm(kind k, long n, int error, bool forever) {
    fault.kind = k, fault.countdown = n, fault.error = error, fault.forever = forever;
    fault.n_fired = 0;
}

static int count_descriptors(void) {
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

/* A reader in whose first run a fault comes; reason NULL: it must survive it. A second one is
 * without. Returns how often it came. */
static int try(kind k, long n, int error, bool forever, const char *reason) {
    const int descriptors = count_descriptors();
    const long before = mapped;
    wina_diskread *d = NULL;
    const bool early = k == SETUP || k == MAPPING || k == DIRECT || k == STATX || k == BLOCKS;
    arm(early ? k : NONE, n, error, forever);
    int32_t status = wina_diskread_create(path, &map, &d);
    int fired = fault.n_fired;
    if (!early)
        arm(k, n, error, forever);
    if (status == WINA_OK)
        status = read_all(d);
    fired += early ? 0 : fault.n_fired;
    arm(NONE, 0, 0, false);
    CHECK_MSG((status != WINA_OK) == (fired && reason), "kind %d, %ld, %d: %s", (int)k, n, error,
              wina_error());
    if (status != WINA_OK && reason)
        CHECK_MSG(strstr(wina_error(), reason) != NULL, "'%s' does not say '%s'", wina_error(),
                  reason);
    if (d && k != STUCK)
        CHECK_MSG(read_all(d) == WINA_OK, "kind %d, %ld, %d: broken: %s", (int)k, n, error,
                  wina_error());
    if (d && k == STUCK && fired)
        CHECK(read_all(d) != WINA_OK && strstr(wina_error(), "have not come back"));
    wina_diskread_free(d);
    CHECK_MSG(mapped == before, "kind %d, %ld: %ld bytes stay mapped", (int)k, n, mapped - before);
    CHECK_MSG(count_descriptors() == descriptors, "kind %d, %ld: descriptors leak", (int)k, n);
    return fired;
}

static void test_faults(void) {
    CHECK(try(NONE, 0, 0, false, NULL) == 0);
    CHECK(try(SETUP, 1, ENOSYS, false, NULL) == 1);
    CHECK(try(DIRECT, 1, EINVAL, false, NULL) == 1);
    CHECK(try(STATX, 1, ENOSYS, false, NULL) == 1);
    CHECK(try(BLOCKS, 1, 0, false, NULL) == 1);
    if (!has_ring)
        return;
    /* A ring of which a part could not be mapped was once unmapped twice. */
    for (long n = 1; n <= 3; n++)
        CHECK(try(MAPPING, n, ENOMEM, false, NULL) == 1);
    static const int SURVIVED[] = {EINTR, EAGAIN, EBUSY, ENOMEM, EINVAL, EBADF};
    for (size_t i = 0; i < sizeof SURVIVED / sizeof SURVIVED[0]; i++) {
        long n = 1;
        while (n < 1000 && try(ENTER, n, SURVIVED[i], false, NULL))
            n++;
        CHECK(n > 3 && n < 1000);
    }
    CHECK(try(ENTER, 1, EAGAIN, true, NULL) > 0);
    CHECK(try(ENTER, 3, ENOMEM, true, NULL) > 0);
    for (long n = 1; n <= N_PIECES; n += 37) {
        CHECK(try(SHORT, n, 0, false, NULL) == 1);
        CHECK(try(BAD, n, 0, false, NULL) == 1);
    }
    CHECK(try(SHORT, 1, 0, true, NULL) == N_PIECES);
    CHECK(try(BAD, 300, 0, true, NULL) == N_PIECES - 299);
}

/* Where the system's queue is of no use, and where a piece failed in it. */
static void test_one_by_one(void) {
    wina_diskread *d = NULL;
    arm(SETUP, 1, EPERM, false);
    CHECK(wina_diskread_create(path, &map, &d) == WINA_OK);
    for (long n = 1; d && n <= N_PIECES; n += 41) {
        arm(READ, n, EINTR, false);
        CHECK(read_all(d) == WINA_OK && fault.n_fired == 1);
        arm(SHORT_READ, 1 + n / 2, 0, n == 1); /* reads of one block are not counted */
        CHECK(read_all(d) == WINA_OK && fault.n_fired >= 1);
        arm(READ, n, EIO, false);
        CHECK(read_all(d) == WINA_E_IO && strstr(wina_error(), "Input/output error"));
        CHECK(read_all(d) == WINA_OK);
    }
    arm(READ, 5, EINVAL, false); /* no reads past the page cache, or not such ones */
    CHECK(read_all(d) == (opened_direct ? WINA_OK : WINA_E_IO));
    wina_diskread_free(d);
}

/* None, one and a few. */
static void test_few(void) {
    wina_diskread *d = NULL;
    CHECK(wina_diskread_create(path, &map, &d) == WINA_OK);
    for (uint64_t n = 0; d && n < 40; n += 13)
        CHECK(run(d, pieces + 1, n) == WINA_OK && n_wrong == 0);
    wina_diskread_free(d);
}

static void make_file(const char *name, size_t n) {
    FILE *f = fopen(name, "wb");
    CHECK(f && fwrite(content, 1, n, f) == n && fclose(f) == 0);
}

/* Cut short, replaced or gone since it was mapped. */
static void test_other_files(void) {
    for (int one_by_one = 0; one_by_one < 2; one_by_one++) {
        wina_diskread *d = NULL;
        arm(one_by_one ? SETUP : NONE, 1, ENOSYS, false);
        CHECK(wina_diskread_create(path, &map, &d) == WINA_OK);
        CHECK(truncate(path, N_BYTES / 2) == 0);
        CHECK(read_all(d) == WINA_E_IO && strstr(wina_error(), "has become shorter"));
        FILE *f = fopen(path, "r+b");
        CHECK(f && fwrite(content, 1, N_BYTES, f) == N_BYTES && fclose(f) == 0);
        CHECK(read_all(d) == WINA_OK);
        wina_diskread_free(d);
    }
    char other[160];
    wina_diskread *d = NULL;
    snprintf(other, sizeof other, "%s.other", path);
    make_file(other, N_BYTES);
    CHECK(rename(other, path) == 0);
    CHECK(wina_diskread_create(path, &map, &d) == WINA_E_IO && !d);
    CHECK(strstr(wina_error(), "is not the file that was loaded") && strstr(wina_error(), path));
    CHECK(unlink(path) == 0);
    CHECK(wina_diskread_create(path, &map, &d) == WINA_E_IO && !d);
    CHECK(strstr(wina_error(), "No such file"));
}

int main(void) {
    unsigned long long random = 7;
    const char *folder = getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp";
    snprintf(path, sizeof path, "%s/test_diskread_%ld", folder, (long)getpid());
    content = malloc(N_BYTES);
    target = aligned_alloc(WINA_DISKREAD_ALIGN,
                           (N_BYTES / WINA_DISKREAD_ALIGN + 1) * (size_t)WINA_DISKREAD_ALIGN);
    for (size_t i = 0; i < N_BYTES; i++)
        content[i] = (uint8_t)check_random(&random);
    make_file(path, N_BYTES);
    for (uint32_t i = 0; i < N_PIECES; i++) {
        const uint64_t most = i % 50 ? 6000 : LONGEST;
        const uint32_t n = 1 + (uint32_t)(check_random(&random) % most);
        const uint64_t offset = i == 3   ? N_BYTES - n /* the last byte */
                                : i == 4 ? 0
                                         : check_random(&random) % (N_BYTES - n + 1);
        pieces[i] = (wina_diskread_piece){offset, target + offset, n, i};
    }
    CHECK(wina_mapfile_open(path, &map) == WINA_OK);
    try(NONE, 0, 0, false, NULL);
    has_ring = ring >= 0;
    if (!has_ring)
        printf("skipped: the system has no io_uring here, reads are one by one\n");
    test_faults();
    test_one_by_one();
    test_few();
    if (has_ring) {
        int ends[2];
        CHECK(pipe(ends) == 0);
        stuck = ends[0];
        CHECK(try(STUCK, 10, EINVAL, false, "does not come back") == 1 && n_naps > 1000);
        close(ends[0]), close(ends[1]);
    }
    test_other_files();
    wina_mapfile_close(&map);
    unlink(path);
    free(content);
    free(target);
    return check_report("test_diskread");
}

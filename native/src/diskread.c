#include "diskread.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "mem.h"
#include "status.h"

enum {
    DEPTH = 256,                 /* pieces under way */
    TOGETHER = 32,               /* completions waited for */
    PATIENCE = 100000,           /* times 0.1 ms, for a ring that is given up */
    OP_READ = 22,                /* IORING_OP_READ */
    ENTER_WAIT = 1,              /* IORING_ENTER_GETEVENTS */
    BLOCK = WINA_DISKREAD_ALIGN, /* where the system does not say what reads are multiples of */
    STATX_ALIGN = 0x2000,        /* STATX_DIOALIGN */
    MAP_QUEUE = 0,
    MAP_DONE = 0x8000000,
    MAP_ENTRIES = 0x10000000 /* IORING_OFF_* */
};

/* The kernel's interfaces, linux/io_uring.h and linux/stat.h, which C libraries other than glibc
 * come without. */
typedef struct ring_entry {
    uint8_t opcode, flags;
    uint16_t priority;
    int32_t fd;
    uint64_t offset, address;
    uint32_t n_bytes, more_flags;
    uint64_t user, padding[3];
} ring_entry;

typedef struct ring_done {
    uint64_t user;
    int32_t result;
    uint32_t flags;
} ring_done;

typedef struct ring_params {
    uint32_t n_entries, n_done, flags, cpu, idle, features, other, reserved[3];
    struct {
        uint32_t head, tail, mask, n, flags, dropped, array, reserved;
        uint64_t address;
    } queue;
    struct {
        uint32_t head, tail, mask, n, overflow, entries, flags, reserved;
        uint64_t address;
    } done;
} ring_params;

typedef struct file_status {
    uint32_t mask, others[37];
    uint32_t memory_align, offset_align;
    uint32_t more[24];
} file_status;
_Static_assert(sizeof(ring_entry) == 64 && sizeof(ring_done) == 16 && sizeof(ring_params) == 120 &&
                   sizeof(file_status) == 256,
               "as the kernel has them");

struct wina_diskread {
    int fd, ring;   /* ring -1: pieces are read one after the other */
    uint32_t block; /* bytes that reads begin and end at multiples of */
    bool lost;      /* reads may be under way whose end is not known */
    uint8_t *queue, *done;
    size_t queue_bytes, done_bytes, entries_bytes;
    ring_entry *entries;
    ring_done *results;
    ring_params params;
};

static void *map_ring(int ring, size_t n_bytes, off_t what) {
    void *p = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, what);
    return p == MAP_FAILED ? NULL : p;
}

static void close_ring(wina_diskread *d) {
    if (d->queue)
        munmap(d->queue, d->queue_bytes);
    if (d->done)
        munmap(d->done, d->done_bytes);
    if (d->entries)
        munmap(d->entries, d->entries_bytes);
    if (d->ring >= 0)
        close(d->ring);
    d->queue = d->done = NULL;
    d->entries = NULL;
    d->ring = -1;
}

/* Without one everything works, slower: so failures are none. */
static void open_ring(wina_diskread *d) {
    ring_params *p = &d->params;
    d->ring = (int)syscall(SYS_io_uring_setup, DEPTH, p);
    if (d->ring < 0)
        return;
    d->queue_bytes = p->queue.array + p->n_entries * sizeof(uint32_t);
    d->done_bytes = p->done.entries + p->n_done * sizeof(ring_done);
    d->entries_bytes = p->n_entries * sizeof(ring_entry);
    d->queue = map_ring(d->ring, d->queue_bytes, MAP_QUEUE);
    d->done = map_ring(d->ring, d->done_bytes, MAP_DONE);
    d->entries = map_ring(d->ring, d->entries_bytes, MAP_ENTRIES);
    if (!d->queue || !d->done || !d->entries) {
        close_ring(d);
        return;
    }
    d->results = (ring_done *)(void *)(d->done + p->done.entries);
}

/* The path may lead to another file by now, and weights of two files would be mixed. */
static int32_t check_same(const char *path, int fd, const wina_mapfile *map) {
    struct stat st;
    if (fstat(fd, &st) != 0)
        return wina_fail(WINA_E_IO, "%s: cannot read its size: %s", path, strerror(errno));
    if ((uint64_t)st.st_dev != map->device || (uint64_t)st.st_ino != map->inode)
        return wina_fail(WINA_E_IO, "%s: is not the file that was loaded any more", path);
    return WINA_OK;
}

/* Columns of a few KB that lie across pages cost half as much in blocks of 512 bytes. */
static uint32_t find_block(int fd) {
    file_status s = {0};
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_ALIGN, &s, 0) != 0 ||
        !(s.mask & STATX_ALIGN))
        return BLOCK;
    const uint32_t n = s.memory_align > s.offset_align ? s.memory_align : s.offset_align;
    return n && BLOCK % n == 0 ? n : BLOCK;
}

static int32_t open_file(wina_diskread *d, const char *path, const wina_mapfile *map) {
    d->fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (d->fd < 0) /* some file systems cannot read past the page cache */
        d->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (d->fd < 0)
        return wina_fail(WINA_E_IO, "%s: cannot open it: %s", path, strerror(errno));
    d->block = find_block(d->fd);
    return check_same(path, d->fd, map);
}

int32_t wina_diskread_create(const char *path, const wina_mapfile *map, wina_diskread **out) {
    wina_diskread *d = NULL;
    *out = NULL;
    WINA_TRY(wina_mem_create(1, sizeof *d, "reading", &d));
    d->fd = d->ring = -1;
    const int32_t status = open_file(d, path, map);
    if (status != WINA_OK) {
        wina_diskread_free(d);
        return status;
    }
    open_ring(d);
    *out = d;
    return WINA_OK;
}

void wina_diskread_free(wina_diskread *d) {
    if (!d)
        return;
    close_ring(d);
    if (d->fd >= 0)
        close(d->fd);
    free(d);
}

/* What is read for a piece: whole blocks of the disk. */
static uint64_t begin_of(const wina_diskread *d, const wina_diskread_piece *p) {
    return p->offset / d->block * d->block;
}
static uint8_t *target_of(const wina_diskread *d, const wina_diskread_piece *p) {
    return p->to - (p->offset - begin_of(d, p));
}
static uint32_t size_of(const wina_diskread *d, const wina_diskread_piece *p) {
    const uint64_t end = (p->offset + p->n_bytes + d->block - 1) / d->block * d->block;
    return (uint32_t)(end - begin_of(d, p));
}

static int32_t fail_read(int64_t got) {
    return wina_fail(WINA_E_IO, "cannot read weights: %s",
                     got < 0 ? strerror((int)-got) : "the file has become shorter");
}

static bool is_whole(const wina_diskread *d, const wina_diskread_piece *p, int64_t got) {
    return got >= (int64_t)(p->offset - begin_of(d, p) + p->n_bytes);
}

/* Some file systems open a file for reads past the page cache and then refuse them, and what is
 * left of a read that ended within a block cannot be had so. */
static bool stop_direct(const wina_diskread *d) {
    const int flags = fcntl(d->fd, F_GETFL);
    return flags >= 0 && flags & O_DIRECT && fcntl(d->fd, F_SETFL, flags & ~O_DIRECT) == 0;
}

/* A read that gave too little, or the only way there is. */
static int32_t read_here(const wina_diskread *d, const wina_diskread_piece *p) {
    int64_t got = 0;
    while (!is_whole(d, p, got)) {
        const ssize_t n = pread(d->fd, target_of(d, p) + got, (size_t)(size_of(d, p) - got),
                                (off_t)(begin_of(d, p) + (uint64_t)got));
        if (n < 0 && (errno == EINTR || (errno == EINVAL && stop_direct(d))))
            continue;
        if (n <= 0)
            return fail_read(n < 0 ? -errno : got);
        got += n;
    }
    return WINA_OK;
}

static uint32_t *word(uint8_t *ring, uint32_t offset) {
    return (uint32_t *)(void *)(ring + offset);
}

static void push(wina_diskread *d, const wina_diskread_piece *p, uint64_t index) {
    uint32_t *tail = word(d->queue, d->params.queue.tail);
    const uint32_t i = *tail & *word(d->queue, d->params.queue.mask);
    d->entries[i] = (ring_entry){.opcode = OP_READ,
                                 .fd = d->fd,
                                 .offset = begin_of(d, p),
                                 .address = (uintptr_t)target_of(d, p),
                                 .n_bytes = size_of(d, p),
                                 .user = index};
    word(d->queue, d->params.queue.array)[i] = i;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
}

/* The next result, if there is one. */
static bool pop(wina_diskread *d, ring_done *out) {
    uint32_t *head = word(d->done, d->params.done.head);
    if (*head == __atomic_load_n(word(d->done, d->params.done.tail), __ATOMIC_ACQUIRE))
        return false;
    *out = d->results[*head & *word(d->done, d->params.done.mask)];
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return true;
}

static int32_t run_one_by_one(const wina_diskread *d, const wina_diskread_piece *pieces, uint64_t n,
                              const wina_diskread_user *user) {
    for (uint64_t i = 0; i < n; i++) {
        WINA_TRY(read_here(d, &pieces[i]));
        user->use(&pieces[i], user->user);
    }
    return WINA_OK;
}

/* Takes the last n of the queue back, which the kernel has not seen. */
static void take_back(wina_diskread *d, uint32_t n) {
    uint32_t *tail = word(d->queue, d->params.queue.tail);
    __atomic_store_n(tail, *tail - n, __ATOMIC_RELEASE);
}

/* Gives the kernel what is new in the queue, and waits for results if none is wanted by then.
 * False: the ring is of no use any more. */
static bool submit(wina_diskread *d, uint32_t *fresh, uint64_t under_way, bool wait) {
    const uint64_t all = under_way + *fresh;
    const uint32_t wanted = !wait ? 0 : (uint32_t)(all < TOGETHER ? all : TOGETHER);
    const long taken =
        syscall(SYS_io_uring_enter, d->ring, *fresh, wanted, wanted ? ENTER_WAIT : 0, NULL, 0);
    if (taken < 0) /* too much at once ends when something else does */
        return errno == EINTR || ((errno == EAGAIN || errno == EBUSY) && under_way);
    *fresh -= (uint32_t)taken;
    return true;
}

static void nap(void) {
    nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

int32_t wina_diskread_run(wina_diskread *d, const wina_diskread_piece *pieces, uint64_t n,
                          const wina_diskread_user *user) {
    int32_t status = WINA_OK;
    uint64_t sent = 0, done = 0;
    uint32_t fresh = 0, naps = 0; /* fresh: in the queue, not yet the kernel's */
    bool works = d->ring >= 0;
    if (d->lost)
        return wina_fail(WINA_E_IO, "cannot read weights: earlier reads have not come back");
    while (done < (works ? n : sent)) {
        for (; works && sent < n && sent - done < DEPTH; sent++, fresh++)
            push(d, &pieces[sent], sent);
        ring_done r;
        bool any = pop(d, &r);
        const bool idle = !any && !fresh && !user->work(user->user);
        if (works && (fresh || idle) && !submit(d, &fresh, sent - done - fresh, idle)) {
            /* What the kernel has is waited for: it writes to the caller's memory. */
            take_back(d, fresh);
            sent -= fresh;
            fresh = 0;
            works = false;
        }
        any = any || pop(d, &r);
        if (!works && !any && idle) {
            d->lost = done < sent && ++naps > PATIENCE;
            if (d->lost)
                return wina_fail(WINA_E_IO, "cannot read weights: a read does not come back");
            nap();
        }
        for (uint32_t i = 0; any; any = ++i < DEPTH / 4 && pop(d, &r), done++) {
            const wina_diskread_piece *p = &pieces[r.user];
            if (status == WINA_OK && !is_whole(d, p, r.result))
                status = read_here(d, p);
            if (status == WINA_OK)
                user->use(p, user->user);
            else
                n = sent; /* nothing new is begun */
        }
    }
    if (!works)
        close_ring(d);
    if (status == WINA_OK && done < n)
        status = run_one_by_one(d, pieces + done, n - done, user);
    return status;
}

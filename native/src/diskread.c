#include "diskread.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mem.h"
#include "status.h"

enum {
    DEPTH = 256,    /* pieces under way */
    TOGETHER = 32,  /* completions waited for */
    OP_READ = 22,   /* IORING_OP_READ */
    ENTER_WAIT = 1, /* IORING_ENTER_GETEVENTS */
    ALIGN = WINA_DISKREAD_ALIGN,
    MAP_QUEUE = 0,
    MAP_DONE = 0x8000000,
    MAP_ENTRIES = 0x10000000 /* IORING_OFF_* */
};

/* The kernel's interface, linux/io_uring.h, which C libraries other than glibc come without. */
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
_Static_assert(sizeof(ring_entry) == 64 && sizeof(ring_done) == 16 && sizeof(ring_params) == 120,
               "as the kernel has them");

struct wina_diskread {
    int fd, ring; /* ring -1: pieces are read one after the other */
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

int32_t wina_diskread_create(const char *path, wina_diskread **out) {
    wina_diskread *d = NULL;
    *out = NULL;
    WINA_TRY(wina_mem_create(1, sizeof *d, "reading", &d));
    d->ring = -1;
    d->fd = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
    if (d->fd < 0) /* some file systems cannot read past the page cache */
        d->fd = open(path, O_RDONLY | O_CLOEXEC);
    if (d->fd < 0) {
        free(d);
        return wina_fail(WINA_E_IO, "%s: cannot open it: %s", path, strerror(errno));
    }
    open_ring(d);
    *out = d;
    return WINA_OK;
}

void wina_diskread_free(wina_diskread *d) {
    if (!d)
        return;
    close_ring(d);
    close(d->fd);
    free(d);
}

/* What is read for a piece: whole blocks of the disk. */
static uint64_t begin_of(const wina_diskread_piece *p) {
    return p->offset / ALIGN * ALIGN;
}
static uint8_t *target_of(const wina_diskread_piece *p) {
    return p->to - (p->offset - begin_of(p));
}
static uint32_t size_of(const wina_diskread_piece *p) {
    const uint64_t end = (p->offset + p->n_bytes + ALIGN - 1) / ALIGN * ALIGN;
    return (uint32_t)(end - begin_of(p));
}

static int32_t fail_read(int64_t got) {
    return wina_fail(WINA_E_IO, "cannot read weights: %s",
                     got < 0 ? strerror((int)-got) : "the file has become shorter");
}

static bool is_whole(const wina_diskread_piece *p, int64_t got) {
    return got >= (int64_t)(p->offset - begin_of(p) + p->n_bytes);
}

/* A read that gave too little, or the only way there is. */
static int32_t read_here(const wina_diskread *d, const wina_diskread_piece *p) {
    int64_t got = 0;
    while (!is_whole(p, got)) {
        const ssize_t n = pread(d->fd, target_of(p) + got, (size_t)(size_of(p) - got),
                                (off_t)(begin_of(p) + (uint64_t)got));
        if (n < 0 && errno == EINTR)
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
                                 .offset = begin_of(p),
                                 .address = (uintptr_t)target_of(p),
                                 .n_bytes = size_of(p),
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
    user->meanwhile(user->user);
    for (uint64_t i = 0; i < n; i++) {
        WINA_TRY(read_here(d, &pieces[i]));
        user->use(&pieces[i], user->user);
    }
    return WINA_OK;
}

/* Gives the kernel what is in the queue and waits for so many results. False: the ring is broken.
 */
static bool enter(const wina_diskread *d, uint32_t *fresh, uint64_t wanted) {
    const long taken = syscall(SYS_io_uring_enter, d->ring, *fresh, (unsigned)wanted,
                               wanted ? ENTER_WAIT : 0, NULL, 0);
    if (taken >= 0)
        *fresh -= (uint32_t)taken;
    return taken >= 0 || errno == EINTR || errno == EAGAIN || errno == EBUSY;
}

int32_t wina_diskread_run(wina_diskread *d, const wina_diskread_piece *pieces, uint64_t n,
                          const wina_diskread_user *user) {
    if (d->ring < 0)
        return run_one_by_one(d, pieces, n, user);
    int32_t status = WINA_OK;
    uint64_t sent = 0, done = 0;
    uint32_t fresh = 0; /* in the queue, not yet the kernel's */
    for (bool begun = false; done < n || !begun; begun = true) {
        for (; sent < n && sent - done < DEPTH; sent++, fresh++)
            push(d, &pieces[sent], sent);
        const uint64_t left = sent - done;
        if (!enter(d, &fresh, !begun ? 0 : left < TOGETHER ? left : TOGETHER))
            return fail_read(-errno);
        if (!begun)
            user->meanwhile(user->user);
        ring_done r;
        for (uint32_t i = 0; i < DEPTH / 4 && pop(d, &r); i++, done++) {
            const wina_diskread_piece *p = &pieces[r.user];
            if (status == WINA_OK && !is_whole(p, r.result))
                status = read_here(d, p);
            if (status == WINA_OK)
                user->use(p, user->user);
        }
    }
    return status;
}

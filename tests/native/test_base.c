/* The lowest modules: status texts, memory, file mapping. */
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "mapfile.h"
#include "mem.h"
#include "status.h"

/* ---- status -------------------------------------------------------------------------------- */

/* A text of n letters and then characters of `width` bytes is cut where a character ends. */
static void test_cut_texts(void) {
    static const char *const characters[] = {"x", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"};
    char text[1200];
    for (size_t width = 1; width <= 4; width++)
        for (size_t n = 0; n < 8; n++) {
            memset(text, 'a', n);
            for (size_t i = n; i + width < sizeof text; i += width)
                memcpy(text + i, characters[width - 1], width), text[i + width] = '\0';
            CHECK(wina_fail(WINA_E_IO, "%s", text) == WINA_E_IO);
            size_t want = n + (511 - n) / width * width;
            CHECK_MSG(strlen(wina_error()) == want, "width %d after %d: %d", (int)width, (int)n,
                      (int)strlen(wina_error()));
            CHECK(memcmp(wina_error(), text, want) == 0);
        }
    memset(text, 'a', 511);
    text[511] = '\0'; /* fits just */
    wina_fail(WINA_E_IO, "%s", text);
    CHECK(strcmp(wina_error(), text) == 0);
}

static void *fail_elsewhere(void *was_empty) {
    *(int *)was_empty = wina_error()[0] == '\0';
    wina_fail(WINA_E_STATE, "another thread");
    return NULL;
}

static int32_t forward(int32_t status) {
    WINA_TRY(status);
    return WINA_E_STATE;
}

static void test_status(void) {
    CHECK(wina_error()[0] == '\0');
    CHECK(wina_fail(WINA_E_FORMAT, "%s has %d", "x", 7) == WINA_E_FORMAT);
    CHECK(strcmp(wina_error(), "x has 7") == 0);
    wina_fail(WINA_E_FORMAT, "again: %s", wina_error());
    CHECK(strcmp(wina_error(), "again: x has 7") == 0);
    pthread_t thread;
    int was_empty = 0;
    CHECK(pthread_create(&thread, NULL, fail_elsewhere, &was_empty) == 0);
    pthread_join(thread, NULL);
    CHECK(was_empty && strcmp(wina_error(), "again: x has 7") == 0);
    CHECK(forward(WINA_E_IO) == WINA_E_IO && forward(WINA_OK) == WINA_E_STATE);
    CHECK(strcmp(wina_status_name(WINA_OK), "WINA_OK") == 0);
    CHECK(strcmp(wina_status_name(WINA_E_SPACE), "WINA_E_SPACE") == 0);
    CHECK(wina_status_name(-1) && wina_status_name(11) && wina_status_name(INT32_MAX));
    test_cut_texts();
}

/* ---- memory -------------------------------------------------------------------------------- */

static int is_zero(const uint8_t *p, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)
        if (p[i])
            return 0;
    return 1;
}

static void test_mem(void) {
    uint64_t n;
    CHECK(wina_mem_mul(1ull << 32, (1ull << 32) - 1, &n) && n == 0xFFFFFFFF00000000u);
    CHECK(!wina_mem_mul(1ull << 32, 1ull << 32, &n) && !wina_mem_add(UINT64_MAX, 1, &n));
    CHECK(wina_mem_add(UINT64_MAX, 0, &n) && n == UINT64_MAX);
    uint8_t *p = (uint8_t *)&n;
    CHECK(wina_mem_create(1ull << 32, 1ull << 32, "the thing", &p) == WINA_E_MEMORY && !p);
    CHECK(strstr(wina_error(), "the thing") && strstr(wina_error(), "4294967296 x 4294967296"));
    CHECK(wina_mem_create(UINT64_MAX, 1, "the thing", &p) == WINA_E_MEMORY && !p);
    CHECK(wina_mem_create(0, 8, "nothing", &p) == WINA_OK && p);
    free(p);
    CHECK(wina_mem_create(1000, 7, "some", &p) == WINA_OK && is_zero(p, 7000));
    free(p);
}

static void test_mem_big(void) {
    static const uint64_t sizes[] = {
        0, 1, 63, 64, 65, 1 << 20, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 9999999};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint8_t *p = NULL;
        uint64_t n = sizes[i], border = n >= 4 << 20 ? 2 << 20 : 64;
        CHECK(wina_mem_create_big(n, "block", &p) == WINA_OK && p);
        CHECK_MSG(((uintptr_t)p & (border - 1)) == 0, "%d bytes", (int)n);
        CHECK(is_zero(p, n));
        memset(p, 0xEE, (size_t)n);
        wina_mem_free_big(p, n);
    }
    uint8_t *p = (uint8_t *)1;
    CHECK(wina_mem_create_big(UINT64_MAX, "the block", &p) == WINA_E_MEMORY && !p);
    CHECK(strstr(wina_error(), "the block") && strstr(wina_error(), "18446744073709551615"));
    CHECK(wina_mem_create_big(1ull << 62, "the block", &p) == WINA_E_MEMORY && !p);
    wina_mem_free_big(NULL, 0);
    wina_mem_free_big(NULL, 1ull << 30);
}

/* Pages of our whole address space. */
static long n_mapped_pages(void) {
    long n = -1;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file) {
        if (fscanf(file, "%ld", &n) != 1)
            n = -1;
        fclose(file);
    }
    return n;
}

/* Blocks come and go, and of the up to 2 MiB mapped around each nothing stays. */
static void test_mem_big_returns(void) {
    enum { ROUNDS = 200, N_BYTES = 5000000, N_HELD = 8 };
    long page = sysconf(_SC_PAGESIZE), before = n_mapped_pages();
    uint8_t *held[N_HELD];
    for (int i = 0; i < ROUNDS; i++) {
        for (int k = 0; k < N_HELD; k++)
            CHECK(wina_mem_create_big(N_BYTES + (uint64_t)(k * page), "block", &held[k]) ==
                  WINA_OK);
        if (i == 0 && before > 0 && !check_emulated()) {
            long most = N_HELD * (N_BYTES / page + 1 + N_HELD);
            CHECK_MSG(n_mapped_pages() - before <= most, "%ld pages for %d blocks",
                      n_mapped_pages() - before, (int)N_HELD);
        }
        for (int k = 0; k < N_HELD; k++)
            wina_mem_free_big(held[k], (uint64_t)(N_BYTES + k * page));
    }
    long grown = n_mapped_pages() - before;
    CHECK_MSG(grown < 256 || check_emulated(), "%ld pages left behind by %d blocks", grown,
              ROUNDS * N_HELD);
}

static void test_mem_grow(void) {
    uint32_t *items = NULL;
    uint64_t capacity = 0;
    for (uint64_t i = 0; i < 5000; i++) {
        CHECK(wina_mem_grow(&items, &capacity, i + 1, sizeof *items, "items") == WINA_OK);
        CHECK(capacity > i && items[i] == 0);
        items[i] = (uint32_t)i + 1;
    }
    for (uint32_t i = 0; i < 5000; i++)
        CHECK(items[i] == i + 1);
    CHECK(capacity < 4 * 5000);
    uint32_t *before = items;
    uint64_t old = capacity;
    CHECK(wina_mem_grow(&items, &capacity, UINT64_MAX / 2, 4, "the items") == WINA_E_MEMORY);
    CHECK(wina_mem_grow(&items, &capacity, UINT64_MAX, 1, "the items") == WINA_E_MEMORY);
    CHECK(strstr(wina_error(), "the items"));
    CHECK(items == before && capacity == old && items[4999] == 5000);
    CHECK(wina_mem_grow(&items, &capacity, 1, 4, "items") == WINA_OK && items == before);
    free(items);
}

/* ---- files --------------------------------------------------------------------------------- */

static void write_file(const char *path, const void *bytes, size_t n) {
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, n, file) == n);
    if (file)
        fclose(file);
}

static void check_refused(const char *path, int32_t want, const char *words) {
    wina_mapfile map = {.data = (const uint8_t *)"", .n_bytes = 9};
    int32_t status = wina_mapfile_open(path, &map);
    CHECK_MSG(status == want && !map.data && map.n_bytes == 0, "%s: %d", path, status);
    CHECK_MSG(strstr(wina_error(), words) && strstr(wina_error(), path), "%s", wina_error());
    wina_mapfile_close(&map);
}

static void test_files_refused(const char *folder) {
    char path[128];
    wina_mapfile map;
    check_refused(folder, WINA_E_IO, "is a directory");
    snprintf(path, sizeof path, "%s/none", folder);
    check_refused(path, WINA_E_IO, "No such file");
    snprintf(path, sizeof path, "%s/empty", folder);
    write_file(path, "", 0);
    check_refused(path, WINA_E_FORMAT, "empty");
    if (geteuid() != 0) {
        chmod(path, 0);
        check_refused(path, WINA_E_IO, "denied");
    }
    unlink(path);
    snprintf(path, sizeof path, "%s/pipe", folder);
    CHECK(mkfifo(path, 0600) == 0);
    check_refused(path, WINA_E_IO, "not a regular file"); /* and does not wait for a writer */
    unlink(path);
    CHECK(wina_mapfile_open("", &map) == WINA_E_ARGUMENT);
    CHECK(wina_mapfile_open(NULL, &map) == WINA_E_ARGUMENT);
}

/* Pages of [0, n) that are in our address space now. */
static uint64_t n_resident(const uint8_t *data, uint64_t n) {
    unsigned long address = 0;
    uint64_t n_pages = 0, page = (uint64_t)sysconf(_SC_PAGESIZE);
    FILE *file = fopen("/proc/self/pagemap", "rb");
    if (!file)
        return UINT64_MAX;
    for (uint64_t i = 0; i < n / page; i++) {
        uint64_t entry = 0;
        address = (unsigned long)(uintptr_t)(data + i * page);
        if (fseek(file, (long)(address / page * 8), SEEK_SET) != 0 ||
            fread(&entry, sizeof entry, 1, file) != 1)
            break;
        n_pages += entry >> 63;
    }
    fclose(file);
    return n_pages;
}

static uint64_t sum_bytes(const uint8_t *data, uint64_t n) {
    uint64_t sum = 0;
    for (uint64_t i = 0; i < n; i++)
        sum += data[i];
    return sum;
}

/* What is done to the file at path, and put back, shows in its mapping. */
static void test_changes(const char *path, const wina_mapfile *map) {
    const struct timespec before[2] = {{.tv_nsec = UTIME_OMIT},
                                       {map->changed_s, (long)map->changed_ns}};
    const struct timespec later[2] = {{.tv_nsec = UTIME_OMIT},
                                      {map->changed_s, (long)map->changed_ns ^ 1}};
    char link[160];
    CHECK(wina_mapfile_check(map) == WINA_OK);
    CHECK(utimensat(AT_FDCWD, path, later, 0) == 0); /* a write in the next nanosecond */
    CHECK(wina_mapfile_check(map) == WINA_E_IO && strstr(wina_error(), "was changed"));
    CHECK(truncate(path, (off_t)map->n_bytes + 1) == 0);
    CHECK(utimensat(AT_FDCWD, path, before, 0) == 0);
    CHECK(wina_mapfile_check(map) == WINA_E_IO && strstr(wina_error(), "was changed"));
    const uint8_t last = map->data[map->n_bytes - 1];
    CHECK(truncate(path, (off_t)map->n_bytes - 1) == 0);
    CHECK(utimensat(AT_FDCWD, path, before, 0) == 0);
    CHECK(wina_mapfile_check(map) == WINA_E_IO && strstr(wina_error(), "was cut short"));
    int fd = open(path, O_WRONLY);
    CHECK(pwrite(fd, &last, 1, (off_t)map->n_bytes - 1) == 1 && close(fd) == 0);
    CHECK(utimensat(AT_FDCWD, path, before, 0) == 0);
    CHECK(wina_mapfile_check(map) == WINA_OK);
    /* Other names and rights change nothing of what is in it. */
    snprintf(link, sizeof link, "%s-link", path);
    CHECK(rename(path, link) == 0 && chmod(link, 0400) == 0 && rename(link, path) == 0);
    CHECK(wina_mapfile_check(map) == WINA_OK);
}

static void test_mapping(const char *folder) {
    char path[128];
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), n = 64 * page + 5;
    uint8_t *bytes = malloc((size_t)n);
    for (uint64_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)(i * 7 + i / 4096);
    snprintf(path, sizeof path, "%s/file", folder);
    write_file(path, bytes, (size_t)n);
    wina_mapfile map;
    CHECK(wina_mapfile_open(path, &map) == WINA_OK && map.n_bytes == n);
    CHECK(memcmp(map.data, bytes, (size_t)n) == 0);
    uint64_t sum = sum_bytes(map.data, n), all = n_resident(map.data, 64 * page);
    /* Released pages leave; those that the range only touches stay; all can be read again. */
    wina_mapfile_release(&map, page + 1, 9 * page);
    if (all == 64) {
        CHECK(n_resident(map.data, 64 * page) == 64 - 8);
        wina_mapfile_release(&map, 0, n);
        CHECK(n_resident(map.data, 64 * page) == 0);
    } else {
        printf("skipped: which pages are resident cannot be seen here\n");
    }
    wina_mapfile_release(&map, 10, 20);
    wina_mapfile_release(&map, n, 1);
    wina_mapfile_release(&map, n - 1, UINT64_MAX);
    wina_mapfile_release(&map, UINT64_MAX, 2);
    CHECK(sum_bytes(map.data, n) == sum && memcmp(map.data, bytes, (size_t)n) == 0);
    test_changes(path, &map);
    unlink(path);
    CHECK(wina_mapfile_check(&map) == WINA_OK);
    CHECK(sum_bytes(map.data, n) == sum);
    wina_mapfile_close(&map);
    CHECK(!map.data && map.n_bytes == 0 && !map.watched);
    CHECK(wina_mapfile_check(&map) == WINA_OK);
    wina_mapfile_close(&map);
    wina_mapfile_release(&map, 0, 0);
    free(bytes);
}

int main(void) {
    test_status();
    test_mem();
    test_mem_big();
    test_mem_big_returns();
    test_mem_grow();
    char folder[] = "/tmp/wina-test-base-XXXXXX";
    CHECK(mkdtemp(folder) != NULL);
    test_files_refused(folder);
    test_mapping(folder);
    rmdir(folder);
    return check_report("test_base");
}

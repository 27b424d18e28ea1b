/* Faults: the n-th allocation, mapping, opening or thread fails, for n = 1, 2, 3 ... until nothing
 * fails any more. Each time there must be a status with a reason, nothing may leak, and what was
 * already made must still work. The calls are wrapped by the linker (Makefile, FAULTS), so only
 * those of the library and of this file are counted. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "wina.h"

typedef enum fault_kind { MEMORY, MAPPING, OPENING, STAT, THREAD, N_KINDS } fault_kind;

static const char *const KIND_NAMES[] = {"allocation", "mapping", "opening", "fstat", "thread"};

/* Calls of the kind until the one that fails; <= 0: none will. All others work. */
static _Atomic long countdown;
static _Atomic int armed_kind, fault_errno, n_fired;
static _Atomic long n_blocks, mapped; /* mapped: bytes, of which parts are given back first */

static int fails(fault_kind kind) {
    if ((int)kind != armed_kind || countdown <= 0 || --countdown != 0)
        return 0;
    n_fired++;
    errno = fault_errno;
    return 1;
}

void *__real_malloc(size_t n);
void *__real_calloc(size_t count, size_t n);
void *__real_realloc(void *old, size_t n);
void *__real_aligned_alloc(size_t alignment, size_t n);
int __real_posix_memalign(void **out, size_t alignment, size_t n);
char *__real_strdup(const char *text);
void __real_free(void *memory);
void *__real_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset);
int __real_munmap(void *at, size_t n);
int __real_open(const char *path, int flags, ...);
int __real_fstat(int fd, struct stat *st);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *user);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t count, size_t n);
void *__wrap_realloc(void *old, size_t n);
void *__wrap_aligned_alloc(size_t alignment, size_t n);
int __wrap_posix_memalign(void **out, size_t alignment, size_t n);
char *__wrap_strdup(const char *text);
void __wrap_free(void *memory);
void *__wrap_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset);
int __wrap_munmap(void *at, size_t n);
int __wrap_open(const char *path, int flags, ...);
int __wrap_fstat(int fd, struct stat *st);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *user);

static void *counted(void *memory) {
    n_blocks += memory != NULL;
    return memory;
}

void *__wrap_malloc(size_t n) {
    return fails(MEMORY) ? NULL : counted(__real_malloc(n));
}

void *__wrap_calloc(size_t count, size_t n) {
    return fails(MEMORY) ? NULL : counted(__real_calloc(count, n));
}

void *__wrap_realloc(void *old, size_t n) {
    if (fails(MEMORY))
        return NULL;
    void *memory = __real_realloc(old, n);
    n_blocks += memory != NULL && old == NULL;
    return memory;
}

void *__wrap_aligned_alloc(size_t alignment, size_t n) {
    return fails(MEMORY) ? NULL : counted(__real_aligned_alloc(alignment, n));
}

int __wrap_posix_memalign(void **out, size_t alignment, size_t n) {
    if (fails(MEMORY))
        return ENOMEM;
    int error = __real_posix_memalign(out, alignment, n);
    n_blocks += error == 0;
    return error;
}

char *__wrap_strdup(const char *text) {
    return fails(MEMORY) ? NULL : counted(__real_strdup(text));
}

void __wrap_free(void *memory) {
    n_blocks -= memory != NULL;
    __real_free(memory);
}

void *__wrap_mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset) {
    if (fails(MAPPING))
        return MAP_FAILED;
    void *memory = __real_mmap(at, n, protection, flags, fd, offset);
    mapped += memory != MAP_FAILED ? check_whole_pages(n) : 0;
    return memory;
}

int __wrap_munmap(void *at, size_t n) {
    mapped -= check_whole_pages(n);
    return __real_munmap(at, n);
}

int __wrap_open(const char *path, int flags, ...) {
    return fails(OPENING) ? -1 : __real_open(path, flags);
}

int __wrap_fstat(int fd, struct stat *st) {
    return fails(STAT) ? -1 : __real_fstat(fd, st);
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                          void *user) {
    return fails(THREAD) ? EAGAIN : __real_pthread_create(thread, attributes, run, user);
}

/* ---- what is done ------------------------------------------------------------------------- */

static const char *model_path;
static int64_t resident; /* of a packed file; 0: all */

static int32_t load(wina_model **out) {
    wina_model_params p;
    wina_model_params_init(&p);
    p.n_threads = 2;
    p.backend = WINA_BACKEND_CPU;
    p.resident = resident;
    return wina_model_load(model_path, &p, out);
}

/* Prompt and up to 8 tokens; the sum of the tokens tells runs apart. */
static int32_t generate(wina_session *session, const int32_t *prompt, size_t n, int64_t *sum) {
    wina_stream_params p;
    wina_stream_params_init(&p);
    p.tokens = prompt;
    p.n_tokens = (int32_t)n;
    p.max_tokens = 8;
    p.ignore_eog = 1;
    p.sampler.seed = 7;
    p.sampler.mirostat = 0;
    p.sampler.dry_multiplier = 0.5f;
    const char *stop[] = {"never said"};
    p.stop = stop;
    p.n_stop = 1;
    wina_stream *stream = NULL;
    int32_t status = wina_stream_create(session, &p, &stream);
    wina_chunk c = {.finish = WINA_FINISH_NONE};
    *sum = 0;
    while (status == WINA_OK && c.finish == WINA_FINISH_NONE) {
        status = wina_stream_next(stream, &c);
        if (status == WINA_OK)
            *sum = *sum * 11 + c.token;
    }
    wina_stream_free(stream);
    return status;
}

/* Tokenize, a session, 8 tokens, the state saved and loaded. */
static int32_t use(const wina_model *model, int64_t *sum) {
    int32_t tokens[16];
    size_t n = 0, n_state = 0;
    wina_session_params sp;
    wina_session_params_init(&sp);
    sp.n_threads = 2;
    sp.n_ctx = 16;
    sp.sparsity.sparsity = 0.5f;
    wina_session *session = NULL;
    static uint8_t state[1 << 16];
    int32_t status = wina_tokenize(model, "abc a b", 7, WINA_TOKENIZE_PLAIN, tokens, 16, &n);
    if (status == WINA_OK)
        status = wina_session_create(model, &sp, &session);
    if (status == WINA_OK)
        status = generate(session, tokens, n, sum);
    if (status == WINA_OK)
        status = wina_session_save_state(session, state, sizeof state, &n_state);
    if (status == WINA_OK)
        status = wina_session_load_state(session, state, n_state);
    wina_session_free(session);
    return status;
}

static int count_descriptors(void) {
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void arm(fault_kind kind, long n, int error) {
    n_fired = 0;
    armed_kind = (int)kind;
    fault_errno = error;
    countdown = n;
}

/* One round; 1 if the fault came, 0 if everything went by without it. */
static int round_of(fault_kind kind, long n, int error, int64_t expected) {
    long blocks = n_blocks, before = mapped;
    int descriptors = count_descriptors();
    wina_model *model = NULL;
    int64_t sum = 0;
    arm(kind, n, error);
    int32_t status = load(&model);
    CHECK((status == WINA_OK) == (model != NULL));
    if (status == WINA_OK)
        status = use(model, &sum);
    int fired = n_fired;
    arm(kind, 0, 0);
    /* A fault may be survived (fewer threads), but then the result is the same. */
    if (status == WINA_OK)
        CHECK_MSG(sum == expected, "%s %ld: another result", KIND_NAMES[kind], n);
    else
        CHECK_MSG(fired == 1 && wina_error()[0], "%s %ld: %d without a reason", KIND_NAMES[kind], n,
                  status);
    if (model && status != WINA_OK) {
        CHECK_MSG(use(model, &sum) == WINA_OK && sum == expected, "%s %ld: the model is broken: %s",
                  KIND_NAMES[kind], n, wina_error());
    }
    wina_model_free(model);
    /* Programs for emulation are static: blocks that libc keeps for itself are counted there, too.
     */
    CHECK_MSG(n_blocks == blocks || check_emulated(), "%s %ld: %ld blocks leak", KIND_NAMES[kind],
              n, n_blocks - blocks);
    CHECK_MSG(mapped == before, "%s %ld: %ld mapped bytes leak", KIND_NAMES[kind], n,
              mapped - before);
    CHECK_MSG(count_descriptors() == descriptors, "%s %ld: descriptors leak", KIND_NAMES[kind], n);
    return fired;
}

static void all_rounds(const char *what, int64_t expected) {
    static const int ERRORS[] = {ENOMEM, ENOMEM, EMFILE, EIO, EAGAIN};
    for (int kind = 0; kind < N_KINDS && check_n_failed == 0; kind++) {
        long n = 1;
        while (n < 10000 && round_of((fault_kind)kind, n, ERRORS[kind], expected))
            n++;
        printf("test_faults: %s: %s: %ld places\n", what, KIND_NAMES[kind], n - 1);
        CHECK(n < 10000);
        CHECK(kind != MEMORY || n > 20);
    }
    for (const int *error = (const int[]){EINTR, EACCES, ENFILE, 0}; *error; error++)
        CHECK(round_of(OPENING, 1, *error, expected) == 1);
}

/* The same of the packed file, of whose columns half are in memory. */
static void test_resident(int64_t expected) {
    char path[128];
    wina_model *model = NULL;
    wina_model_info info;
    int64_t sum = 0;
    snprintf(path, sizeof path, "%s/test_faults_%ld", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp",
             (long)getpid());
    CHECK(load(&model) == WINA_OK && wina_model_get_info(model, &info) == WINA_OK);
    CHECK_MSG(wina_model_write_packed(model, path, NULL, NULL) == WINA_OK, "%s", wina_error());
    wina_model_free(model);
    model = NULL;
    model_path = path;
    resident = info.weight_bytes / 2;
    CHECK_MSG(load(&model) == WINA_OK && use(model, &sum) == WINA_OK, "%s", wina_error());
    CHECK(sum == expected);
    wina_model_free(model);
    all_rounds("resident", expected);
    unlink(path);
}

int main(int argc, char **argv) {
    model_path = argc > 1 ? argv[1] : "tests/fuzz/corpus/good.gguf";
    if (access(model_path, R_OK) != 0) {
        printf("test_faults: skipped, %s is not there\n", model_path);
        return 0;
    }
    wina_model *model = NULL;
    int64_t expected = 0;
    CHECK_MSG(load(&model) == WINA_OK && use(model, &expected) == WINA_OK, "%s", wina_error());
    wina_model_free(model);
    all_rounds("file", expected);
    test_resident(expected);
    return check_report("test_faults");
}

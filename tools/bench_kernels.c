/* bench_kernels: the products of every instruction set that this processor has, in turns, in one
 * thread: one token with half of the inputs kept, and 128 tokens. Times are the thread's processor
 * time, medians; every result is compared with the first set's, bit for bit.
 *
 * cc -O2 -Inative/include -Inative/src tools/bench_kernels.c build/lib/libwina.a -lm -pthread -ldl
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cpu/kernels.h"
#include "dtype.h"
#include "mem.h"
#include "wina.h"

enum { ROUNDS = 9, MAX_SETS = 8, N_TOKENS = 128, STREAM_BYTES = 200000000 };

static wina_kernels sets[MAX_SETS];
static int n_sets;
static uint64_t seed = 88172645463325252u;

static uint64_t random_bits(void) {
    seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
    return seed;
}

static float random_unit(void) {
    return (float)((double)(random_bits() >> 40) / (1 << 23) - 1.0);
}

static void *get_memory(size_t n_bytes) {
    void *p = calloc(1, n_bytes);
    if (!p)
        exit(1);
    return p;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void check(int32_t status) {
    if (status != WINA_OK) {
        fprintf(stderr, "%s\n", wina_error());
        exit(1);
    }
}

/* Types, and where a block has its scales (halves); -1: every value is a half or a bfloat16. */
static const struct {
    uint32_t type;
    int scales[2];
} TYPES[] = {
    {WINA_DTYPE_F16, {-1}},        {WINA_DTYPE_BF16, {-1}},       {WINA_DTYPE_Q8_0, {0, 0}},
    {WINA_DTYPE_Q4_0, {0, 0}},     {WINA_DTYPE_Q4_K, {0, 2}},     {WINA_DTYPE_Q5_0, {0, 0}},
    {WINA_DTYPE_Q6_K, {208, 208}}, {WINA_DTYPE_Q3_K, {108, 108}}, {WINA_DTYPE_IQ4_NL, {0, 0}}};
enum { N_TYPES = sizeof TYPES / sizeof TYPES[0] };

/* A panel of random bits (rows, cols) with small scales. */
static wina_panel create_panel(int type, int32_t rows, int32_t cols) {
    wina_panel p;
    const wina_dtype *t = wina_dtype_find(TYPES[type].type);
    const size_t row_bytes = (size_t)cols / t->block * t->block_bytes;
    const size_t n_bytes = (size_t)rows * row_bytes;
    uint8_t *raw = get_memory(n_bytes);
    for (size_t b = 0; b < n_bytes; b += t->block_bytes) {
        for (size_t i = 0; i < t->block_bytes; i++)
            raw[b + i] = (uint8_t)random_bits();
        const float value = random_unit();
        uint16_t half = wina_f32_to_f16(TYPES[type].scales[0] < 0 ? value : 0.05f * value);
        if (t->id == WINA_DTYPE_BF16)
            memcpy(&half, (const uint8_t *)&value + 2, sizeof half);
        for (int i = 0; i < 2; i++)
            memcpy(raw + b + (TYPES[type].scales[0] < 0 ? 0 : TYPES[type].scales[i]), &half, 2);
    }
    check(wina_panel_plan(t->id, rows, cols, &p));
    check(wina_mem_create_big(p.n_bytes, "panel", &p.data));
    wina_fill_rows(&sets[0].fill, &p, 0, raw, row_bytes, rows, NULL);
    free(raw);
    return p;
}

static void print_head(const char *title) {
    printf("\n%s\n%-8s", title, "");
    for (int s = 0; s < n_sets; s++)
        printf(" %13s", sets[s].name);
    printf("\n");
}

/* amount: of what a second is counted in, per run. */
static void print_row(int type, double seconds[][ROUNDS], double amount, bool same) {
    double first = 0;
    printf("%-8s", wina_dtype_find(TYPES[type].type)->name);
    for (int s = 0; s < n_sets; s++) {
        qsort(seconds[s], ROUNDS, sizeof(double), compare);
        const double median = seconds[s][ROUNDS / 2];
        first = s ? first : median;
        printf("  %5.1f (%4.2f)", amount / median * 1e-9, first / median);
    }
    printf("%s\n", same ? "" : "  THE BITS DIFFER");
    fflush(stdout);
}

static wina_quads create_quads(int32_t n) {
    const size_t n_sub = (size_t)n / 16 + 2, room = (size_t)n + 3 * n_sub + 64;
    return (wina_quads){get_memory(4 * n_sub + 4), get_memory(room),     get_memory(room),
                        get_memory(room),          get_memory(2 * room), get_memory(4 * n_sub),
                        get_memory(4 * n_sub)};
}

/* Half of a panel's columns, at random; copies of it until n_bytes are walked. Returns whether all
 * sets gave the same bits. */
static bool time_token(int type, int32_t rows, int32_t cols, size_t n_bytes) {
    const wina_panel first = create_panel(type, rows, cols);
    const int n_copies = n_bytes > first.n_bytes ? (int)(n_bytes / first.n_bytes) : 1;
    const int n_repeats = n_copies > 1 ? 1 : (int)(STREAM_BYTES / 8 / first.n_bytes) + 1;
    wina_panel *panels = get_memory((size_t)n_copies * sizeof *panels);
    for (int i = 0; i < n_copies; i++) {
        panels[i] = first;
        if (i == 0)
            continue;
        check(wina_mem_create_big(first.n_bytes, "panel", &panels[i].data));
        memcpy(panels[i].data, first.data, first.n_bytes);
    }
    const size_t y_bytes = (size_t)first.n_rows * sizeof(float);
    float *x = get_memory((size_t)cols * 4), *y = get_memory(y_bytes), *want = get_memory(y_bytes);
    int32_t *kept = get_memory((size_t)cols * 4);
    wina_act a = {.x = x, .kept = kept, .by32 = create_quads(cols), .by16 = create_quads(cols)};
    for (int32_t i = 0; i < cols; i++) {
        x[i] = random_unit();
        if (random_bits() >> 20 & 1)
            kept[a.n_kept++] = i;
    }
    sets[0].quantize(x, kept, a.n_kept, cols, 32, &a.by32);
    sets[0].quantize(x, kept, a.n_kept, cols, 16, &a.by16);
    double seconds[MAX_SETS][ROUNDS];
    bool same = true;
    for (int r = 0; r < ROUNDS; r++)
        for (int s = 0; s < n_sets; s++) {
            const double start = now();
            for (int i = 0; i < n_repeats * n_copies; i++)
                sets[s].gemv(&panels[i % n_copies], &a, 0, first.n_blocks, 0,
                             first.n_rows / WINA_STRIP, false, y);
            seconds[s][r] = (now() - start) / (n_repeats * n_copies);
            if (s == 0)
                memcpy(want, y, y_bytes);
            same = same && memcmp(want, y, y_bytes) == 0;
        }
    const double values = (double)first.n_rows * cols * (double)wina_layout_bits(first.layout) / 8;
    print_row(type, seconds, (double)first.n_bytes - values * (cols - a.n_kept) / cols, same);
    for (int i = 0; i < n_copies; i++)
        wina_mem_free_big(panels[i].data, first.n_bytes);
    free(panels), free(x), free(y), free(want), free(kept);
    return same;
}

static bool time_tokens(int type, int32_t rows, int32_t cols, int32_t n_tokens) {
    const wina_panel p = create_panel(type, rows, cols);
    const size_t n = (size_t)p.n_blocks * WINA_BLOCK * (size_t)n_tokens;
    const size_t y_bytes = (size_t)p.n_rows * (size_t)n_tokens * sizeof(float);
    wina_batch b = {
        .n_tokens = n_tokens, .stride = p.n_blocks * WINA_BLOCK, .x = get_memory(4 * n)};
    for (int i = 0; i < 2; i++) {
        b.hi[i] = get_memory(n), b.lo[i] = get_memory(n), b.x16[i] = get_memory(2 * n);
        b.scale[i] = get_memory(n / 4), b.sum[i] = get_memory(n / 4);
    }
    for (size_t i = 0; i < n; i++)
        b.x[i] = random_unit();
    for (int32_t t = 0; t < n_tokens; t++)
        sets[0].quantize_row(&b, t, 0), sets[0].quantize_row(&b, t, 1);
    float *y = get_memory(y_bytes), *want = get_memory(y_bytes);
    double seconds[MAX_SETS][ROUNDS];
    bool same = true;
    for (int r = 0; r < ROUNDS; r++)
        for (int s = 0; s < n_sets; s++) {
            const double start = now();
            sets[s].gemm(&p, &b, 0, p.n_blocks, 0, p.n_rows / WINA_STRIP, y);
            seconds[s][r] = now() - start;
            if (s == 0)
                memcpy(want, y, y_bytes);
            same = same && memcmp(want, y, y_bytes) == 0;
        }
    print_row(type, seconds, (double)p.n_rows * cols * n_tokens, same);
    for (int i = 0; i < 2; i++)
        free(b.hi[i]), free(b.lo[i]), free(b.x16[i]), free(b.scale[i]), free(b.sum[i]);
    wina_mem_free_big(p.data, p.n_bytes);
    free(b.x), free(y), free(want);
    return same;
}

int main(void) {
    static const char *const names[] = {"avx2", "avxvnni", "avx512", "avx512vnni",
                                        "neon", "dotprod", "i8mm"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        setenv("WINA_CPU", names[i], 1);
        n_sets += wina_kernels_detect(&sets[n_sets]) == WINA_OK;
    }
    if (!n_sets)
        check(wina_kernels_detect(&sets[0]));
    bool same = true;
    print_head("one token, half of 8192 inputs x 2048 rows, 200 MB: GB/s (over the first)");
    for (int t = 0; t < N_TYPES; t++)
        same = time_token(t, 2048, 8192, STREAM_BYTES) && same;
    print_head("one token, half of 1024 inputs x 512 rows, in the cache: GB/s (over the first)");
    for (int t = 0; t < N_TYPES; t++)
        same = time_token(t, 512, 1024, 0) && same;
    print_head("128 tokens, 8192 inputs x 2048 rows: GMAC/s (over the first)");
    for (int t = 0; t < N_TYPES; t++)
        same = time_tokens(t, 2048, 8192, N_TOKENS) && same;
    return !same;
}

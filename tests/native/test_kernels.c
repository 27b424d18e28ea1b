/* Every instruction set against the C reference and against sums in double precision: all tensor
 * types, sizes that are not round, kept none, one, some and all; in buffers with canaries. The
 * instruction sets must agree bit for bit, and a batch must agree with its tokens one by one. */
#include <math.h>
#include <stdlib.h>

#include "check.h"
#include "cpu/kernels.h"
#include "mem.h"
#include "sparse/norms.h"
#include "wina.h"

static unsigned long long seed = 88172645463325252ULL;

static float random_unit(void) {
    return (float)((double)(check_random(&seed) >> 40) / (1 << 23) - 1.0);
}

/* Rows of a type, random or of the largest integers, with scales that are small halves. */
static uint8_t *create_rows(const wina_dtype *t, int64_t rows, int64_t cols, bool largest) {
    uint64_t n = (uint64_t)(rows * cols) / t->block * t->block_bytes;
    uint8_t *p = malloc(n);
    for (uint64_t i = 0; i < n; i++)
        p[i] = !largest ? (uint8_t)check_random(&seed) : t->id == WINA_DTYPE_Q8_0 ? 0x7f : 0xff;
    for (uint64_t b = 0; b < n; b += t->block_bytes) {
        uint8_t *scales[2] = {p + b, p + b + 2};
        int n_scales = 0;
        switch (t->id) {
        case WINA_DTYPE_F32: {
            float f = random_unit();
            memcpy(p + b, &f, 4);
            break;
        }
        case WINA_DTYPE_BF16:
            p[b + 1] = (uint8_t)((p[b + 1] & 0x80) | 0x3e);
            break;
        case WINA_DTYPE_F16:
        case WINA_DTYPE_Q8_0:
        case WINA_DTYPE_Q4_0:
        case WINA_DTYPE_Q5_0:
        case WINA_DTYPE_IQ4_NL:
        case WINA_DTYPE_IQ4_XS:
            n_scales = 1;
            break;
        case WINA_DTYPE_MXFP4:
            p[b] = (uint8_t)(120 + p[b] % 6);
            break;
        case WINA_DTYPE_Q3_K:
        case WINA_DTYPE_Q6_K:
        case WINA_DTYPE_TQ1_0:
        case WINA_DTYPE_TQ2_0:
            scales[0] = p + b + t->block_bytes - 2;
            n_scales = 1;
            break;
        case WINA_DTYPE_Q2_K:
            scales[0] = p + b + 80, scales[1] = p + b + 82;
            n_scales = 2;
            break;
        default:
            n_scales = 2;
        }
        for (int i = 0; i < n_scales; i++) {
            uint16_t h = wina_f32_to_f16(0.05f * random_unit());
            memcpy(scales[i], &h, 2);
        }
    }
    return p;
}

enum { CANARY = 64 };

typedef struct fixture {
    wina_panel panel;
    float *w; /* (rows, cols) decoded */
    int32_t rows, cols;
} fixture;

static fixture create(uint32_t dtype, int32_t rows, int32_t cols, bool largest) {
    const wina_dtype *t = wina_dtype_find(dtype);
    fixture f = {.rows = rows, .cols = cols};
    uint8_t *raw = create_rows(t, rows, cols, largest);
    uint64_t row_bytes = (uint64_t)cols / t->block * t->block_bytes;
    CHECK(wina_panel_plan(dtype, rows, cols, &f.panel) == WINA_OK);
    CHECK(wina_mem_create_big(f.panel.n_bytes, "panel", &f.panel.data) == WINA_OK);
    wina_fill_rows(&wina_fill_ops_c, &f.panel, 0, raw, row_bytes, rows, NULL);
    f.w = malloc((size_t)rows * (size_t)cols * sizeof *f.w);
    float *row = malloc((size_t)cols * sizeof *row);
    int n_wrong = 0;
    for (int32_t r = 0; r < rows; r++) {
        t->decode(raw + (uint64_t)r * row_bytes, f.w + (int64_t)r * cols,
                  (uint64_t)cols / t->block);
        wina_panel_decode_row(&f.panel, r, row);
        n_wrong += memcmp(row, f.w + (int64_t)r * cols, (size_t)cols * sizeof *row) != 0;
    }
    CHECK_MSG(n_wrong == 0, "%s %d x %d: %d rows changed by packing", t->name, rows, cols, n_wrong);
    free(row);
    free(raw);
    return f;
}

static void destroy(fixture *f) {
    wina_mem_free_big(f->panel.data, f->panel.n_bytes);
    free(f->w);
}

/* Filling gives the bytes of the reference, over what was there, and the sums of squares that rows
 * decoded one by one have; the second half of the rows in a call of its own. */
static void test_fill(const wina_kernels *k, uint32_t dtype, int32_t rows, int32_t cols) {
    const wina_dtype *t = wina_dtype_find(dtype);
    const uint64_t row_bytes = (uint64_t)cols / t->block * t->block_bytes;
    uint8_t *raw = create_rows(t, rows, cols, false);
    const wina_fill_ops *ops[2] = {&wina_fill_ops_c, &k->fill};
    float *row = malloc((size_t)cols * sizeof *row);
    wina_panel panel;
    CHECK(wina_panel_plan(dtype, rows, cols, &panel) == WINA_OK);
    const size_t n_sums = (size_t)panel.n_blocks * WINA_BLOCK;
    const int32_t first = rows / 2 / WINA_STRIP * WINA_STRIP;
    uint8_t *data[2];
    double *sums[2], *want = calloc(n_sums, sizeof *want);
    for (int i = 0; i < 2; i++) {
        panel.data = data[i] = calloc(1, panel.n_bytes + CANARY);
        sums[i] = calloc(n_sums, sizeof *sums[i]);
        for (uint64_t b = 0; b < CANARY; b++)
            data[i][panel.n_bytes + b] = 0xa5;
        for (size_t c = 0; c < n_sums; c++)
            sums[i][c] = want[c] = (double)(c % 7) / 3;
        if (first)
            wina_fill_rows(ops[i], &panel, 0, raw, row_bytes, first, sums[i]);
        wina_fill_rows(ops[i], &panel, first, raw + (uint64_t)first * row_bytes, row_bytes,
                       rows - first, sums[i]);
    }
    for (int32_t r = 0; r < rows; r++) {
        t->decode(raw + (uint64_t)r * row_bytes, row, (uint64_t)cols / t->block);
        wina_norms_add_row(want, row, cols);
    }
    CHECK_MSG(memcmp(data[0], data[1], panel.n_bytes + CANARY) == 0, "%s: %s %d x %d: panels",
              k->name, t->name, rows, cols);
    for (int i = 0; i < 2; i++)
        CHECK_MSG(memcmp(sums[i], want, n_sums * sizeof *want) == 0, "%s: %s %d x %d: squares",
                  i ? k->name : "c", t->name, rows, cols);
    for (int i = 0; i < 2; i++)
        free(data[i]), free(sums[i]);
    free(want), free(row), free(raw);
}

static wina_quads create_quads(int32_t n) {
    size_t n_sub = (size_t)n / 16 + 2, room = (size_t)n + 3 * n_sub + 64;
    return (wina_quads){.first = calloc(n_sub + 1, 4),
                        .col = calloc(room, 1),
                        .hi = calloc(room, 1),
                        .lo = calloc(room, 1),
                        .x = calloc(room, 2),
                        .scale = calloc(n_sub, 4),
                        .sum = calloc(n_sub, 4)};
}

static void destroy_quads(wina_quads *q) {
    free(q->first), free(q->col), free(q->hi), free(q->lo), free(q->x), free(q->scale),
        free(q->sum);
}

/* y (padded rows) of one set of kept inputs, checked for writes outside. */
static float *multiply(const wina_kernels *k, const fixture *f, wina_act *a) {
    size_t n = (size_t)f->panel.n_rows;
    float *buffer = malloc((n + 2 * CANARY) * sizeof *buffer);
    memset(buffer, 0xff, (n + 2 * CANARY) * sizeof *buffer);
    k->quantize(a->x, a->kept, a->n_kept, f->cols, 32, &a->by32);
    k->quantize(a->x, a->kept, a->n_kept, f->cols, 16, &a->by16);
    int32_t strips = f->panel.n_rows / WINA_STRIP, middle = strips / 2;
    k->gemv(&f->panel, a, 0, f->panel.n_blocks, 0, middle, false, buffer + CANARY);
    k->gemv(&f->panel, a, 0, f->panel.n_blocks, middle, strips, false, buffer + CANARY);
    const unsigned char *bytes = (const unsigned char *)buffer;
    int n_written = 0;
    for (size_t i = 0; i < CANARY * sizeof *buffer; i++)
        n_written += bytes[i] != 0xff || bytes[(n + CANARY) * sizeof *buffer + i] != 0xff;
    CHECK(n_written == 0);
    memmove(buffer, buffer + CANARY, n * sizeof *buffer);
    return buffer;
}

/* Rounding to 16 bits moves an input by half a step of its block's scale at most. */
static void check_sums(const fixture *f, const wina_act *a, const float *y, const char *name) {
    int floats = f->panel.layout->low_bits >= 16, n_wrong = 0;
    double amax = 0;
    for (int32_t i = 0; i < a->n_kept; i++)
        amax = fmax(amax, fabs((double)a->x[a->kept[i]]));
    double step = floats ? 0 : amax / WINA_ACT_MAX;
    for (int32_t r = 0; r < f->rows; r++) {
        double sum = 0, size = 0, weights = 0;
        for (int32_t i = 0; i < a->n_kept; i++) {
            double w = (double)f->w[(int64_t)r * f->cols + a->kept[i]];
            /* With mins w = d q + m, the two parts are summed apart. */
            sum += w * (double)a->x[a->kept[i]];
            size += (fabs(w) + 4.0) * fabs((double)a->x[a->kept[i]]);
            weights += fabs(w);
        }
        double bound = 0.51 * step * weights + 32 * 6e-8 * size + 1e-30;
        n_wrong += !(fabs((double)y[r] - sum) <= bound);
    }
    CHECK_MSG(n_wrong == 0, "%s: %d of %d rows of %d x %d (type %u), kept %d", name, n_wrong,
              f->rows, f->rows, f->cols, f->panel.layout->dtype, a->n_kept);
}

/* The same, some blocks after the other, with every kept column somewhere else than in the panel.
 */
static float *multiply_pieces(const wina_kernels *k, const fixture *f, const wina_act *a) {
    const uint64_t n_bytes = f->panel.n_bytes, n_high = 64; /* kernels may read a strip beyond */
    const uint64_t col_bytes = f->panel.col_bytes + n_high;
    uint8_t *columns = malloc((size_t)a->n_kept * col_bytes + 1), *data = malloc(n_bytes);
    const uint8_t **at = calloc((size_t)f->cols, sizeof *at);
    float *y = malloc((size_t)f->panel.n_rows * sizeof *y);
    wina_panel panel = f->panel;
    memset(columns, 0xff, (size_t)a->n_kept * col_bytes + 1);
    memset(data, 0xff, n_bytes);
    panel.data = data;
    for (int32_t b = 0; b < panel.n_blocks; b++) { /* what stays there are the scales */
        const uint64_t super = (uint64_t)panel.layout->super_bytes * (uint64_t)panel.n_rows;
        const uint64_t block = (uint64_t)(wina_panel_block(&f->panel, b) - f->panel.data);
        memcpy(data + (wina_panel_super(&f->panel, b) - f->panel.data),
               wina_panel_super(&f->panel, b), super);
        memcpy(data + block + panel.col_bytes * WINA_BLOCK, wina_panel_scales(&f->panel, b),
               panel.block_bytes - panel.col_bytes * WINA_BLOCK);
    }
    for (int32_t i = a->n_kept - 1, n = 0; i >= 0; i--, n++) {
        uint8_t *to = columns + (uint64_t)n * col_bytes;
        memcpy(to, wina_panel_column(&f->panel, a->kept[i] / WINA_BLOCK, a->kept[i] % WINA_BLOCK),
               panel.col_bytes);
        at[a->kept[i]] = to;
    }
    panel.columns = at;
    memset(y, 0xff, (size_t)panel.n_rows * sizeof *y);
    for (int32_t block = 0, end; block < panel.n_blocks; block = end) {
        end = block + 1 + (int32_t)(check_random(&seed) % 3);
        end = end < panel.n_blocks ? end : panel.n_blocks;
        k->gemv(&panel, a, block, end, 0, panel.n_rows / WINA_STRIP, block > 0, y);
    }
    free(columns), free(data), free(at);
    return y;
}

/* how: 0 keeps no input, 1 one, 2 about half, 3 all; 4 keeps all, of the largest integers. */
static void test_gemv(const wina_kernels *c, const wina_kernels *k, const fixture *f, int how) {
    float *x = malloc((size_t)f->cols * sizeof *x);
    int32_t *kept = malloc((size_t)f->cols * sizeof *kept);
    wina_act a = {
        .x = x, .kept = kept, .by32 = create_quads(f->cols), .by16 = create_quads(f->cols)};
    for (int32_t i = 0; i < f->cols; i++) {
        x[i] = how == 4 ? -2.0f : random_unit() * (i % 37 == 0 ? 100.0f : 1.0f);
        unsigned r = (unsigned)check_random(&seed) % 8;
        if (how >= 3 || (how == 2 && r < 4) || (how == 1 && i == f->cols / 2))
            kept[a.n_kept++] = i;
    }
    float *want = multiply(c, f, &a), *got = multiply(k, f, &a);
    check_sums(f, &a, got, k->name);
    CHECK_MSG(memcmp(want, got, (size_t)f->panel.n_rows * sizeof *got) == 0,
              "%s differs from c: %d x %d (type %u), kept %d", k->name, f->rows, f->cols,
              f->panel.layout->dtype, a.n_kept);
    float *pieces = multiply_pieces(k, f, &a);
    CHECK_MSG(memcmp(want, pieces, (size_t)f->panel.n_rows * sizeof *got) == 0,
              "%s: pieces differ from c: %d x %d (type %u), kept %d", k->name, f->rows, f->cols,
              f->panel.layout->dtype, a.n_kept);
    free(want), free(got), free(pieces), free(x), free(kept);
    destroy_quads(&a.by32), destroy_quads(&a.by16);
}

static void test_gemm(const wina_kernels *c, const wina_kernels *k, const fixture *f,
                      int32_t n_tokens) {
    int64_t stride = f->panel.n_blocks * WINA_BLOCK, n_rows = f->panel.n_rows;
    const int32_t n_strips = f->panel.n_rows / WINA_STRIP;
    /* A part that neither starts at the front nor ends at the back. */
    const int32_t block0 = f->panel.n_blocks > 1;
    const int32_t block1 = f->panel.n_blocks - (f->panel.n_blocks > 2);
    size_t n = (size_t)(stride * n_tokens);
    wina_batch b = {.n_tokens = n_tokens, .stride = stride, .x = calloc(n, 4)};
    for (int i = 0; i < 2; i++) {
        b.hi[i] = calloc(n, 1), b.lo[i] = calloc(n, 1), b.x16[i] = calloc(n, 2);
        b.scale[i] = calloc(n / 16, 4), b.sum[i] = calloc(n / 16, 4);
    }
    float *one = malloc((size_t)(n_rows * n_tokens) * 4),
          *all = malloc((size_t)(n_rows * n_tokens) * 4);
    int32_t *kept = malloc((size_t)f->cols * sizeof *kept);
    wina_act a = {
        .kept = kept, .by32 = create_quads((int32_t)stride), .by16 = create_quads((int32_t)stride)};
    for (int32_t t = 0; t < n_tokens; t++) {
        float *x = calloc((size_t)stride, sizeof *x);
        a.n_kept = 0;
        for (int32_t i = 0; i < f->cols; i++)
            if (t == 0 || check_random(&seed) % 2) {
                x[i] = random_unit();
                b.x[wina_batch_at(&b, i / WINA_BLOCK, t) + i % WINA_BLOCK] = x[i];
                kept[a.n_kept++] = i;
            }
        a.x = x;
        k->quantize(x, kept, a.n_kept, (int32_t)stride, 32, &a.by32);
        k->quantize(x, kept, a.n_kept, (int32_t)stride, 16, &a.by16);
        k->quantize_row(&b, t, 0);
        k->quantize_row(&b, t, 1);
        c->gemv(&f->panel, &a, block0, block1, 0, n_strips, false, one + t * n_rows);
        k->gemv(&f->panel, &a, block0, block1, 0, n_strips, false, all);
        CHECK_MSG(memcmp(one + t * n_rows, all, (size_t)n_rows * 4) == 0,
                  "%s: blocks %d to %d differ from c: %d x %d (type %u)", k->name, block0, block1,
                  f->rows, f->cols, f->panel.layout->dtype);
        free(x);
    }
    memset(all, 0xff, (size_t)(n_rows * n_tokens) * 4);
    /* All strips but the last at once, and that one. */
    float *strips = malloc((size_t)(n_rows * n_tokens) * sizeof *strips);
    memset(strips, 0xff, (size_t)(n_rows * n_tokens) * sizeof *strips);
    const int32_t last = n_strips - 1;
    if (last > 0)
        k->gemm(&f->panel, &b, block0, block1, 0, last, strips);
    k->gemm(&f->panel, &b, block0, block1, last, n_strips,
            strips + (int64_t)last * n_tokens * WINA_STRIP);
    for (int32_t i = 0; i < n_strips; i++)
        for (int32_t t = 0; t < n_tokens; t++)
            memcpy(all + t * n_rows + i * WINA_STRIP,
                   strips + ((int64_t)i * n_tokens + t) * WINA_STRIP, WINA_STRIP * sizeof *strips);
    free(strips);
    CHECK_MSG(memcmp(one, all, (size_t)(n_rows * n_tokens) * 4) == 0,
              "%s: batch of %d differs from single tokens: %d x %d (type %u)", k->name, n_tokens,
              f->rows, f->cols, f->panel.layout->dtype);
    for (int i = 0; i < 2; i++)
        free(b.hi[i]), free(b.lo[i]), free(b.x16[i]), free(b.scale[i]), free(b.sum[i]);
    free(b.x), free(one), free(all), free(kept);
    destroy_quads(&a.by32), destroy_quads(&a.by16);
}

static void test_vectors(const wina_kernels *c, const wina_kernels *k, int32_t n) {
    float *x = malloc((size_t)n * 4), *g = malloc((size_t)n * 4);
    float *y[2] = {calloc((size_t)n, 4), calloc((size_t)n, 4)};
    const wina_kernels *both[2] = {c, k};
    float sums[2], max[2];
    for (int32_t i = 0; i < n; i++)
        x[i] = 20 * random_unit(), g[i] = random_unit();
    double norm = 0;
    for (int i = 0; i < 2; i++)
        both[i]->rms_norm(y[i], x, g, n, 1e-5f);
    for (int32_t i = 0; i < n; i++)
        norm += (double)x[i] * (double)x[i];
    double scale = 1 / sqrt(norm / n + 1e-5);
    CHECK(fabs((double)y[1][n - 1] - (double)x[n - 1] * scale * (double)g[n - 1]) < 1e-4);
    CHECK(memcmp(y[0], y[1], (size_t)n * 4) == 0);
    for (int i = 0; i < 2; i++)
        both[i]->swiglu(y[i], x, g, n);
    CHECK(memcmp(y[0], y[1], (size_t)n * 4) == 0);
    double silu = (double)x[0] / (1 + exp(-(double)x[0])) * (double)g[0];
    CHECK(fabs((double)y[1][0] - silu) <= 1e-6 * fabs(silu) + 1e-9);
    for (int i = 0; i < 2; i++)
        both[i]->geglu(y[i], x, g, n);
    CHECK(memcmp(y[0], y[1], (size_t)n * 4) == 0);
    const double x0 = (double)x[0], turn = 0.7978845608028654 * (x0 + 0.044715 * x0 * x0 * x0);
    const double gelu = 0.5 * x0 * (1 + tanh(turn)) * (double)g[0];
    CHECK(fabs((double)y[1][0] - gelu) <= 2e-6 * fabs(x0 * (double)g[0]) + 1e-9);
    for (int i = 0; i < 2; i++) {
        memcpy(y[i], x, (size_t)n * 4);
        both[i]->add(y[i], g, n);
        max[i] = both[i]->softmax_part(y[i], n, &sums[i]);
    }
    CHECK(memcmp(y[0], y[1], (size_t)n * 4) == 0 && sums[0] == sums[1] && max[0] == max[1]);
    double total = 0;
    for (int32_t i = 0; i < n; i++)
        total += (double)y[1][i];
    CHECK(fabs(total - (double)sums[1]) < 1e-5 * total && sums[1] >= 1.0f);
    free(x), free(g), free(y[0]), free(y[1]);
}

/* Largest error of a value in a row whose largest magnitude is 1. Eight bits: half a step of 1/127,
 * and the rounding of the step itself to half precision, which 127 of them add up. */
static double cache_step(int32_t type) {
    return type == WINA_CACHE_F32   ? 0
           : type == WINA_CACHE_F16 ? 1.0 / 2048
                                    : 1.0 / 254 + 1.0 / 2048;
}

static void check_rounding(const float *x, const float *y, size_t n, int32_t type) {
    double most = 0;
    for (size_t i = 0; i < n; i++)
        if (fabs((double)x[i] - (double)y[i]) > most)
            most = fabs((double)x[i] - (double)y[i]);
    CHECK_MSG(most <= cache_step(type), "type %d: off by %g", type, most);
}

/* sum of a * b over n values so far apart; *size: of their magnitudes. */
static double sum_of(const float *a, int32_t a_step, const float *b, int32_t b_step, int32_t n,
                     double *size) {
    double sum = 0;
    for (int32_t i = 0; i < n; i++) {
        const double term = (double)a[(int64_t)i * a_step] * (double)b[(int64_t)i * b_step];
        sum += term;
        if (size)
            *size += fabs(term);
    }
    return sum;
}

/* Rows of the cache, written and read: the same bytes and floats as C, near what was stored,
 * nothing written outside; then dot products with them, and weighted sums of them. */
static void test_cache(const wina_kernels *c, const wina_kernels *k, int32_t type, int32_t n_dim,
                       int32_t n_rows) {
    const wina_kernels *both[2] = {c, k};
    const size_t n = (size_t)n_dim * (size_t)n_rows, room = n + 2 * CANARY;
    const uint64_t row_bytes = wina_cache_row_bytes(type, n_dim);
    float *x = malloc(n * 4), *q = malloc((size_t)n_dim * 4);
    uint8_t *rows[2];
    float *f[2], *s[2], *o[2];
    for (size_t i = 0; i < n; i++)
        x[i] = i % 7 ? random_unit() : 1.0f;
    for (int32_t i = 0; i < n_dim; i++)
        q[i] = 3 * random_unit();
    for (int i = 0; i < 2; i++) {
        rows[i] = malloc(row_bytes * (size_t)n_rows + CANARY);
        memset(rows[i], 0xff, row_bytes * (size_t)n_rows + CANARY);
        f[i] = malloc(room * 4), s[i] = malloc(((size_t)n_rows + CANARY) * 4);
        o[i] = malloc(((size_t)n_dim + CANARY) * 4);
        memset(f[i], 0xff, room * 4);
        memset(s[i], 0xff, ((size_t)n_rows + CANARY) * 4);
        memset(o[i], 0xff, ((size_t)n_dim + CANARY) * 4);
        for (int32_t r = 0; r < n_rows; r++)
            both[i]->cache_store[type](rows[i] + row_bytes * (uint64_t)r, x + (int64_t)r * n_dim,
                                       n_dim);
        both[i]->cache_load[type](f[i] + CANARY, rows[0], n_dim, n_rows);
        both[i]->attend_dots(q, f[0] + CANARY, n_dim, n_rows, 0.3f, s[i]);
        memcpy(o[i], q, (size_t)n_dim * 4);
        both[i]->attend_add(o[i], s[0], f[0] + CANARY, n_dim, n_dim, n_rows);
    }
    CHECK(memcmp(rows[0], rows[1], row_bytes * (size_t)n_rows + CANARY) == 0);
    CHECK(memcmp(f[0], f[1], room * 4) == 0);
    CHECK_MSG(memcmp(s[0], s[1], ((size_t)n_rows + CANARY) * 4) == 0, "%s: %d dots of %d", k->name,
              n_rows, n_dim);
    CHECK_MSG(memcmp(o[0], o[1], ((size_t)n_dim + CANARY) * 4) == 0, "%s: sums of %d rows of %d",
              k->name, n_rows, n_dim);
    check_rounding(x, f[1] + CANARY, n, type);
    for (int32_t r = 0; r < n_rows; r++) {
        const double sum = 0.3 * sum_of(q, 1, f[1] + CANARY + r * n_dim, 1, n_dim, NULL);
        CHECK(fabs((double)s[1][r] - sum) <= 1e-6 * (n_dim + 1));
    }
    for (int32_t i = 0; i < n_dim; i++) {
        double size = 0;
        const double sum = sum_of(s[0], 1, f[1] + CANARY + i, n_dim, n_rows, &size);
        CHECK(fabs((double)o[1][i] - (double)q[i] - sum) <= 1e-6 * (size + 3));
    }
    for (int i = 0; i < 2; i++)
        free(rows[i]), free(f[i]), free(s[i]), free(o[i]);
    free(x), free(q);
}

/* Rows of zeros, and values that the type cannot hold: zeros, or no number, but no garbage. */
static void test_cache_extremes(const wina_kernels *k) {
    float x[40] = {0}, y[40];
    uint8_t row[160];
    for (int32_t type = 0; type < WINA_N_CACHE_TYPES; type++) {
        k->cache_store[type](row, x, 40);
        k->cache_load[type](y, row, 40, 1);
        CHECK(memcmp(x, y, sizeof x) == 0);
    }
    x[3] = INFINITY;
    k->cache_store[WINA_CACHE_Q8_0](row, x, 40);
    k->cache_load[WINA_CACHE_Q8_0](y, row, 40, 1);
    CHECK(isnan(y[3]) && y[39] == 0.0f);
}

/* nan_is_not_lost: one value of a sub-block that is no number, wherever it stands, makes the scale
 * one. The reference once kept it only if it was the last, and the rest became garbage. */
static void test_nan_is_not_lost(const wina_kernels *k) {
    static const float bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    const int32_t n = WINA_BLOCK;
    int32_t kept[WINA_BLOCK], n_lost = 0;
    wina_quads quads[2] = {create_quads(n), create_quads(n)};
    float *x = malloc((size_t)n * sizeof *x);
    wina_batch b = {.n_tokens = 1, .stride = n, .x = x};
    for (int i = 0; i < 2; i++) {
        b.hi[i] = calloc((size_t)n, 1), b.lo[i] = calloc((size_t)n, 1);
        b.x16[i] = calloc((size_t)n, 2), b.scale[i] = calloc((size_t)n / 16, 4);
        b.sum[i] = calloc((size_t)n / 16, 4);
    }
    for (int32_t i = 0; i < n; i++)
        kept[i] = i;
    for (int32_t at = 0; at < n; at++) {
        for (int32_t i = 0; i < n; i++)
            x[i] = random_unit();
        x[at] = bad[at % 4];
        for (int which = 0; which < 2; which++) {
            const int32_t sub = which ? 16 : 32;
            k->quantize(x, kept, n, n, sub, &quads[which]);
            k->quantize_row(&b, 0, which);
            for (int32_t s = 0; s < n / sub; s++)
                n_lost += isnan(quads[which].scale[s]) != (s == at / sub) ||
                          isnan(b.scale[which][wina_batch_sub(&b, s, 0)]) != (s == at / sub);
        }
        uint8_t row[WINA_BLOCK * 2];
        float back[WINA_BLOCK];
        k->cache_store[WINA_CACHE_Q8_0](row, x, n);
        k->cache_load[WINA_CACHE_Q8_0](back, row, n, 1);
        for (int32_t i = 0; i < n; i++)
            n_lost += isnan(back[i]) != (i / WINA_CACHE_BLOCK == at / WINA_CACHE_BLOCK);
    }
    CHECK_MSG(n_lost == 0, "%s: %d values that are no number were lost or spread", k->name, n_lost);
    for (int i = 0; i < 2; i++) {
        free(b.hi[i]), free(b.lo[i]), free(b.x16[i]), free(b.scale[i]), free(b.sum[i]);
        destroy_quads(&quads[i]);
    }
    free(x);
}

static void test_scores(const wina_kernels *c, const wina_kernels *k, int32_t n) {
    const wina_kernels *both[2] = {c, k};
    float *x = malloc((size_t)n * 4), *norms = malloc((size_t)n * 4);
    float *score[2] = {calloc((size_t)n, 4), calloc((size_t)n, 4)};
    int32_t *kept[2] = {calloc((size_t)n, 4), calloc((size_t)n, 4)};
    uint32_t *scratch = calloc((size_t)n, 4);
    /* Every third value is the same, so that there are ties. */
    for (int32_t i = 0; i < n; i++)
        x[i] = i % 3 ? random_unit() : -0.25f, norms[i] = i % 3 ? fabsf(random_unit()) : 1.0f;
    for (int with = 0; with < 2; with++)
        for (int32_t n_keep = 1; n_keep <= n; n_keep += 1 + n / 5) {
            for (int i = 0; i < 2; i++) {
                both[i]->score(x, with ? norms : NULL, n, score[i]);
                both[i]->select(score[i], n, n_keep, kept[i], scratch);
            }
            CHECK(memcmp(score[0], score[1], (size_t)n * 4) == 0);
            CHECK(memcmp(kept[0], kept[1], (size_t)n_keep * 4) == 0);
        }
    free(x), free(norms), free(score[0]), free(score[1]), free(kept[0]), free(kept[1]);
    free(scratch);
}

static void test_type(const wina_kernels *c, const wina_kernels *k, uint32_t dtype) {
    static const int32_t rows[] = {1, 64, 65, 200}, blocks[] = {1, 3, 9};
    const wina_dtype *type = wina_dtype_find(dtype);
    int32_t unit = type->block == 1 ? 31 : (int32_t)type->block;
    for (int r = 0; r < 4; r++)
        for (int b = 0; b < 3; b++) {
            fixture f = create(dtype, rows[r], blocks[b] * unit, false);
            for (int how = 0; how < 4; how++)
                test_gemv(c, k, &f, how);
            test_gemm(c, k, &f, 1 + 3 * b);
            destroy(&f);
            test_fill(k, dtype, rows[r], blocks[b] * unit);
        }
    test_fill(k, dtype, 331, 2 * unit); /* more strips than are filled together */
    fixture many = create(dtype, 65, 2 * unit, false);
    test_gemm(c, k, &many, 131); /* more tokens than are multiplied together */
    destroy(&many);
    if (type->block > 1) {
        fixture f = create(dtype, 65, 2 * unit, true);
        test_gemv(c, k, &f, 4);
        test_gemm(c, k, &f, 6);
        destroy(&f);
    }
}

int main(void) {
    static const uint32_t types[] = {
        WINA_DTYPE_F32,   WINA_DTYPE_F16,   WINA_DTYPE_BF16, WINA_DTYPE_Q4_0,   WINA_DTYPE_Q4_1,
        WINA_DTYPE_Q5_0,  WINA_DTYPE_Q5_1,  WINA_DTYPE_Q8_0, WINA_DTYPE_Q4_K,   WINA_DTYPE_Q5_K,
        WINA_DTYPE_Q6_K,  WINA_DTYPE_Q2_K,  WINA_DTYPE_Q3_K, WINA_DTYPE_IQ4_NL, WINA_DTYPE_IQ4_XS,
        WINA_DTYPE_MXFP4, WINA_DTYPE_TQ1_0, WINA_DTYPE_TQ2_0};
    static const char *const names[] = {"c",          "avx2", "avxvnni", "avx512",
                                        "avx512vnni", "neon", "dotprod", "i8mm"};
    wina_kernels c;
    wina_kernels_init_c(&c);
    for (size_t n = 0; n < sizeof names / sizeof names[0]; n++) {
        wina_kernels k;
        setenv("WINA_CPU", names[n], 1);
        if (wina_kernels_detect(&k) != WINA_OK) {
            printf("kernels: %s skipped: %s\n", names[n], wina_error());
            continue;
        }
        for (size_t t = 0; t < sizeof types / sizeof types[0]; t++)
            test_type(&c, &k, types[t]);
        static const int32_t sizes[] = {1, 15, 16, 17, 64, 100, 576, 4099};
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            test_vectors(&c, &k, sizes[i]);
            test_scores(&c, &k, sizes[i]);
        }
        static const int32_t dims[] = {2, 8, 24, 32, 64, 80, 96, 100, 128, 256};
        static const int32_t n_rows[] = {1, 4, 7, 8, 9, 64};
        for (int32_t type = 0; type < WINA_N_CACHE_TYPES; type++)
            for (size_t d = 0; d < sizeof dims / sizeof dims[0]; d++)
                for (size_t r = 0; r < sizeof n_rows / sizeof n_rows[0]; r++)
                    test_cache(&c, &k, type, dims[d], n_rows[r]);
        test_cache_extremes(&k);
        test_nan_is_not_lost(&k);
    }
    return check_report("kernels");
}

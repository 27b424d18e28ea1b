/* Number formats: the half conversions over all values, the table of types against the figures of
 * the file format, and decoders at any address within their bounds. That they decode right is
 * tested against gguf-py, in test_dequant.py. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

#include "check.h"
#include "dequant.h"
#include "dtype.h"

static uint32_t bits_of(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits;
}

static float float_of(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

/* The value by its definition: sign, exponent and mantissa as numbers, exact in double. */
static double value_of(uint32_t h, int n_mantissa, int n_exponent) {
    int exponent = (int)(h >> n_mantissa & ((1u << n_exponent) - 1));
    int bias = (1 << (n_exponent - 1)) - 1;
    double mantissa = (double)(h & ((1u << n_mantissa) - 1));
    double sign = h >> (n_mantissa + n_exponent) & 1 ? -1.0 : 1.0;
    if (exponent == (1 << n_exponent) - 1)
        return mantissa != 0 ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0)
        return sign * ldexp(mantissa, 1 - bias - n_mantissa);
    return sign * ldexp(ldexp(1, n_mantissa) + mantissa, exponent - bias - n_mantissa);
}

static int signs_agree(float f, uint32_t h) {
    return !!signbit(f) == (int)(h >> 15);
}

static void test_all_halves(void) {
    for (uint32_t h = 0; h < 65536; h++) {
        float f16 = wina_f16_to_f32((uint16_t)h), bf16 = wina_bf16_to_f32((uint16_t)h);
        uint8_t odd[1 + 2 * 9]; /* the decoder of whole rows gives the same bits, at any address */
        float row[9];
        for (int i = 0; i < 9; i++) {
            odd[1 + 2 * i] = (uint8_t)h;
            odd[2 + 2 * i] = (uint8_t)(h >> 8);
        }
        wina_dequant_f16(odd + 1, row, 9);
        for (int i = 0; i < 9; i++)
            CHECK_MSG(bits_of(row[i]) == bits_of(f16), "f16 %04x of a row", h);
        double want16 = value_of(h, 10, 5), want_b = value_of(h, 7, 8);
        CHECK_MSG(isnan(want16) ? isnan(f16) : (double)f16 == want16, "f16 %04x", h);
        CHECK_MSG(isnan(want_b) ? isnan(bf16) : (double)bf16 == want_b, "bf16 %04x", h);
        CHECK(signs_agree(f16, h) && signs_agree(bf16, h));
        /* There and back: the same bits, a signalling NaN becomes a quiet one. */
        uint32_t back = isnan(f16) ? h | 0x200 : h;
        CHECK_MSG(wina_f32_to_f16(f16) == back, "%04x -> %04x", h, wina_f32_to_f16(f16));
    }
}

/* Between each pair of neighbouring halves: the middle goes to the even one, the floats next to
 * the middle and next to the ends go to the nearer. The upper neighbour of the largest is 65536,
 * for which infinity stands. */
static void test_rounding(void) {
    for (uint32_t h = 0; h < 0x7C00; h++) {
        double low = value_of(h, 10, 5);
        double high = h == 0x7BFF ? 65536.0 : value_of(h + 1, 10, 5);
        float middle = (float)((low + high) / 2); /* 12 bits of mantissa: exact */
        uint32_t even = h & 1 ? h + 1 : h;
        for (uint32_t sign = 0; sign <= 0x8000; sign += 0x8000) {
            float s = sign ? -1.0f : 1.0f;
            uint16_t at = wina_f32_to_f16(s * middle);
            uint16_t below = wina_f32_to_f16(s * nextafterf(middle, 0));
            uint16_t above = wina_f32_to_f16(s * nextafterf(middle, INFINITY));
            CHECK_MSG(at == (even | sign), "middle above %04x -> %04x", h, at);
            CHECK_MSG(below == (h | sign), "below the middle above %04x -> %04x", h, below);
            CHECK_MSG(above == ((h + 1) | sign), "above the middle above %04x -> %04x", h, above);
            float next = nextafterf((float)low, INFINITY);
            CHECK_MSG(wina_f32_to_f16(s * next) == (h | sign), "just above %04x", h);
        }
    }
}

static void test_special_floats(void) {
    static const struct {
        uint32_t bits;
        uint16_t want;
    } cases[] = {
        {0x00000000, 0x0000}, {0x80000000, 0x8000}, /* zeros */
        {0x3F800000, 0x3C00}, {0xC0000000, 0xC000}, /* 1, -2 */
        {0x477FE000, 0x7BFF}, {0x477FEFFF, 0x7BFF}, /* 65504; 65519.996 */
        {0x477FF000, 0x7C00}, {0x47800000, 0x7C00}, /* 65520; 65536 */
        {0x7F7FFFFF, 0x7C00}, {0xFF7FFFFF, 0xFC00}, /* the largest floats */
        {0x7F800000, 0x7C00}, {0xFF800000, 0xFC00}, /* infinities */
        {0x38800000, 0x0400}, {0x387FFFFF, 0x0400}, /* 2^-14 and just below */
        {0x33800000, 0x0001}, {0x33000000, 0x0000}, /* 2^-24; 2^-25, a tie to zero */
        {0x33000001, 0x0001}, {0xB3000001, 0x8001}, /* just above the tie */
        {0x33C00000, 0x0002}, {0x32FFFFFF, 0x0000}, /* 1.5 * 2^-24, a tie; below 2^-25 */
        {0x00000001, 0x0000}, {0x807FFFFF, 0x8000}, /* subnormal floats */
        {0x7FC00000, 0x7E00}, {0xFFC00000, 0xFE00}, /* quiet NaN */
        {0x7F800001, 0x7E00}, {0xFF800001, 0xFE00}, /* signalling, payload below */
        {0x7FFFFFFF, 0x7FFF}, {0x7FA02000, 0x7F01}, /* payloads */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint16_t got = wina_f32_to_f16(float_of(cases[i].bits));
        CHECK_MSG(got == cases[i].want, "%08x -> %04x, not %04x", cases[i].bits, got,
                  cases[i].want);
    }
    CHECK(bits_of(wina_f16_to_f32(0x7D55)) == 0x7FAAA000); /* a payload is kept */
    CHECK(bits_of(wina_f16_to_f32(0xFE01)) == 0xFFC02000);
}

/* What is between 2^-30 and 2^20, against rounding in double. */
static void test_random_floats(void) {
    unsigned long long state = 1;
    for (int i = 0; i < 200000; i++) {
        float f = float_of((uint32_t)check_random(&state));
        f = ldexpf(frexpf(f, &(int){0}), (int)(check_random(&state) % 50) - 30);
        if (!isfinite(f))
            continue;
        int exponent;
        frexp((double)f, &exponent);
        int unit = (exponent < -13 ? -13 : exponent) - 11;
        double want = ldexp(nearbyint(ldexp((double)f, -unit)), unit);
        if (fabs(want) >= 65536)
            want = copysign((double)INFINITY, want);
        CHECK_MSG(value_of(wina_f32_to_f16(f), 10, 5) == want, "%a", (double)f);
    }
}

static const struct row {
    uint32_t id;
    const char *name;
    uint32_t block, block_bytes;
} ROWS[] = {
    {0, "F32", 1, 4},       {1, "F16", 1, 2},       {2, "Q4_0", 32, 18},
    {3, "Q4_1", 32, 20},    {6, "Q5_0", 32, 22},    {7, "Q5_1", 32, 24},
    {8, "Q8_0", 32, 34},    {12, "Q4_K", 256, 144}, {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210}, {30, "BF16", 1, 2},     {10, "Q2_K", 256, 84},
    {11, "Q3_K", 256, 110}, {20, "IQ4_NL", 32, 18}, {23, "IQ4_XS", 256, 136},
    {34, "TQ1_0", 256, 54}, {35, "TQ2_0", 256, 66}, {39, "MXFP4", 32, 17},
};
enum { N_ROWS = sizeof ROWS / sizeof ROWS[0] };

static void test_table(void) {
    int n_found = 0;
    for (uint32_t id = 0; id < 1000; id++)
        n_found += wina_dtype_find(id) != NULL;
    CHECK(n_found == N_ROWS && wina_dtype_find(0xFFFFFFFF) == NULL);
    for (int i = 0; i < N_ROWS; i++) {
        const wina_dtype *t = wina_dtype_find(ROWS[i].id);
        CHECK_MSG(t != NULL, "%s", ROWS[i].name);
        if (!t)
            continue;
        CHECK(t->id == ROWS[i].id && t->block == ROWS[i].block);
        CHECK_MSG(t->block_bytes == ROWS[i].block_bytes, "%s: %u", t->name, t->block_bytes);
        CHECK(strcmp(t->name, ROWS[i].name) == 0);
        CHECK(strcmp(wina_dtype_name(t->id), ROWS[i].name) == 0);
    }
    CHECK(strcmp(wina_dtype_name(10), "Q2_K") == 0);
    CHECK(strcmp(wina_dtype_name(20), "IQ4_NL") == 0);
    CHECK(strcmp(wina_dtype_name(29), "IQ1_M") == 0);
    CHECK(strcmp(wina_dtype_name(41), "Q1_0") == 0);
    CHECK(strcmp(wina_dtype_name(42), "?") == 0);
    CHECK(strcmp(wina_dtype_name(0xFFFFFFFF), "?") == 0);
}

/* Blocks whose weights are known without the decoder: all quants the same. */
static void test_constant_blocks(void) {
    /* d = 0.5, m or dmin = 2; every quant byte 0x21, so low nibbles 1 and high nibbles 2. */
    static const struct {
        uint32_t id;
        uint8_t head[16]; /* bytes before the quants */
        int n_head;
        float low, high; /* weights from low and high nibbles */
    } cases[] = {
        {2, {0, 0x38}, 2, 0.5f * (1 - 8), 0.5f * (2 - 8)},
        {3, {0, 0x38, 0, 0x40}, 4, 0.5f * 1 + 2, 0.5f * 2 + 2},
        {6, {0, 0x38}, 6, 0.5f * (1 - 16), 0.5f * (2 - 16)},
        {6, {0, 0x38, 255, 255, 255, 255}, 6, 0.5f * (17 - 16), 0.5f * (18 - 16)},
        {7, {0, 0x38, 0, 0x40, 255, 255, 255, 255}, 8, 0.5f * 17 + 2, 0.5f * 18 + 2},
        {8, {0, 0x38}, 2, 0.5f * 33, 0.5f * 33},
        /* scales and mins: 3 and 1 in parts 0-3, 3 | 16 and 1 | 32 in parts 4-7, see below */
        {12, {0, 0x38, 0, 0x40, 67, 67, 67, 67, 129, 129, 129, 129, 19, 19, 19, 19}, 16, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const wina_dtype *t = wina_dtype_find(cases[i].id);
        uint8_t block[256];
        float out[256];
        memset(block, 0x21, sizeof block);
        memcpy(block, cases[i].head, (size_t)cases[i].n_head);
        t->decode(block, out, 1);
        for (uint32_t j = 0; j < t->block; j++) {
            float want = j < 16 ? cases[i].low : cases[i].high;
            if (t->block == 256) {
                float scale = j < 128 ? 3 : 19, min = j < 128 ? 1 : 33;
                want = 0.5f * scale * (j / 32 % 2 ? 2 : 1) - 2 * min;
            }
            CHECK_MSG(out[j] == want, "%s weight %u: %g, not %g", t->name, j, (double)out[j],
                      (double)want);
        }
    }
}

/* Any address of the source, the same result; nothing written before or after it. */
static void test_bounds(void) {
    enum { N_BLOCKS = 3, GUARD = 8 };
    unsigned long long state = 2;
    for (int i = 0; i < N_ROWS; i++) {
        const wina_dtype *t = wina_dtype_find(ROWS[i].id);
        size_t n_bytes = (size_t)N_BLOCKS * t->block_bytes, n = (size_t)N_BLOCKS * t->block;
        float *first = calloc(n + 2 * GUARD, sizeof *first);
        float *again = malloc((n + 2 * GUARD) * sizeof *again);
        uint8_t *bytes = malloc(n_bytes);
        for (size_t k = 0; k < n_bytes; k++)
            bytes[k] = (uint8_t)check_random(&state);
        t->decode(bytes, first + GUARD, N_BLOCKS);
        for (size_t shift = 0; shift < 8; shift++) {
            uint8_t *moved = malloc(n_bytes + shift); /* ends with the block */
            memcpy(moved + shift, bytes, n_bytes);
            memset(again, 0xA5, (n + 2 * GUARD) * sizeof *again);
            t->decode(moved + shift, again + GUARD, N_BLOCKS);
            CHECK_MSG(memcmp(first + GUARD, again + GUARD, n * sizeof *first) == 0, "%s + %d",
                      t->name, (int)shift);
            for (size_t k = 0; k < GUARD; k++)
                CHECK(bits_of(again[k]) == 0xA5A5A5A5 &&
                      bits_of(again[GUARD + n + k]) == 0xA5A5A5A5);
            again[GUARD] = 7;
            t->decode(moved + shift, again + GUARD, 0);
            CHECK(again[GUARD] == 7);
            free(moved);
        }
        free(bytes);
        free(again);
        free(first);
    }
}

int main(void) {
    test_all_halves();
    test_rounding();
    test_special_floats();
    test_random_floats();
    test_table();
    test_constant_blocks();
    test_bounds();
    return check_report("test_dtype");
}

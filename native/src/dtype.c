/* dtype: the table of formats, the names of all types of the file format, and the half-precision
 * conversions. A format is added by one row here and one decoder in dequant.c. */
#include "dtype.h"

#include <stddef.h>
#include <string.h>

#include "dequant.h"

_Static_assert(sizeof(wina_block_q4_0) == 18, "Q4_0");
_Static_assert(sizeof(wina_block_q4_1) == 20, "Q4_1");
_Static_assert(sizeof(wina_block_q5_0) == 22, "Q5_0");
_Static_assert(sizeof(wina_block_q5_1) == 24, "Q5_1");
_Static_assert(sizeof(wina_block_q8_0) == 34, "Q8_0");
_Static_assert(sizeof(wina_block_q2_k) == 84, "Q2_K");
_Static_assert(sizeof(wina_block_q3_k) == 110, "Q3_K");
_Static_assert(sizeof(wina_block_q4_k) == 144, "Q4_K");
_Static_assert(sizeof(wina_block_q5_k) == 176, "Q5_K");
_Static_assert(sizeof(wina_block_q6_k) == 210, "Q6_K");
_Static_assert(sizeof(wina_block_iq4_nl) == 18, "IQ4_NL");
_Static_assert(sizeof(wina_block_iq4_xs) == 136, "IQ4_XS");
_Static_assert(sizeof(wina_block_mxfp4) == 17, "MXFP4");
_Static_assert(sizeof(wina_block_tq1_0) == 54, "TQ1_0");
_Static_assert(sizeof(wina_block_tq2_0) == 66, "TQ2_0");

static const wina_dtype DTYPES[] = {
    {WINA_DTYPE_F32, "F32", 1, 4, wina_dequant_f32},
    {WINA_DTYPE_F16, "F16", 1, 2, wina_dequant_f16},
    {WINA_DTYPE_BF16, "BF16", 1, 2, wina_dequant_bf16},
    {WINA_DTYPE_Q4_0, "Q4_0", 32, sizeof(wina_block_q4_0), wina_dequant_q4_0},
    {WINA_DTYPE_Q4_1, "Q4_1", 32, sizeof(wina_block_q4_1), wina_dequant_q4_1},
    {WINA_DTYPE_Q5_0, "Q5_0", 32, sizeof(wina_block_q5_0), wina_dequant_q5_0},
    {WINA_DTYPE_Q5_1, "Q5_1", 32, sizeof(wina_block_q5_1), wina_dequant_q5_1},
    {WINA_DTYPE_Q8_0, "Q8_0", 32, sizeof(wina_block_q8_0), wina_dequant_q8_0},
    {WINA_DTYPE_Q2_K, "Q2_K", 256, sizeof(wina_block_q2_k), wina_dequant_q2_k},
    {WINA_DTYPE_Q3_K, "Q3_K", 256, sizeof(wina_block_q3_k), wina_dequant_q3_k},
    {WINA_DTYPE_Q4_K, "Q4_K", 256, sizeof(wina_block_q4_k), wina_dequant_q4_k},
    {WINA_DTYPE_Q5_K, "Q5_K", 256, sizeof(wina_block_q5_k), wina_dequant_q5_k},
    {WINA_DTYPE_Q6_K, "Q6_K", 256, sizeof(wina_block_q6_k), wina_dequant_q6_k},
    {WINA_DTYPE_IQ4_NL, "IQ4_NL", 32, sizeof(wina_block_iq4_nl), wina_dequant_iq4_nl},
    {WINA_DTYPE_IQ4_XS, "IQ4_XS", 256, sizeof(wina_block_iq4_xs), wina_dequant_iq4_xs},
    {WINA_DTYPE_MXFP4, "MXFP4", 32, sizeof(wina_block_mxfp4), wina_dequant_mxfp4},
    {WINA_DTYPE_TQ1_0, "TQ1_0", 256, sizeof(wina_block_tq1_0), wina_dequant_tq1_0},
    {WINA_DTYPE_TQ2_0, "TQ2_0", 256, sizeof(wina_block_tq2_0), wina_dequant_tq2_0},
};

/* Every id that the file format has given out, so that a refusal can name the type. 4, 5, 31-33
 * and 36-38 were withdrawn. */
static const char *const NAMES[] = {
    [0] = "F32",     [1] = "F16",         [2] = "Q4_0",        [3] = "Q4_1",        [4] = "Q4_2",
    [5] = "Q4_3",    [6] = "Q5_0",        [7] = "Q5_1",        [8] = "Q8_0",        [9] = "Q8_1",
    [10] = "Q2_K",   [11] = "Q3_K",       [12] = "Q4_K",       [13] = "Q5_K",       [14] = "Q6_K",
    [15] = "Q8_K",   [16] = "IQ2_XXS",    [17] = "IQ2_XS",     [18] = "IQ3_XXS",    [19] = "IQ1_S",
    [20] = "IQ4_NL", [21] = "IQ3_S",      [22] = "IQ2_S",      [23] = "IQ4_XS",     [24] = "I8",
    [25] = "I16",    [26] = "I32",        [27] = "I64",        [28] = "F64",        [29] = "IQ1_M",
    [30] = "BF16",   [31] = "Q4_0_4_4",   [32] = "Q4_0_4_8",   [33] = "Q4_0_8_8",   [34] = "TQ1_0",
    [35] = "TQ2_0",  [36] = "IQ4_NL_4_4", [37] = "IQ4_NL_4_8", [38] = "IQ4_NL_8_8", [39] = "MXFP4",
    [40] = "NVFP4",  [41] = "Q1_0",
};

const wina_dtype *wina_dtype_find(uint32_t id) {
    for (size_t i = 0; i < sizeof DTYPES / sizeof DTYPES[0]; i++)
        if (DTYPES[i].id == id)
            return &DTYPES[i];
    return NULL;
}

const char *wina_dtype_name(uint32_t id) {
    if (id >= sizeof NAMES / sizeof NAMES[0] || !NAMES[id])
        return "?";
    return NAMES[id];
}

static float float_of_bits(uint32_t bits) {
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

float wina_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31) /* infinity, NaN with its payload */
        return float_of_bits(sign | 0x7F800000 | mantissa << 13);
    if (exponent == 0) {
        /* Zero or subnormal: mantissa * 2^-24, exact in float32. */
        float magnitude = (float)mantissa * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t wina_f32_to_f16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) /* NaN: made quiet, the upper payload bits stay */
        return (uint16_t)(sign | 0x7E00 | (magnitude >> 13 & 0x1FF));
    if (magnitude >= 0x47800000) /* 65536 and above */
        return (uint16_t)(sign | 0x7C00);
    uint32_t half, rest, tie;
    if (magnitude >= 0x38800000) { /* normal: 2^-14 and above */
        half = (magnitude >> 13) - (112 << 10);
        rest = magnitude & 0x1FFF;
        tie = 0x1000;
    } else {
        uint32_t exponent = magnitude >> 23;
        if (exponent < 102) /* below 2^-25: nearer to zero than to 2^-24 */
            return (uint16_t)sign;
        uint32_t mantissa = (magnitude & 0x7FFFFF) | 0x800000, shift = 126 - exponent;
        half = mantissa >> shift;
        rest = mantissa & ((1u << shift) - 1);
        tie = 1u << (shift - 1);
    }
    /* To nearest, ties to even; a carry runs into the exponent, up to infinity, as it should. */
    half += rest > tie || (rest == tie && (half & 1));
    return (uint16_t)(sign | half);
}

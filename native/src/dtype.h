/* dtype: tensor types as rows of one table. A row of a tensor is a sequence of blocks; `decode` is
 * the scalar ground truth of every kernel and equals gguf-py's dequantiser bit for bit. */
#ifndef WINA_DTYPE_H
#define WINA_DTYPE_H

#include <stdint.h>

/* Values are those of the GGUF file format. */
typedef enum wina_dtype_id {
    WINA_DTYPE_F32 = 0,
    WINA_DTYPE_F16 = 1,
    WINA_DTYPE_Q4_0 = 2,
    WINA_DTYPE_Q4_1 = 3,
    WINA_DTYPE_Q5_0 = 6,
    WINA_DTYPE_Q5_1 = 7,
    WINA_DTYPE_Q8_0 = 8,
    WINA_DTYPE_Q2_K = 10,
    WINA_DTYPE_Q3_K = 11,
    WINA_DTYPE_Q4_K = 12,
    WINA_DTYPE_Q5_K = 13,
    WINA_DTYPE_Q6_K = 14,
    WINA_DTYPE_IQ4_NL = 20,
    WINA_DTYPE_IQ4_XS = 23,
    WINA_DTYPE_BF16 = 30,
    WINA_DTYPE_TQ1_0 = 34,
    WINA_DTYPE_TQ2_0 = 35,
    WINA_DTYPE_MXFP4 = 39
} wina_dtype_id;

typedef struct wina_dtype {
    uint32_t id;      /* wina_dtype_id */
    const char *name; /* "Q4_0" */
    uint32_t block;   /* weights per block: 1, 32 or 256 */
    uint32_t block_bytes;
    /* n_blocks blocks at src (any alignment) to n_blocks * block floats */
    void (*decode)(const uint8_t *src, float *dst, uint64_t n_blocks);
} wina_dtype;

/* NULL if we do not have the type. */
const wina_dtype *wina_dtype_find(uint32_t id);

/* Name of any type id that the file format knows, ours or not; "?" otherwise. For messages. */
const char *wina_dtype_name(uint32_t id);

/* IEEE half and bfloat16, exact, any value; f32_to_f16 rounds to nearest even. Scalar and
 * independent of the processor. */
float wina_f16_to_f32(uint16_t h);
uint16_t wina_f32_to_f16(float f);
/* A scale of MXFP4: 2^(e - 128), which the format's doubled integers are multiplied by. */
static inline float wina_e8m0_to_f32(uint8_t e) {
    union {
        uint32_t u;
        float f;
    } v = {e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23};
    return v.f;
}
static inline float wina_bf16_to_f32(uint16_t h) {
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)h << 16};
    return v.f;
}

#endif

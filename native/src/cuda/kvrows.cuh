/* kvrows: rows of the key/value cache (cache.h), as a thread block stores and reads them. A group
 * of lanes reads one position, 8 elements per lane. */
#ifndef WINA_CUDA_KVROWS_CUH
#define WINA_CUDA_KVROWS_CUH

#include <cfloat>

#include "common.cuh"
#include "device.h"

static __device__ __forceinline__ uint8_t *cache_row(const wina_cuda_attend &a, bool value,
                                                     int kv_head, int row) {
    return a.cache[value] + ((int64_t)kv_head * a.n_rows + row) * a.row_bytes[value];
}

/* Element d of the row of `pos`, rounded as the CPU rounds it. All lanes of a warp, with 32
 * elements in a row; those behind the last are zero. */
static __device__ __forceinline__ void store_element(const wina_cuda_attend &a, bool value,
                                                     int kv_head, int pos, int d, float x) {
    uint8_t *row = cache_row(a, value, kv_head, pos % a.n_rows);
    if (!a.is_q8[value]) {
        if (d < a.head_pad)
            reinterpret_cast<uint16_t *>(row)[d] = __half_as_ushort(__float2half_rn(x));
        return;
    }
    /* Bits of magnitudes have the order of the magnitudes, with what is not finite above all. */
    const float most = __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(fabsf(x))));
    const float scale = most <= FLT_MAX ? most / 127.0f : NAN;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    const bool rounds = inverse <= FLT_MAX && inverse > 0.0f;
    if (d < a.head_pad)
        row[d] = (uint8_t)(int8_t)(rounds ? __float2int_rn(x * inverse) : 0);
    if (d % 32 == 0 && d < a.head_dim)
        reinterpret_cast<uint16_t *>(row + a.head_pad)[d / 32] =
            __half_as_ushort(__float2half_rn(scale));
}

/* A lane's 8 elements of a row: of f16 themselves, of q8_0 in x and y, their scale in z. F16: both
 * keys and values are f16. */
template <bool F16>
static __device__ __forceinline__ uint4 load_elements(const uint8_t *row, int lane, int pad,
                                                      bool is_q8) {
    if (F16 || !is_q8)
        return *reinterpret_cast<const uint4 *>(row + lane * 16);
    const uint2 bytes = *reinterpret_cast<const uint2 *>(row + lane * 8);
    return make_uint4(bytes.x, bytes.y,
                      *reinterpret_cast<const uint16_t *>(row + pad + lane / 4 * 2), 0);
}

/* The elements, but for a factor that is returned. */
template <bool F16>
static __device__ __forceinline__ float to_floats8(uint4 v, bool is_q8, float (&f)[8]) {
    const uint32_t w[4] = {v.x, v.y, v.z, v.w};
    if constexpr (!F16)
        if (is_q8) {
#pragma unroll
            for (int i = 0; i < 8; i++) { /* a byte + 128 as the low bits of 2^23 */
                const uint32_t bits =
                    __byte_perm(w[i / 4] ^ 0x80808080u, 0x4b000000u, 0x7440 + i % 4);
                f[i] = __uint_as_float(bits) - 8388736.0f;
            }
            return __half2float(__ushort_as_half((unsigned short)v.z));
        }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 t = __half22float2(*reinterpret_cast<const __half2 *>(&w[i]));
        f[2 * i] = t.x, f[2 * i + 1] = t.y;
    }
    return 1.0f;
}

/* What a group reads: N positions at a time, each slot loaded again as soon as it has
 * been used. */
template <int N> struct attend_slots { uint4 key[N], value[N]; };

/* The rows of a head from a position on: positions that a token sees go round the end at most once.
 */
struct attend_rows {
    const uint8_t *keys, *values;
    int begin; /* position of row 0, at most as far back as the first one that is seen */
};

/* Slot u of position `pos`, which must be in the cache. */
template <bool F16, int N>
static __device__ __forceinline__ void load_slot(attend_slots<N> &s, int u, const attend_rows &rows,
                                                 int pos, int lane, const wina_cuda_attend &a) {
    int row = pos - rows.begin;
    row -= row >= a.n_rows ? a.n_rows : 0;
    s.key[u] =
        load_elements<F16>(rows.keys + (int64_t)row * a.row_bytes[0], lane, a.head_pad, a.is_q8[0]);
    s.value[u] = load_elements<F16>(rows.values + (int64_t)row * a.row_bytes[1], lane, a.head_pad,
                                    a.is_q8[1]);
}

#endif

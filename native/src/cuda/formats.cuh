/* formats: how a lane reads its rows of a column and what it adds to its sums.
 *
 * A warp covers TILE consecutive rows of one input (512 bytes, or 256 with four bits), a lane
 * LANE_ROWS of them. Float formats multiply as they are. Quantised formats take two inputs at a
 * time: their bytes are interleaved and multiplied with a pair of 16-bit activations (dp2a), so
 * that sums over a block are exact integers; scales are applied once per block. */
#ifndef WINA_CUDA_FORMATS_CUH
#define WINA_CUDA_FORMATS_CUH

#include "common.cuh"

/* What a list of kept inputs looks like to a format. */
enum list_kind {
    LIST_FLOAT,  /* inputs and floats */
    LIST_PAIR32, /* pairs of inputs of a block of 32 and 16-bit activations */
    LIST_PAIR16  /* the same, sub-blocks of 16 */
};

static __device__ __forceinline__ float2 half2_at(uint32_t bits) {
    return __half22float2(*reinterpret_cast<const __half2 *>(&bits));
}

/* ---- floats ------------------------------------------------------------------------------- */

struct format_f32 {
    static constexpr list_kind LIST = LIST_FLOAT;
    static constexpr int LANE_ROWS = 4, TILE = 128, ROW_BITS = 32, LOW_BITS = 32, UNROLL = 8;
    static __device__ __forceinline__ void add(float (&acc)[4], uint4 v, float x) {
        acc[0] = fmaf(__uint_as_float(v.x), x, acc[0]);
        acc[1] = fmaf(__uint_as_float(v.y), x, acc[1]);
        acc[2] = fmaf(__uint_as_float(v.z), x, acc[2]);
        acc[3] = fmaf(__uint_as_float(v.w), x, acc[3]);
    }
};

struct format_f16 {
    static constexpr list_kind LIST = LIST_FLOAT;
    static constexpr int LANE_ROWS = 8, TILE = 256, ROW_BITS = 16, LOW_BITS = 16, UNROLL = 8;
    static __device__ __forceinline__ void add(float (&acc)[8], uint4 v, float x) {
        const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float2 f = half2_at(w[i]);
            acc[2 * i] = fmaf(f.x, x, acc[2 * i]);
            acc[2 * i + 1] = fmaf(f.y, x, acc[2 * i + 1]);
        }
    }
};

struct format_bf16 {
    static constexpr list_kind LIST = LIST_FLOAT;
    static constexpr int LANE_ROWS = 8, TILE = 256, ROW_BITS = 16, LOW_BITS = 16, UNROLL = 8;
    static __device__ __forceinline__ void add(float (&acc)[8], uint4 v, float x) {
        const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            acc[2 * i] = fmaf(__uint_as_float(w[i] << 16), x, acc[2 * i]);
            acc[2 * i + 1] = fmaf(__uint_as_float(w[i] & 0xffff0000u), x, acc[2 * i + 1]);
        }
    }
};

/* ---- quantised values --------------------------------------------------------------------- */

/* Sixteen values of a lane as four words of four rows; word j holds rows row(lane, j) .. + 3, whose
 * scales stand together at position scale_at(lane, j) of the strip's swapped order. */
template <int LOW, int HIGH> struct values {
    static constexpr int WORDS = 4;
    static constexpr int TILE = 512, LOW_BITS = LOW, UPPER = HIGH ? 1 : 16;
    struct raw {
        uint2 low;
        uint32_t high[HIGH ? 2 : 1];
    };

    static __device__ __forceinline__ int row(int lane, int j) {
        return (lane >> 2) * 64 + (j >> 1) * 32 + (lane & 3) * 8 + (j & 1) * 4;
    }
    static __device__ __forceinline__ int scale_at(int lane, int j) {
        int h = lane & 3;
        return (lane >> 2) * 64 + 16 * (2 * (h & 1) + (j & 1)) + 4 * (2 * (j >> 1) + (h >> 1));
    }
    /* Where a lane's rows are in a column, and its high bits from there. strip: of the panel. */
    static __device__ __forceinline__ uint32_t low_at(uint32_t strip, int lane) {
        return strip * 32 + (lane & 3) * 8;
    }
    static __device__ __forceinline__ int high_from_low(uint32_t strip, int lane, uint32_t n_rows) {
        const uint32_t high = HIGH == 1 ? strip * 8 + (lane & 3) : strip * 16 + (lane & 1) * 8;
        return (int)(n_rows / 2 + high) - (int)low_at(strip, lane);
    }
    static __device__ __forceinline__ raw load(const uint8_t *low, int high_from_low) {
        raw r;
        r.low = load_stream8(low);
        if constexpr (HIGH == 1) {
            const uint8_t *high = low + high_from_low;
            r.high[0] = __ldg(high);
            r.high[1] = __ldg(high + 4);
        } else if constexpr (HIGH == 2) {
            uint2 h = load_stream8(low + high_from_low);
            r.high[0] = h.x;
            r.high[1] = h.y;
        }
        return r;
    }
    static __device__ __forceinline__ raw zero() {
        raw r = {};
        return r;
    }
    /* Four bits become bit 4 of four bytes. */
    static __device__ __forceinline__ uint32_t spread(uint32_t bits) {
        return ((bits & 15) * 0x00204081u & 0x01010101u) << 4;
    }
    static __device__ __forceinline__ void unpack(const raw &r, int lane, uint32_t (&w)[4]) {
        w[0] = r.low.x & 0x0f0f0f0f;
        w[1] = r.low.y & 0x0f0f0f0f;
        w[2] = r.low.x >> 4 & 0x0f0f0f0f;
        w[3] = r.low.y >> 4 & 0x0f0f0f0f;
        if constexpr (HIGH == 1) {
#pragma unroll
            for (int j = 0; j < 4; j++)
                w[j] |= spread(r.high[j >> 1] >> (4 * (j & 1)));
        } else if constexpr (HIGH == 2) {
            int shift = 2 * ((lane & 3) >> 1);
#pragma unroll
            for (int j = 0; j < 4; j++)
                w[j] |= (r.high[j & 1] >> (shift + 4 * (j >> 1)) & 0x03030303) << 4;
        }
    }
};

template <> struct values<8, 0> {
    static constexpr int WORDS = 4;
    static constexpr int TILE = 512, LOW_BITS = 8, UPPER = 1;
    typedef uint4 raw;
    static __device__ __forceinline__ int row(int lane, int j) {
        return (lane >> 2) * 64 + (lane & 3) * 16 + 4 * j;
    }
    static __device__ __forceinline__ int scale_at(int lane, int j) {
        return (lane >> 2) * 64 + 16 * j + 4 * (lane & 3);
    }
    static __device__ __forceinline__ uint32_t low_at(uint32_t strip, int lane) {
        return strip * 64 + (lane & 3) * 16;
    }
    static __device__ __forceinline__ int high_from_low(uint32_t, int, uint32_t) {
        return 0;
    }
    static __device__ __forceinline__ raw load(const uint8_t *low, int) {
        return load_stream16(low);
    }
    static __device__ __forceinline__ raw zero() {
        return make_uint4(0, 0, 0, 0);
    }
    static __device__ __forceinline__ void unpack(const raw &r, int, uint32_t (&w)[4]) {
        w[0] = r.x, w[1] = r.y, w[2] = r.z, w[3] = r.w;
    }
};

#ifdef WINA_CUDA_EMULATE
static inline void dp2a_low(int &acc, int x, uint32_t bytes) {
    acc = emulated_dp2a(acc, x, bytes & 0xffff);
}
static inline void dp2a_high(int &acc, int x, uint32_t bytes) {
    acc = emulated_dp2a(acc, x, bytes >> 16);
}
#else
static __device__ __forceinline__ void dp2a_low(int &acc, int x, uint32_t bytes) {
    asm("dp2a.lo.s32.u32 %0, %1, %2, %0;" : "+r"(acc) : "r"(x), "r"(bytes));
}
static __device__ __forceinline__ void dp2a_high(int &acc, int x, uint32_t bytes) {
    asm("dp2a.hi.s32.u32 %0, %1, %2, %0;" : "+r"(acc) : "r"(x), "r"(bytes));
}
#endif

/* acc[0..3] += x[0] a + x[1] b for the four rows of words a and b; x: two signed 16-bit integers,
 * a and b: unsigned bytes. */
static __device__ __forceinline__ void add_pair(int *acc, uint32_t a, uint32_t b, int x) {
    const uint32_t first = __byte_perm(a, b, 0x5140), second = __byte_perm(a, b, 0x7362);
    dp2a_low(acc[0], x, first);
    dp2a_high(acc[1], x, first);
    dp2a_low(acc[2], x, second);
    dp2a_high(acc[3], x, second);
}

/* dots += x[0] a + x[1] b for all rows of a lane. Plain nibbles are paired while two are still in a
 * byte, and upper ones stay where they are: UPPER says how much larger that makes the sums of
 * words 2 and 3. */
template <class V>
static __device__ __forceinline__ void dot_pair(int *dots, const typename V::raw &a,
                                                const typename V::raw &b, int lane, int x) {
    if constexpr (V::UPPER == 16) {
        const uint32_t wa[2] = {a.low.x, a.low.y}, wb[2] = {b.low.x, b.low.y};
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const uint32_t first = __byte_perm(wa[j], wb[j], 0x5140);
            const uint32_t second = __byte_perm(wa[j], wb[j], 0x7362);
            int *low = dots + 4 * j, *high = dots + 4 * (j + 2);
            dp2a_low(low[0], x, first & 0x0f0f0f0fu);
            dp2a_high(low[1], x, first & 0x0f0f0f0fu);
            dp2a_low(low[2], x, second & 0x0f0f0f0fu);
            dp2a_high(low[3], x, second & 0x0f0f0f0fu);
            dp2a_low(high[0], x, first & 0xf0f0f0f0u);
            dp2a_high(high[1], x, first & 0xf0f0f0f0u);
            dp2a_low(high[2], x, second & 0xf0f0f0f0u);
            dp2a_high(high[3], x, second & 0xf0f0f0f0u);
        }
    } else {
        uint32_t wa[V::WORDS], wb[V::WORDS];
        V::unpack(a, lane, wa);
        V::unpack(b, lane, wb);
#pragma unroll
        for (int j = 0; j < V::WORDS; j++)
            add_pair(&dots[4 * j], wa[j], wb[j], x);
    }
}

/* ---- scales ------------------------------------------------------------------------------- */

static __device__ __forceinline__ void to_floats(uint2 v, float (&f)[4]) {
    float2 a = half2_at(v.x), b = half2_at(v.y);
    f[0] = a.x, f[1] = a.y, f[2] = b.x, f[3] = b.y;
}
static __device__ __forceinline__ uint2 load_halves(const uint8_t *p) {
    return load_stream8(p);
}
static __device__ __forceinline__ uint32_t load_word(const uint8_t *p) {
    return load_stream4(p);
}

/* Each kind: load() fetches what word j of a lane needs at position `at` of the block's scales;
 * flush() adds xs * (scaled sums) to the row sums. sum: of the activations of these inputs. */
template <int OFFSET> struct scales_d {
    static constexpr int WIDTH = 2; /* bytes of a row's first scale */
    struct raw {
        uint2 d;
    };
    static __device__ __forceinline__ raw load(const uint8_t *scales, const uint8_t *,
                                               uint32_t n_rows, uint32_t at, int) {
        (void)n_rows;
        return {load_halves(scales + 2 * at)};
    }
    static __device__ __forceinline__ void flush(const raw &r, const int *acc, int sum, float xs,
                                                 float *out) {
        float d[4];
        to_floats(r.d, d);
#pragma unroll
        for (int i = 0; i < 4; i++)
            out[i] = fmaf(d[i] * xs, (float)(acc[i] - OFFSET * sum), out[i]);
    }
};

struct scales_dm {
    static constexpr int WIDTH = 2;
    struct raw {
        uint2 d, m;
    };
    static __device__ __forceinline__ raw load(const uint8_t *scales, const uint8_t *,
                                               uint32_t n_rows, uint32_t at, int) {
        return {load_halves(scales + 2 * at), load_halves(scales + 2 * (n_rows + at))};
    }
    static __device__ __forceinline__ void flush(const raw &r, const int *acc, int sum, float xs,
                                                 float *out) {
        float d[4], m[4];
        to_floats(r.d, d);
        to_floats(r.m, m);
        const float total = xs * (float)sum;
#pragma unroll
        for (int i = 0; i < 4; i++)
            out[i] = fmaf(d[i] * xs, (float)acc[i], fmaf(m[i], total, out[i]));
    }
};

struct scales_k_dm {
    static constexpr int WIDTH = 1;
    struct raw {
        uint2 d, m;
        uint32_t s, t;
    };
    static __device__ __forceinline__ raw load(const uint8_t *scales, const uint8_t *super,
                                               uint32_t n_rows, uint32_t at, int) {
        return {load_halves(super + 2 * at), load_halves(super + 2 * (n_rows + at)),
                load_word(scales + at), load_word(scales + n_rows + at)};
    }
    static __device__ __forceinline__ void flush(const raw &r, const int *acc, int sum, float xs,
                                                 float *out) {
        float d[4], m[4];
        to_floats(r.d, d);
        to_floats(r.m, m);
        const float total = xs * (float)sum;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float scale = d[i] * (float)(r.s >> (8 * i) & 255);
            float low = m[i] * (float)(r.t >> (8 * i) & 255);
            out[i] = fmaf(scale * xs, (float)acc[i], fmaf(-low, total, out[i]));
        }
    }
};

struct scales_k_d16 {
    static constexpr int WIDTH = 1;
    struct raw {
        uint2 d;
        uint32_t s;
    };
    static __device__ __forceinline__ raw load(const uint8_t *scales, const uint8_t *super,
                                               uint32_t n_rows, uint32_t at, int sub) {
        return {load_halves(super + 2 * at), load_word(scales + (sub & 1) * n_rows + at)};
    }
    static __device__ __forceinline__ void flush(const raw &r, const int *acc, int sum, float xs,
                                                 float *out) {
        float d[4];
        to_floats(r.d, d);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float scale = d[i] * (float)(int8_t)(r.s >> (8 * i) & 255);
            out[i] = fmaf(scale * xs, (float)(acc[i] - 32 * sum), out[i]);
        }
    }
};

template <class V, class S, list_kind KIND, int U> struct format_quant {
    typedef V value;
    typedef S scale;
    static constexpr list_kind LIST = KIND;
    static constexpr int LANE_ROWS = 16, TILE = V::TILE, UNROLL = U;
    static constexpr int LOW_BITS = V::LOW_BITS, SCALE_WIDTH = S::WIDTH;
};

typedef format_quant<values<8, 0>, scales_d<128>, LIST_PAIR32, 4> format_q8_0;
typedef format_quant<values<4, 0>, scales_d<8>, LIST_PAIR32, 4> format_q4_0;
typedef format_quant<values<4, 0>, scales_dm, LIST_PAIR32, 4> format_q4_1;
typedef format_quant<values<4, 1>, scales_d<16>, LIST_PAIR32, 3> format_q5_0;
typedef format_quant<values<4, 1>, scales_dm, LIST_PAIR32, 3> format_q5_1;
typedef format_quant<values<4, 0>, scales_k_dm, LIST_PAIR32, 3> format_q4_k;
typedef format_quant<values<4, 1>, scales_k_dm, LIST_PAIR32, 3> format_q5_k;
typedef format_quant<values<4, 2>, scales_k_d16, LIST_PAIR16, 3> format_q6_k;

#endif

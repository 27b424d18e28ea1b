/* program: where the kernel of program.cuh is planned and launched, and its instance for models of
 * several formats. */
#include "program.cuh"

namespace {

/* The smallest kernel first; the last one can run all formats. */
const program_instance *const *lists() {
    static const program_instance *const all[] = {
#ifndef WINA_CUDA_EMULATE
        program_instances_block(), program_instances_float(), program_instances_k(),
#endif
        program_instances<FORMATS_ALL>::get(), nullptr};
    return all;
}

program_function kernel_for(uint32_t formats) {
    for (const program_instance *const *l = lists(); *l; l++)
        for (const program_instance *i = *l; i->kernel; i++)
            if (!(formats & ~i->formats))
                return i->kernel;
    return nullptr;
}

int most_shared(void) {
    int device = 0, most = 0;
    cudaFuncAttributes attributes = {};
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) !=
            cudaSuccess ||
        cudaFuncGetAttributes(
            &attributes, reinterpret_cast<const void *>(kernel_for(FORMATS_ALL))) != cudaSuccess)
        return 0;
    return most - (int)attributes.sharedSizeBytes;
}

struct shape {
    int tile, low_bits, granule; /* rows of a tile at most, and what they are a multiple of */
    list_kind list;
};

shape shape_of(int format) {
    switch (format) {
    case WINA_CUDA_F32:
        return {format_f32::TILE, 32, 2 * format_f32::LANE_ROWS, LIST_FLOAT};
    case WINA_CUDA_F16:
    case WINA_CUDA_BF16:
        return {format_f16::TILE, 16, 2 * format_f16::LANE_ROWS, LIST_FLOAT};
    case WINA_CUDA_Q6_K:
        return {format_q6_k::TILE, 4, 64, LIST_PAIR16};
    case WINA_CUDA_Q8_0:
        return {format_q8_0::TILE, 8, 64, LIST_PAIR32};
    default:
        return {format_q4_0::TILE, 4, 64, LIST_PAIR32};
    }
}

/* Cuts rows into tiles with blocks of their own, as many for each, if that keeps nearly all of the
 * device busy; else into the largest tiles, and the work of all tiles into equal parts. A block
 * that works on two tiles pays for its start and end twice. */
void choose_tiles(wina_cuda_gemv *g, const shape &k, int n_sms) {
    const int n_units = (g->n_rows + k.granule - 1) / k.granule;
    double best = 1e30;
    for (int units = k.tile / k.granule; units * k.granule >= 128; units--) {
        const int n_tiles = (n_units + units - 1) / units;
        if (n_tiles > n_sms)
            continue;
        const double cost = (double)units / (n_sms / n_tiles);
        if (cost < best) {
            best = cost;
            g->tile_rows = units * k.granule;
            g->n_tiles = n_tiles;
        }
    }
    g->aligned = best * n_sms * 14 <= n_units * 16.0;
    if (!g->aligned) {
        g->tile_rows = k.tile;
        g->n_tiles = (g->n_rows + k.tile - 1) / k.tile;
    }
}

} // namespace

extern "C" int32_t wina_cuda_plan_phase(wina_cuda_phase *phase, int32_t n_sms) {
    const int most_bytes = most_shared();
    if (phase->kind == WINA_CUDA_ATTEND)
        return phase->u.attend.head_pad > 128  ? (int)sizeof(attend_shared<32>)
               : phase->u.attend.head_pad > 64 ? (int)sizeof(attend_shared<16>)
                                               : (int)sizeof(attend_shared<8>);
    if (phase->kind != WINA_CUDA_GEMV)
        return 0;
    wina_cuda_gemv *g = &phase->u.gemv;
    if (g->panel.format >= WINA_CUDA_N_FORMATS || g->panel.n_cols > WINA_CUDA_MAX_INPUTS)
        return -1;
    const shape k = shape_of(g->panel.format);
    const int n = g->panel.n_cols, n_blocks = (n + 31) / 32;
    g->low_bits = k.low_bits;
    choose_tiles(g, k, n_sms);
    const int64_t most = k.list == LIST_FLOAT    ? n
                         : k.list == LIST_PAIR32 ? n / 2 + n / 64 + 1
                                                 : n / 2 + n / 32 + 2;
    const int64_t part = g->aligned ? most / (n_sms / g->n_tiles) : most * g->n_tiles / n_sms;
    const int64_t share = part + part / 8 + LIST_LEAST_WORK + 2;
    const int sums = GEMV_WARPS * k.tile * (int)sizeof(float);
    g->capacity = (int)(share < most ? share : most);
    const int entry = k.list == LIST_FLOAT ? (int)sizeof(list_entry<LIST_FLOAT>::type)
                                           : (int)sizeof(list_entry<LIST_PAIR32>::type);
    const int list = g->capacity * entry + (4 * n_blocks + 1) * (int)sizeof(float);
    for (g->in_shared = 1;; g->in_shared = 0) {
        const int scratch = (g->in_shared ? 2 : 1) * ((n + 3) / 4 * 4) * (int)sizeof(float);
        g->scratch_bytes = scratch > sums ? scratch : sums;
        if (g->scratch_bytes + list <= most_bytes)
            return g->scratch_bytes + list;
        if (!g->in_shared)
            return -1;
    }
}

extern "C" cudaError_t wina_cuda_program_prepare(void) {
    for (const program_instance *const *l = lists(); *l; l++)
        for (const program_instance *i = *l; i->kernel; i++) {
            const cudaError_t e =
                cudaFuncSetAttribute(reinterpret_cast<const void *>(i->kernel),
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, most_shared());
            if (e != cudaSuccess)
                return e;
        }
    return cudaSuccess;
}

extern "C" cudaError_t wina_cuda_program_launch(const wina_cuda_program *p, int32_t n_sms,
                                                cudaStream_t stream) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)n_sms);
    config.blockDim = dim3(PROGRAM_THREADS);
    config.dynamicSmemBytes = (size_t)p->shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = 1;
    return cudaLaunchKernelEx(&config, kernel_for(p->formats), *p);
}

extern "C" uint64_t wina_cuda_gemv_scratch(int32_t n_sms) {
    return (uint64_t)n_sms * 2 * 2 * GEMV_MOST_ROWS * sizeof(float);
}

extern "C" int32_t wina_cuda_gemv_tiles(int32_t n_rows) {
    return (n_rows + 127) / 128;
}

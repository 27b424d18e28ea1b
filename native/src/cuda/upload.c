/* upload: panels go to the device as they are, through two page-locked buffers, so that copying
 * into one overlaps the transfer from the other. Those of types without kernels become float16
 * there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"

enum { ALIGNMENT = 256, STAGE_BYTES = 16 << 20 };

int32_t wina_cuda_fail(const wina_cuda_host *host, cudaError_t error, const char *what) {
    (void)cudaGetLastError(); /* some errors stick to the next call otherwise */
    return host->fail(error == cudaErrorMemoryAllocation ? WINA_E_MEMORY : WINA_E_DEVICE,
                      "CUDA: %s: %s", what, cudaGetErrorString(error));
}

/* ---- placing ------------------------------------------------------------------------------ */

/* Everything is placed twice by the same code: first to count (stage NULL), then to copy. */
typedef struct upload {
    wina_cuda_model *m;
    uint64_t n_bytes; /* placed so far */
    uint8_t *raw;     /* device memory for a panel that is converted, of the largest one's size */
    uint64_t raw_bytes;
    uint8_t *stage[2];
    cudaEvent_t copied[2];
    cudaStream_t stream;
    int32_t turn;
    int32_t status;
} upload;

static cudaError_t copy_piece(upload *u, uint8_t *to, const uint8_t *from, uint64_t n) {
    int32_t i = u->turn++ & 1;
    cudaError_t e = cudaEventSynchronize(u->copied[i]);
    if (e != cudaSuccess)
        return e;
    memcpy(u->stage[i], from, n);
    e = cudaMemcpyAsync(to, u->stage[i], n, cudaMemcpyHostToDevice, u->stream);
    return e == cudaSuccess ? cudaEventRecord(u->copied[i], u->stream) : e;
}

static void copy(upload *u, uint8_t *to, const void *from, uint64_t n_bytes) {
    for (uint64_t done = 0, n; done < n_bytes && u->status == WINA_OK; done += n) {
        n = n_bytes - done < STAGE_BYTES ? n_bytes - done : STAGE_BYTES;
        cudaError_t e = copy_piece(u, to + done, (const uint8_t *)from + done, n);
        if (e != cudaSuccess)
            u->status = wina_cuda_fail(u->m->host, e, "copying weights");
    }
}

/* Device address of n_bytes, or NULL while they are counted. */
static uint8_t *reserve(upload *u, uint64_t n_bytes) {
    uint64_t at = u->n_bytes;
    u->n_bytes += (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return u->m->arena && u->status == WINA_OK ? u->m->arena + at : NULL;
}

/* Device address of n_bytes copied from host memory. */
static void *place(upload *u, const void *from, uint64_t n_bytes) {
    uint8_t *to = reserve(u, n_bytes);
    if (to)
        copy(u, to, from, n_bytes);
    return to;
}

static int32_t format_of(uint32_t dtype) {
    switch (dtype) {
    case WINA_DTYPE_F32:
        return WINA_CUDA_F32;
    case WINA_DTYPE_F16:
        return WINA_CUDA_F16;
    case WINA_DTYPE_BF16:
        return WINA_CUDA_BF16;
    case WINA_DTYPE_Q8_0:
        return WINA_CUDA_Q8_0;
    case WINA_DTYPE_Q4_0:
        return WINA_CUDA_Q4_0;
    case WINA_DTYPE_Q4_1:
        return WINA_CUDA_Q4_1;
    case WINA_DTYPE_Q5_0:
        return WINA_CUDA_Q5_0;
    case WINA_DTYPE_Q5_1:
        return WINA_CUDA_Q5_1;
    case WINA_DTYPE_Q4_K:
        return WINA_CUDA_Q4_K;
    case WINA_DTYPE_Q5_K:
        return WINA_CUDA_Q5_K;
    case WINA_DTYPE_Q6_K:
        return WINA_CUDA_Q6_K;
    default:
        return WINA_CUDA_N_FORMATS;
    }
}

static wina_cuda_panel shape_of(const wina_panel *p) {
    return (wina_cuda_panel){.col_bytes = p->col_bytes,
                             .block_bytes = p->block_bytes,
                             .super_bytes = p->super_bytes,
                             .super_head = (uint32_t)(p->layout->super_bytes * p->n_rows),
                             .n_rows = p->n_rows,
                             .n_cols = p->n_cols,
                             .format = format_of(p->layout->dtype)};
}

static wina_cuda_values values_of(const wina_layout *l) {
    wina_cuda_values v = {.scales = (int32_t)l->scales,
                          .low_bits = l->low_bits,
                          .high_bits = l->high_bits,
                          .offset = l->offset,
                          .sub = l->sub,
                          .has_table = l->table != NULL};
    if (l->table)
        memcpy(v.table, l->table, sizeof v.table);
    return v;
}

/* The type a panel has on the device. Values of MXFP4 have three bits and a large range: bfloat16
 * holds them exactly, float16 does not. */
static uint32_t type_there(const wina_panel *p) {
    const uint32_t type = p->layout->dtype;
    if (format_of(type) < WINA_CUDA_N_FORMATS)
        return type;
    return type == WINA_DTYPE_MXFP4 ? WINA_DTYPE_BF16 : WINA_DTYPE_F16;
}

static bool is_converted(const wina_panel *p) {
    return type_there(p) != p->layout->dtype;
}

static wina_cuda_panel place_panel(upload *u, const wina_panel *p) {
    wina_panel there = *p;
    if (is_converted(p)) {
        u->m->converted |= 1ull << p->layout->dtype;
        const int32_t status = u->m->host->plan_panel(type_there(p), p->n_rows, p->n_cols, &there);
        u->status = u->status == WINA_OK ? status : u->status;
        u->raw_bytes = p->n_bytes > u->raw_bytes ? p->n_bytes : u->raw_bytes;
    }
    wina_cuda_panel out = shape_of(&there);
    uint8_t *to = reserve(u, there.n_bytes);
    out.data = to;
    if (!to || there.layout == p->layout) {
        if (to)
            copy(u, to, p->data, p->n_bytes);
        return out;
    }
    copy(u, u->raw, p->data, p->n_bytes);
    if (u->status != WINA_OK)
        return out;
    wina_cuda_panel from = shape_of(p);
    from.data = u->raw;
    const wina_cuda_values values = values_of(p->layout);
    const cudaError_t e = wina_cuda_convert_launch(&from, &values, &out, u->stream);
    if (e != cudaSuccess)
        u->status = wina_cuda_fail(u->m->host, e, "converting weights");
    return out;
}

/* Embeddings: the file's rows; where the output matrix is theirs, that, which a GPU that has only
 * the first layers gets too. */
static void place_embeddings(upload *u) {
    wina_cuda_model *m = u->m;
    const wina_weights *w = &m->model->weights;
    wina_cuda_table *t = &m->embeddings;
    *t = (wina_cuda_table){.scale = m->model->config.embd_scale};
    if (w->token_embd) {
        t->row_bytes = w->token_embd->row_bytes;
        t->type = w->token_embd->dtype->id;
        t->rows = place(u, w->token_embd->data, t->row_bytes * w->token_embd->ne[1]);
        return;
    }
    t->panel = m->end == m->model->config.n_layer ? m->output : place_panel(u, &w->output);
    wina_panel there = w->output;
    if (is_converted(&w->output))
        (void)m->host->plan_panel(type_there(&there), there.n_rows, there.n_cols, &there);
    t->values = values_of(there.layout);
}

static const float *place_floats(upload *u, const float *from, int32_t n) {
    return from ? place(u, from, (uint64_t)n * sizeof *from) : NULL;
}

static void place_all(upload *u) {
    wina_cuda_model *m = u->m;
    const wina_weights *w = &m->model->weights;
    const wina_config *c = &m->model->config;
    u->n_bytes = 0;
    if (m->end == c->n_layer) {
        m->output = place_panel(u, &w->output);
        m->output_converted = is_converted(&w->output);
        m->output_norm = place_floats(u, w->output_norm, c->n_embd);
    }
    if (m->first == 0)
        place_embeddings(u);
    for (int32_t i = m->first; i < m->end; i++) {
        const wina_layer *from = &w->layers[i];
        wina_cuda_layer *to = &m->layers[i];
        to->attn_norm = place_floats(u, from->attn_norm, c->n_embd);
        to->ffn_norm = place_floats(u, from->ffn_norm, c->n_embd);
        for (int site = 0; site < WINA_N_SITES; site++)
            to->exit_norms[site] = place_floats(u, from->exit_norms[site], c->n_embd);
        const bool all = c->arch->qk_norm == WINA_QK_NORM_ALL;
        to->q_norm = place_floats(u, from->q_norm, (all ? c->n_head : 1) * c->head_dim);
        to->k_norm = place_floats(u, from->k_norm, (all ? c->n_head_kv : 1) * c->head_dim);
        for (int32_t k = 0; k < WINA_N_GROUPS; k++) {
            const wina_group_weights *g = &from->groups[k];
            wina_cuda_group *out = &to->groups[k];
            out->n_panels = g->n_panels;
            for (int32_t p = 0; p < g->n_panels; p++) {
                out->panels[p] = place_panel(u, &g->panels[p]);
                out->converted[p] = is_converted(&g->panels[p]);
            }
            out->bias = place_floats(u, g->bias, g->n_out);
        }
    }
}

/* ---- models ------------------------------------------------------------------------------- */

static int32_t check_model(const wina_cuda_host *host, const wina_model *model) {
    const wina_config *c = &model->config;
    if (c->head_dim > WINA_CUDA_MAX_HEAD)
        return host->fail(WINA_E_UNSUPPORTED, "CUDA: heads of width %d, at most %d", c->head_dim,
                          WINA_CUDA_MAX_HEAD);
    for (int32_t k = 0; k < WINA_N_GROUPS; k++)
        if (model->weights.layers[0].groups[k].n_in > WINA_CUDA_MAX_INPUTS)
            return host->fail(WINA_E_UNSUPPORTED, "CUDA: a projection of %d inputs, at most %d",
                              model->weights.layers[0].groups[k].n_in, WINA_CUDA_MAX_INPUTS);
    return WINA_OK;
}

int32_t wina_cuda_list_devices(const wina_cuda_host *host, wina_cuda_memory *out, int32_t cap,
                               int32_t *n) {
    int count = 0;
    *n = 0;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || count == 0)
        return host->fail(WINA_E_DEVICE, "CUDA: no GPU can be used: %s",
                          e == cudaSuccess ? "none is there" : cudaGetErrorString(e));
    struct cudaDeviceProp properties = {0};
    for (int32_t i = 0; i < count && *n < cap; i++) {
        CUDA_TRY(host, cudaSetDevice(i), "opening the GPU");
        CUDA_TRY(host, cudaGetDeviceProperties(&properties, i), "opening the GPU");
        if (properties.major < 8)
            continue;
        wina_cuda_memory *d = &out[(*n)++];
        size_t room = 0, all = 0;
        CUDA_TRY(host, cudaMemGetInfo(&room, &all), "asking for free memory");
        *d = (wina_cuda_memory){.device = i, .free_bytes = room, .all_bytes = all};
        snprintf(d->name, sizeof d->name, "%.63s", properties.name);
    }
    if (*n == 0)
        return host->fail(WINA_E_DEVICE, "CUDA: %s has compute capability %d.%d, 8.0 is needed",
                          properties.name, properties.major, properties.minor);
    return WINA_OK;
}

static int32_t open_device(wina_cuda_model *m) {
    const wina_cuda_host *host = m->host;
    struct cudaDeviceProp properties;
    CUDA_TRY(host, cudaSetDevice(m->device_index), "opening the GPU");
    CUDA_TRY(host, cudaGetDeviceProperties(&properties, m->device_index), "opening the GPU");
    snprintf(m->device, sizeof m->device, "%.63s", properties.name);
    m->n_sms = properties.multiProcessorCount;
    const char *blocks = getenv("WINA_CUDA_BLOCKS"); /* fewer, for tools that follow every access */
    if (blocks && atoi(blocks) > 0 && atoi(blocks) < m->n_sms)
        m->n_sms = atoi(blocks);
    CUDA_TRY(host, wina_cuda_program_prepare(), "loading the kernels");
    return WINA_OK;
}

static int32_t create_stage(upload *u) {
    const wina_cuda_host *host = u->m->host;
    CUDA_TRY(host, cudaStreamCreateWithFlags(&u->stream, cudaStreamNonBlocking), "stream");
    for (int i = 0; i < 2; i++) {
        CUDA_TRY(host, cudaMallocHost((void **)&u->stage[i], STAGE_BYTES), "staging buffer");
        CUDA_TRY(host, cudaEventCreateWithFlags(&u->copied[i], cudaEventDisableTiming), "event");
    }
    return WINA_OK;
}

static void free_stage(upload *u) {
    for (int i = 0; i < 2; i++) {
        if (u->stage[i])
            cudaFreeHost(u->stage[i]);
        if (u->copied[i])
            cudaEventDestroy(u->copied[i]);
    }
    if (u->stream)
        cudaStreamDestroy(u->stream);
    cudaFree(u->raw);
}

static int32_t upload_weights(wina_cuda_model *m) {
    upload u = {.m = m};
    place_all(&u);
    if (u.status != WINA_OK)
        return u.status;
    size_t room = 0, all = 0;
    CUDA_TRY(m->host, cudaMemGetInfo(&room, &all), "asking for free memory");
    if (u.n_bytes + u.raw_bytes > room)
        return m->host->fail(WINA_E_MEMORY,
                             "CUDA: the weights need %.2f GB, %s has %.2f of %.2f GB free",
                             (double)(u.n_bytes + u.raw_bytes) / 1e9, m->device, (double)room / 1e9,
                             (double)all / 1e9);
    CUDA_TRY(m->host, cudaMalloc((void **)&m->arena, u.n_bytes), "memory for the weights");
    m->arena_bytes = u.n_bytes;
    /* Vectors are read in fours: what pads them is zero. */
    int32_t status = create_stage(&u);
    if (status == WINA_OK && u.raw_bytes) {
        const cudaError_t e = cudaMalloc((void **)&u.raw, u.raw_bytes);
        if (e != cudaSuccess)
            status = wina_cuda_fail(m->host, e, "memory to convert weights");
    }
    if (status == WINA_OK) { /* on the stream of the copies, which come after it */
        const cudaError_t e = cudaMemsetAsync(m->arena, 0, u.n_bytes, u.stream);
        if (e != cudaSuccess)
            status = wina_cuda_fail(m->host, e, "memory for the weights");
    }
    if (status == WINA_OK) {
        place_all(&u);
        status = u.status;
    }
    if (status == WINA_OK) {
        cudaError_t e = cudaStreamSynchronize(u.stream);
        if (e != cudaSuccess)
            status = wina_cuda_fail(m->host, e, "copying weights");
    }
    free_stage(&u);
    return status;
}

uint64_t wina_cuda_weight_bytes(const wina_cuda_host *host, const wina_model *model, int32_t first,
                                int32_t end) {
    wina_cuda_model m = {.host = host, .model = model, .first = first, .end = end};
    m.layers = calloc((size_t)model->config.n_layer, sizeof *m.layers);
    if (!m.layers)
        return UINT64_MAX;
    upload u = {.m = &m};
    place_all(&u);
    free(m.layers);
    return u.n_bytes;
}

int32_t wina_cuda_model_create(const wina_cuda_host *host, const wina_model *model, int32_t device,
                               int32_t first, int32_t end, wina_cuda_model **out) {
    *out = NULL;
    int32_t status = check_model(host, model);
    if (status != WINA_OK)
        return status;
    wina_cuda_model *m = calloc(1, sizeof *m);
    if (m)
        m->layers = calloc((size_t)model->config.n_layer, sizeof *m->layers);
    if (!m || !m->layers) {
        free(m);
        return host->fail(WINA_E_MEMORY, "out of memory: GPU model");
    }
    m->host = host;
    m->model = model;
    m->device_index = device;
    m->first = first;
    m->end = end;
    status = open_device(m);
    if (status == WINA_OK)
        status = upload_weights(m);
    if (status != WINA_OK) {
        wina_cuda_model_free(m);
        return status;
    }
    *out = m;
    return WINA_OK;
}

void wina_cuda_model_free(wina_cuda_model *m) {
    if (!m)
        return;
    if (m->arena && cudaSetDevice(m->device_index) == cudaSuccess)
        cudaFree(m->arena);
    free(m->layers);
    free(m);
}

void wina_cuda_model_info(const wina_cuda_model *m, wina_cuda_info *out) {
    *out = (wina_cuda_info){.weight_bytes = m->arena_bytes,
                            .first = m->first,
                            .end = m->end,
                            .converted = m->converted};
    memcpy(out->device, m->device, sizeof out->device);
}

#include "group.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "sparse/norms.h"
#include "status.h"

wina_matrix_source *wina_group_add_source(wina_group_source *source, int32_t layer,
                                          const char *role, int32_t n_rows) {
    wina_matrix_source *m = &source->matrices[source->n_matrices++];
    *m = (wina_matrix_source){.n_rows = n_rows, .n_all = n_rows, .n_stacked = 1};
    snprintf(m->name, sizeof m->name, "blk.%d.%s.weight", layer, role);
    return m;
}

int32_t wina_group_get_tensor(const wina_gguf *gguf, const char *name, int64_t rows, int64_t cols,
                              int64_t n_stacked, const wina_gguf_tensor **out) {
    const wina_gguf_tensor *t = wina_gguf_find_tensor(gguf, name);
    if (!t)
        return wina_fail(WINA_E_FORMAT, "tensor %s is missing", name);
    uint64_t want_rows = rows ? (uint64_t)rows : 1;
    if (t->ne[0] != (uint64_t)cols || t->ne[1] != want_rows || t->ne[2] != (uint64_t)n_stacked ||
        t->ne[3] != 1)
        return wina_fail(
            WINA_E_FORMAT,
            "tensor %s has shape (%llu, %llu, %llu, %llu), expected (%lld, %llu, %lld)", name,
            (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
            (unsigned long long)t->ne[2], (unsigned long long)t->ne[3], (long long)cols,
            (unsigned long long)want_rows, (long long)n_stacked);
    *out = t;
    return WINA_OK;
}

/* The rows of a matrix as a view of its tensor. */
static int32_t get_matrix(const wina_gguf *gguf, const wina_matrix_source *m, int32_t n_in,
                          wina_gguf_tensor *out) {
    const wina_gguf_tensor *t;
    WINA_TRY(wina_group_get_tensor(gguf, m->name, m->n_all, n_in, m->n_stacked, &t));
    *out = *t;
    if (m->n_rows == m->n_all && m->n_stacked == 1)
        return WINA_OK;
    out->ne[1] = (uint64_t)m->n_rows;
    out->ne[2] = 1;
    if (t->data) /* else its panels are in the file */
        out->data += ((uint64_t)m->index * (uint64_t)m->n_all + (uint64_t)m->row0) * t->row_bytes;
    out->n_bytes = out->ne[1] * t->row_bytes;
    return WINA_OK;
}

int32_t wina_group_plan(const wina_gguf *gguf, const wina_group_source *source,
                        wina_group_weights *g) {
    g->n_in = source->n_in;
    int64_t panel_rows[WINA_MAX_PROJECTIONS] = {0};
    uint32_t dtypes[WINA_MAX_PROJECTIONS] = {0};
    for (int i = 0; i < source->n_matrices; i++) {
        const wina_matrix_source *m = &source->matrices[i];
        wina_gguf_tensor t;
        WINA_TRY(get_matrix(gguf, m, source->n_in, &t));
        const wina_layout *l = wina_layout_find(t.dtype->id);
        if (!l)
            return wina_fail(WINA_E_UNSUPPORTED, "tensor %s: type %s is not supported here",
                             m->name, t.dtype->name);
        if (i == 0 || dtypes[g->n_panels - 1] != t.dtype->id)
            dtypes[g->n_panels++] = t.dtype->id;
        wina_projection *p = &g->projections[g->n_projections++];
        p->n_rows = m->n_rows;
        p->row0 = g->n_out;
        p->panel = g->n_panels - 1;
        p->panel_row0 = (int32_t)panel_rows[p->panel];
        p->row_bits = wina_layout_bits(l);
        int32_t padded = (m->n_rows + WINA_STRIP - 1) / WINA_STRIP * WINA_STRIP;
        panel_rows[p->panel] += padded;
        g->n_out += padded;
    }
    for (int32_t i = 0, row0 = 0; i < g->n_panels; i++) {
        WINA_TRY(wina_panel_plan(dtypes[i], panel_rows[i], g->n_in, &g->panels[i]));
        g->panel_row0[i] = row0;
        row0 += g->panels[i].n_rows;
    }
    return WINA_OK;
}

uint64_t wina_group_place(wina_group_weights *g, uint8_t *arena, uint64_t at) {
    for (int32_t i = 0; i < g->n_panels; i++) {
        wina_panel *p = &g->panels[i];
        p->data = arena ? arena + at : NULL;
        at += (p->n_bytes + 63) / 64 * 64;
    }
    return at;
}

uint64_t wina_group_bytes(const wina_group_weights *g) {
    uint64_t n = 0;
    for (int32_t i = 0; i < g->n_panels; i++)
        n += g->panels[i].n_bytes;
    return n;
}

bool wina_group_find_row(const wina_group_weights *g, int32_t first, int32_t n, int64_t row,
                         wina_panel_rows *out) {
    for (int32_t i = first; i < first + n; i++) {
        const wina_projection *p = &g->projections[i];
        if (row < p->n_rows) {
            *out = (wina_panel_rows){&g->panels[p->panel], p->panel_row0 + row, p->n_rows - row};
            return true;
        }
        row -= p->n_rows;
    }
    return false;
}

void wina_group_free(wina_group_weights *g) {
    for (int32_t i = 0; i < g->n_projections; i++)
        free(g->projections[i].norms);
    free(g->norms);
    free(g->bias);
}

/* ---- packing ------------------------------------------------------------------------------ */

enum { N_CHUNKS = 16 };

/* One matrix on its way into a panel. It is cut into N_CHUNKS row ranges whatever the number of
 * threads, each with its own sums of squares, so that norms do not depend on the threads. */
typedef struct packing {
    const wina_packer *how;
    const wina_gguf_tensor *tensor;
    wina_panel *panel;
    int64_t panel_row0;
    double *sums;    /* (N_CHUNKS, 32 n_blocks) or NULL: no norms wanted */
    atomic_int next; /* chunk to be taken */
} packing;

static void pack_chunks(void *arg, int32_t thread, int32_t n_threads) {
    packing *k = arg;
    const wina_gguf_tensor *t = k->tensor;
    (void)thread, (void)n_threads;
    const int64_t n_rows = (int64_t)t->ne[1], n_sums = (int64_t)k->panel->n_blocks * WINA_BLOCK;
    int64_t n_strips = (n_rows + WINA_STRIP - 1) / WINA_STRIP;
    for (int i; (i = atomic_fetch_add(&k->next, 1)) < N_CHUNKS;) {
        int64_t begin, end;
        wina_threads_share(n_strips, i, N_CHUNKS, &begin, &end);
        if (begin == end)
            continue;
        const int64_t row0 = begin * WINA_STRIP;
        const int64_t n = (end * WINA_STRIP < n_rows ? end * WINA_STRIP : n_rows) - row0;
        wina_gguf_tensor part = *t;
        part.data += (uint64_t)row0 * t->row_bytes;
        part.n_bytes = (uint64_t)n * t->row_bytes;
        wina_fill_rows(k->how->fill, k->panel, k->panel_row0 + row0, part.data, t->row_bytes, n,
                       k->sums ? k->sums + i * n_sums : NULL);
        /* Pages of the file that are packed go at once: a large matrix is never there twice. */
        wina_gguf_release(k->how->gguf, &part);
    }
}

/* Packs one matrix; total (n_cols) receives its sums of squared columns if not NULL. */
static int32_t pack_matrix(const wina_packer *how, const wina_gguf_tensor *t, wina_panel *panel,
                           int64_t panel_row0, double *total) {
    packing k = {.how = how, .tensor = t, .panel = panel, .panel_row0 = panel_row0};
    const uint64_t n_sums = (uint64_t)panel->n_blocks * WINA_BLOCK;
    if (total)
        WINA_TRY(wina_mem_create(N_CHUNKS * n_sums, sizeof(double), "packing", &k.sums));
    wina_threads_run(how->threads, pack_chunks, &k);
    for (int j = 0; j < N_CHUNKS && total; j++)
        for (uint64_t i = 0; i < t->ne[0]; i++)
            total[i] += k.sums[(uint64_t)j * n_sums + i];
    wina_gguf_release(how->gguf, t);
    free(k.sums);
    return WINA_OK;
}

int32_t wina_group_pack_matrix(const wina_packer *how, const wina_gguf_tensor *tensor,
                               wina_panel *panel) {
    return pack_matrix(how, tensor, panel, 0, NULL);
}

/* Packs matrix i; sums (2, n_in) or NULL: its sums of squares, added to those of the group. */
static int32_t load_matrix(const wina_packer *how, const wina_group_source *source, int i,
                           double *sums, wina_group_weights *g) {
    wina_projection *p = &g->projections[i];
    wina_gguf_tensor t = {0};
    const uint64_t n = (uint64_t)g->n_in;
    WINA_TRY(get_matrix(how->gguf, &source->matrices[i], source->n_in, &t));
    if (sums)
        memset(sums, 0, n * sizeof *sums);
    WINA_TRY(pack_matrix(how, &t, &g->panels[p->panel], p->panel_row0, sums));
    if (!sums)
        return WINA_OK;
    WINA_TRY(wina_mem_create(n, sizeof(float), "norms", &p->norms));
    wina_norms_finish(sums, p->norms, g->n_in);
    for (uint64_t j = 0; j < n; j++)
        sums[n + j] += sums[j];
    return WINA_OK;
}

int32_t wina_group_load(const wina_packer *how, const wina_group_source *source, bool norms,
                        wina_group_weights *g) {
    double *sums = NULL; /* (2, n_in): of one matrix, of the group */
    int32_t status = WINA_OK;
    if (norms)
        status = wina_mem_create((uint64_t)g->n_in, sizeof(float), "norms", &g->norms);
    if (norms && status == WINA_OK)
        status = wina_mem_create(2 * (uint64_t)g->n_in, sizeof(double), "norms", &sums);
    for (int i = 0; i < source->n_matrices && status == WINA_OK; i++)
        status = load_matrix(how, source, i, sums, g);
    if (norms && status == WINA_OK)
        wina_norms_finish(sums + g->n_in, g->norms, g->n_in);
    free(sums);
    return status;
}

/* group: matrices that share an input, from the file's tensors to panels and column norms. Their
 * rows follow each other in one output vector, each matrix starting at a multiple of 64. Those of
 * the same type that follow each other share a panel, so that a kept input is one long read. */
#ifndef WINA_GROUP_H
#define WINA_GROUP_H

#include "fill.h"
#include "gguf.h"
#include "threads.h"

enum { WINA_MAX_PROJECTIONS = 3 };

typedef struct wina_projection {
    int32_t n_rows; /* outputs */
    int32_t row0;   /* first output inside the group's output vector */
    int32_t panel;  /* index of its panel in the group */
    int32_t panel_row0;
    uint64_t row_bits; /* bits of values per row and input, for counting bytes */
    float *norms;      /* (n_in) column norms of this matrix */
} wina_projection;

typedef struct wina_group_weights {
    int32_t n_in;
    int32_t n_out; /* padded: sum of the panels' rows */
    int32_t n_projections;
    int32_t n_panels;
    wina_projection projections[WINA_MAX_PROJECTIONS];
    wina_panel panels[WINA_MAX_PROJECTIONS];
    int32_t panel_row0[WINA_MAX_PROJECTIONS]; /* first output of each panel */
    float *norms;                             /* (n_in) column norms of the stacked matrix */
    float *bias;                              /* (n_out) or NULL */
} wina_group_weights;

/* Where a matrix of n_rows is: the tensor has n_stacked matrices of n_all rows each, and this one
 * begins at row0 of number `index`. */
typedef struct wina_matrix_source {
    char name[64];
    int32_t n_rows;
    int32_t n_all, row0;
    int32_t n_stacked, index;
} wina_matrix_source;

typedef struct wina_group_source {
    int32_t n_in, n_matrices;
    wina_matrix_source matrices[WINA_MAX_PROJECTIONS];
} wina_group_source;

/* Adds a matrix that is a whole tensor, blk.<layer>.<role>.weight; returns it, to be narrowed. */
wina_matrix_source *wina_group_add_source(wina_group_source *source, int32_t layer,
                                          const char *role, int32_t n_rows);

/* A tensor of exactly this shape (rows == 0: a vector of cols). */
int32_t wina_group_get_tensor(const wina_gguf *gguf, const char *name, int64_t rows, int64_t cols,
                              int64_t n_stacked, const wina_gguf_tensor **out);

/* Checks the tensors and computes all sizes; the group must be zero. */
int32_t wina_group_plan(const wina_gguf *gguf, const wina_group_source *source,
                        wina_group_weights *group);

/* What a file's matrices are packed with. */
typedef struct wina_packer {
    const wina_gguf *gguf;
    wina_threads *threads;
    const wina_fill_ops *fill;
} wina_packer;

/* Packs what was planned and placed, with norms if they are wanted. */
int32_t wina_group_load(const wina_packer *how, const wina_group_source *source, bool norms,
                        wina_group_weights *group);

/* Packs a tensor that has a panel to itself. */
int32_t wina_group_pack_matrix(const wina_packer *how, const wina_gguf_tensor *tensor,
                               wina_panel *panel);

/* Gives each panel its place from byte `at` on (arena NULL: only counts); returns where it ends. */
uint64_t wina_group_place(wina_group_weights *group, uint8_t *arena, uint64_t at);

/* Rows of a matrix that lie together in a panel. */
typedef struct wina_panel_rows {
    const wina_panel *panel;
    int64_t row0, n_rows; /* in the panel */
} wina_panel_rows;

/* Row `row` of projections first .. first + n - 1, one after the other; false: they end before. */
bool wina_group_find_row(const wina_group_weights *group, int32_t first, int32_t n, int64_t row,
                         wina_panel_rows *out);

/* Bytes of its panels. */
uint64_t wina_group_bytes(const wina_group_weights *group);

/* Frees norms and bias; panels belong to the arena. */
void wina_group_free(wina_group_weights *group);

#endif

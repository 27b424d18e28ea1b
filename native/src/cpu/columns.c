#include "columns.h"

#include <stdlib.h>
#include <string.h>

#include "../diskread.h"
#include "../mem.h"
#include "../status.h"

enum {
    CANDIDATES = 16, /* columns of which the least used one may go */
    HALVE = 8,       /* steps after which all counts are halved: what was used long ago fades */
    MOST_USED = 255,
    LONGEST_RUN = 128 << 10, /* bytes; over that nothing is gained */
    LONGEST_GAP = 16 << 10,  /* bytes that are read in the time that another read takes */
    /* Around a panel of a view: its first and last block of the disk, of which parts are others'.
     */
    VIEW_BORDER = 2 * WINA_DISKREAD_ALIGN
};

/* What is in memory of one panel. */
typedef struct store {
    const wina_panel *panel; /* in the mapped file */
    uint8_t *scales;         /* of all blocks and super-blocks, one behind the other */
    uint8_t *slots;          /* (n_slots, col_bytes) */
    int32_t n_slots, n_used;
    int32_t *slot_of; /* (n_cols) or -1 */
    int32_t *held;    /* (n_slots) the column in a slot */
    uint8_t *uses;    /* (n_cols) how often lately */
    uint32_t *step;   /* (n_cols) in which it was wanted last */
    uint32_t n_steps;
} store;

/* Columns [first, first + n) that are read together, with those between that nobody wants. */
typedef struct run {
    int32_t panel, first, n;
} run;

struct wina_columns {
    const wina_model *model;
    wina_diskread *reader;
    store *stores; /* (n_layer, WINA_N_GROUPS, WINA_MAX_PROJECTIONS) */
    uint8_t *memory;
    uint64_t memory_bytes;
    uint8_t *views; /* the panels of one group */
    uint64_t views_bytes;
    bool viewed; /* since they were given back */
    uint64_t random;
    /* the step under way */
    uint32_t step;
    store *group; /* (WINA_MAX_PROJECTIONS) */
    uint8_t *view[WINA_MAX_PROJECTIONS];
    const uint8_t **tables;                   /* where the columns of one group are */
    const uint8_t **at[WINA_MAX_PROJECTIONS]; /* (n_cols) in it */
    run *runs;                                /* what is to be read */
    bool *here;                               /* which of them are there already */
    wina_diskread_piece *pieces;
    uint64_t n_runs, n_here; /* n_here: those of the front */
    wina_columns_work work;
    void *user;
};

/* ---- sizes -------------------------------------------------------------------------------- */

static uint64_t scale_bytes(const wina_panel *p) {
    return p->block_bytes - p->col_bytes * WINA_BLOCK;
}

static uint64_t super_bytes(const wina_panel *p) {
    return (uint64_t)p->n_rows * p->layout->super_bytes;
}

static uint64_t all_scales(const wina_panel *p) {
    const uint64_t n = (uint64_t)p->n_blocks;
    return n * scale_bytes(p) + (n + WINA_SUPER_BLOCKS - 1) / WINA_SUPER_BLOCKS * super_bytes(p);
}

static uint64_t round_up(uint64_t n, uint64_t to) {
    return (n + to - 1) / to * to;
}

static uint64_t column_at(const wina_panel *p, int32_t col) {
    return (uint64_t)(wina_panel_block(p, col / WINA_BLOCK) - p->data) +
           (uint64_t)(col % WINA_BLOCK) * p->col_bytes;
}

typedef struct sizes {
    uint64_t view, n_cols;           /* of the largest group: a copy of its panels, its columns */
    uint64_t all_bytes, all_columns; /* of all groups */
} sizes;

static sizes measure(const wina_weights *w) {
    sizes s = {0};
    for (int32_t i = 0; i < w->n_layer; i++)
        for (int g = 0; g < WINA_N_GROUPS; g++) {
            const wina_group_weights *group = &w->layers[i].groups[g];
            const uint64_t bytes = wina_group_bytes(group);
            const uint64_t view = bytes + VIEW_BORDER * WINA_MAX_PROJECTIONS;
            const uint64_t n_cols = (uint64_t)group->n_in * (uint64_t)group->n_panels;
            s.view = view > s.view ? view : s.view;
            s.n_cols = n_cols > s.n_cols ? n_cols : s.n_cols;
            s.all_bytes += bytes;
            s.all_columns += n_cols;
        }
    return s;
}

uint64_t wina_columns_total(const wina_model *model) {
    return measure(&model->weights).all_bytes;
}

uint64_t wina_columns_overhead(const wina_model *model) {
    const sizes s = measure(&model->weights);
    const store *t = NULL; /* its tables */
    /* A prompt reads the largest group through the mapping instead. */
    return s.view + wina_mem_undropped(s.view) +
           s.n_cols *
               (sizeof(uint8_t *) + sizeof(run) + sizeof(bool) + sizeof(wina_diskread_piece)) +
           s.all_columns *
               (sizeof *t->slot_of + sizeof *t->held + sizeof *t->uses + sizeof *t->step);
}

/* ---- what is kept ------------------------------------------------------------------------- */

/* Copies the scales: from the file's panel to `to`, or (back) from there to a view. */
static void copy_scales(const wina_panel *p, uint8_t *to, uint8_t *view) {
    const uint64_t scales = scale_bytes(p), super = super_bytes(p);
    for (int32_t b = 0; b < p->n_blocks; b++) {
        const uint64_t at = (uint64_t)(wina_panel_scales(p, b) - p->data);
        memcpy(view ? view + at : to, view ? to : p->data + at, (size_t)scales);
        to += scales;
        if (super && b % WINA_SUPER_BLOCKS == 0) {
            const uint64_t from = (uint64_t)(wina_panel_super(p, b) - p->data);
            memcpy(view ? view + from : to, view ? to : p->data + from, (size_t)super);
            to += super;
        }
    }
}

static int32_t create_store(store *s, const wina_panel *p, double share, uint8_t **memory) {
    const uint64_t scales = all_scales(p), n_cols = (uint64_t)p->n_cols;
    const double room = share * (double)p->n_cols;
    s->panel = p;
    s->n_slots = room >= (double)p->n_cols ? p->n_cols : (int32_t)room;
    WINA_TRY(wina_mem_create(n_cols, sizeof *s->slot_of, "columns", &s->slot_of));
    WINA_TRY(wina_mem_create((uint64_t)s->n_slots, sizeof *s->held, "columns", &s->held));
    WINA_TRY(wina_mem_create(n_cols, sizeof *s->uses, "columns", &s->uses));
    WINA_TRY(wina_mem_create(n_cols, sizeof *s->step, "columns", &s->step));
    memset(s->slot_of, 0xff, (size_t)n_cols * sizeof *s->slot_of);
    s->scales = *memory;
    s->slots = s->scales + round_up(scales, 64);
    *memory = s->slots + (uint64_t)s->n_slots * p->col_bytes;
    copy_scales(p, s->scales, NULL);
    return WINA_OK;
}

static store *stores_of(const wina_columns *c, int32_t layer, int group) {
    return c->stores + ((int64_t)layer * WINA_N_GROUPS + group) * WINA_MAX_PROJECTIONS;
}

static int32_t create_stores(wina_columns *c, uint64_t n_bytes) {
    const wina_weights *w = &c->model->weights;
    uint64_t scales = 0, columns = 0;
    for (int32_t i = 0; i < w->n_layer; i++)
        for (int g = 0; g < WINA_N_GROUPS; g++)
            for (int32_t k = 0; k < w->layers[i].groups[g].n_panels; k++) {
                const wina_panel *p = &w->layers[i].groups[g].panels[k];
                scales += round_up(all_scales(p), 64);
                columns += (uint64_t)p->n_cols * p->col_bytes;
            }
    if (n_bytes < scales)
        return wina_fail(WINA_E_MEMORY,
                         "%.1f MB of resident columns are too few: the scales alone have %.1f MB",
                         (double)n_bytes / 1e6, (double)scales / 1e6);
    if (n_bytes > scales + columns)
        n_bytes = scales + columns;
    c->memory_bytes = n_bytes + 64;
    WINA_TRY(wina_mem_create_big(c->memory_bytes, "resident columns", &c->memory));
    uint8_t *at = c->memory;
    const double share = (double)(n_bytes - scales) / (double)columns;
    for (int32_t i = 0; i < w->n_layer; i++)
        for (int g = 0; g < WINA_N_GROUPS; g++) {
            const wina_group_weights *group = &w->layers[i].groups[g];
            for (int32_t k = 0; k < group->n_panels; k++)
                WINA_TRY(create_store(&stores_of(c, i, g)[k], &group->panels[k], share, &at));
            wina_columns_release(c, group);
        }
    return WINA_OK;
}

int32_t wina_columns_create(const wina_model *model, uint64_t n_bytes, wina_columns **out) {
    wina_columns *c = NULL;
    *out = NULL;
    WINA_TRY(wina_mem_create(1, sizeof *c, "columns", &c));
    const sizes size = measure(&model->weights);
    c->model = model;
    c->random = 88172645463325252u; /* any but zero: what is kept changes no result */
    c->views_bytes = size.view;
    const uint64_t n_stores =
        (uint64_t)model->weights.n_layer * WINA_N_GROUPS * WINA_MAX_PROJECTIONS;
    int32_t status = wina_mem_create(n_stores, sizeof *c->stores, "columns", &c->stores);
    if (status == WINA_OK)
        status = wina_mem_create(size.n_cols, sizeof *c->runs, "columns", &c->runs);
    if (status == WINA_OK)
        status = wina_mem_create(size.n_cols, sizeof *c->here, "columns", &c->here);
    if (status == WINA_OK)
        status = wina_mem_create(size.n_cols, sizeof *c->tables, "columns", &c->tables);
    if (status == WINA_OK)
        status = wina_mem_create(size.n_cols, sizeof *c->pieces, "columns", &c->pieces);
    if (status == WINA_OK)
        status = wina_mem_create_big(c->views_bytes, "columns", &c->views);
    if (status == WINA_OK)
        status = wina_diskread_create(model->path, &model->gguf->map, &c->reader);
    if (status == WINA_OK)
        status = create_stores(c, n_bytes);
    if (status == WINA_OK)
        *out = c;
    else
        wina_columns_free(c);
    return status;
}

void wina_columns_free(wina_columns *c) {
    if (!c)
        return;
    const int64_t n = (int64_t)c->model->weights.n_layer * WINA_N_GROUPS * WINA_MAX_PROJECTIONS;
    for (int64_t i = 0; i < n && c->stores; i++) {
        free(c->stores[i].slot_of);
        free(c->stores[i].held);
        free(c->stores[i].uses);
        free(c->stores[i].step);
    }
    wina_diskread_free(c->reader);
    wina_mem_free_big(c->memory, c->memory_bytes);
    wina_mem_free_big(c->views, c->views_bytes);
    free(c->stores);
    free(c->runs);
    free(c->here);
    free(c->tables);
    free(c->pieces);
    free(c);
}

void wina_columns_leave(wina_columns *c) {
    if (c->viewed)
        wina_mem_drop_big(c->views, c->views_bytes);
    c->viewed = false;
}

void wina_columns_release(const wina_columns *c, const wina_group_weights *group) {
    const wina_mapfile *map = &c->model->gguf->map;
    for (int32_t k = 0; k < group->n_panels; k++)
        wina_mapfile_release(map, (uint64_t)(group->panels[k].data - map->data),
                             group->panels[k].n_bytes);
}

/* ---- a step ------------------------------------------------------------------------------- */

void wina_columns_begin(wina_columns *c, int32_t layer, int group, wina_group_weights *view) {
    const wina_group_weights *g = &c->model->weights.layers[layer].groups[group];
    const wina_mapfile *map = &c->model->gguf->map;
    uint8_t *at = (uint8_t *)round_up((uintptr_t)c->views, WINA_DISKREAD_ALIGN);
    *view = *g;
    c->viewed = true;
    c->group = stores_of(c, layer, group);
    c->step++;
    c->n_runs = c->n_here = 0;
    for (int32_t k = 0; k < g->n_panels; k++) {
        store *s = &c->group[k];
        const uint64_t lead = (uint64_t)(g->panels[k].data - map->data) % WINA_DISKREAD_ALIGN;
        c->view[k] = view->panels[k].data = at + lead;
        c->at[k] = c->tables + (uint64_t)k * (uint64_t)g->n_in;
        view->panels[k].columns = c->at[k];
        at += round_up(lead + g->panels[k].n_bytes, WINA_DISKREAD_ALIGN);
        copy_scales(s->panel, s->scales, c->view[k]);
        if (++s->n_steps % HALVE == 0)
            for (int32_t i = 0; i < s->panel->n_cols; i++)
                s->uses[i] /= 2;
    }
}

static uint64_t run_bytes(const wina_panel *p, const run *r) {
    return column_at(p, r->first + r->n - 1) + p->col_bytes - column_at(p, r->first);
}

/* Joins the last run if what lies between is read sooner than another read begins. */
static void want(wina_columns *c, int32_t panel, int32_t col) {
    const wina_panel *p = c->group[panel].panel;
    run *r = c->n_runs ? &c->runs[c->n_runs - 1] : NULL;
    if (r && r->panel == panel) {
        const run longer = {panel, r->first, col - r->first + 1};
        const uint64_t gap = run_bytes(p, &longer) - run_bytes(p, r) - p->col_bytes;
        if (gap <= LONGEST_GAP && run_bytes(p, &longer) <= LONGEST_RUN) {
            *r = longer;
            return;
        }
    }
    c->runs[c->n_runs++] = (run){panel, col, 1};
}

void wina_columns_add(wina_columns *c, int32_t panel, const int32_t *kept, int32_t n_kept) {
    store *s = &c->group[panel];
    const uint8_t **at = c->at[panel];
    for (int32_t i = 0; i < n_kept; i++) {
        const int32_t col = kept[i];
        if (s->step[col] == c->step)
            continue; /* another mask has it */
        s->step[col] = c->step;
        s->uses[col] = (uint8_t)(s->uses[col] + (s->uses[col] < MOST_USED));
        if (s->slot_of[col] < 0) {
            want(c, panel, col);
            at[col] = c->view[panel] + column_at(s->panel, col);
        } else {
            at[col] = s->slots + (uint64_t)s->slot_of[col] * s->panel->col_bytes;
        }
    }
}

static uint64_t draw(wina_columns *c) {
    c->random ^= c->random << 13;
    c->random ^= c->random >> 7;
    c->random ^= c->random << 17;
    return c->random;
}

/* Whether one column is used less than another: less often, or as often but longer ago. */
static bool is_used_less(const store *s, int32_t col, int32_t other) {
    return s->uses[col] < s->uses[other] ||
           (s->uses[col] == s->uses[other] && s->step[col] < s->step[other]);
}

/* A slot for a column that was read: a free one, or that of a column which is used less and not
 * wanted now. -1: it is not kept. So when all columns are wanted every time, those that are here
 * stay. */
static int32_t find_slot(wina_columns *c, store *s, int32_t col) {
    int32_t best = -1;
    if (s->n_used < s->n_slots)
        return s->n_used++;
    for (int i = 0; i < CANDIDATES && s->n_slots; i++) {
        const int32_t slot = (int32_t)(draw(c) % (uint64_t)s->n_slots), other = s->held[slot];
        if (s->step[other] != c->step && is_used_less(s, other, best < 0 ? col : s->held[best]))
            best = slot;
    }
    if (best >= 0)
        s->slot_of[s->held[best]] = -1;
    return best;
}

/* Keeps what is worth it of what was read. A slot that a product needs is not given away. */
static void hold(const wina_diskread_piece *piece, void *user) {
    wina_columns *c = user;
    const run *r = &c->runs[piece->tag];
    store *s = &c->group[r->panel];
    const uint64_t size = s->panel->col_bytes;
    for (int32_t col = r->first; col < r->first + r->n; col++) {
        if (s->step[col] != c->step || s->slot_of[col] >= 0)
            continue; /* between two that were wanted */
        const int32_t slot = find_slot(c, s, col);
        if (slot < 0)
            continue;
        s->held[slot] = col;
        s->slot_of[col] = slot;
        memcpy(s->slots + (uint64_t)slot * size, c->view[r->panel] + column_at(s->panel, col),
               (size_t)size);
    }
    c->here[piece->tag] = true;
    while (c->n_here < c->n_runs && c->here[c->n_here])
        c->n_here++;
}

static bool work(void *user) {
    const wina_columns *c = user;
    return c->work(c->user, c->n_here);
}

uint64_t wina_columns_mark(const wina_columns *c) {
    return c->n_runs;
}

int32_t wina_columns_finish(wina_columns *c, wina_columns_work todo, void *user) {
    const uint8_t *file = c->model->gguf->map.data;
    for (uint64_t i = 0; i < c->n_runs; i++) {
        const run *r = &c->runs[i];
        const wina_panel *p = c->group[r->panel].panel;
        const uint64_t at = column_at(p, r->first);
        c->pieces[i] =
            (wina_diskread_piece){(uint64_t)(p->data - file) + at, c->view[r->panel] + at,
                                  (uint32_t)run_bytes(p, r), (uint32_t)i};
    }
    memset(c->here, 0, (size_t)c->n_runs * sizeof *c->here);
    c->work = todo;
    c->user = user;
    return wina_diskread_run(c->reader, c->pieces, c->n_runs, &(wina_diskread_user){hold, work, c});
}

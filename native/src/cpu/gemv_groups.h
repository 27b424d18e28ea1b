/* gemv_groups: one token, by groups of kept columns (groups.h); which columns, in which order. What
 * a group is multiplied with is the instruction set's own: a file that includes this one has
 * defined
 *
 *   sum_vector, SUMS   a register of sums, and how many of them a strip takes
 *   operands           what a group multiplies, filled by load_operands()
 *   multiply_group()   one group of quantised columns over a tile of rows
 *   add_columns()      the same for columns of floats
 *   unswap_strip()     sums in stored order to row order, and back
 *   CLOSE              kept columns that lie so close, in bytes, are fetched with what is between
 */
/* Whether all of a panel's strips are multiplied and its kept columns lie close together. */
INLINE bool is_close(const wina_panel *p, const wina_quads *a, int n_sub, int32_t strip0,
                     int32_t strip1) {
    const uint64_t n_kept = 4 * (uint64_t)(a->first[p->n_blocks * n_sub] - a->first[0]);
    return !p->columns && (strip1 - strip0) * WINA_STRIP == p->n_rows &&
           p->col_bytes * (uint64_t)p->n_cols <= CLOSE * n_kept;
}

/* One value plane and one kind of scales; both are constants where this is inlined. */
INLINE void gemv_kind(const wina_panel *p, const wina_quads *a, wina_plane plane, wina_scales kind,
                      int32_t block0, int32_t block1, int32_t strip0, int32_t strip1, float *y) {
    const int n_sub = wina_scales_subs(kind);
    const int32_t end = block1 * n_sub;
    const int32_t last = p->columns ? end : p->n_blocks * n_sub; /* another part may follow */
    sum_vector kept_sums[TILE * SUMS];
    group g = {.sub = block0 * n_sub, .q1 = a->first[block0 * n_sub]}, next;
    bool more = next_group(a, end, &g);
    const bool close = more && is_close(p, a, n_sub, strip0, strip1);
    const uint8_t *from =
        close ? wina_panel_column(p, g.sub / n_sub, a->col[4 * g.q1 - 1]) + p->col_bytes : NULL;
    while (more) {
        fetch f;
        fetch_clear(&f);
        next = g;
        more = next_group(a, last, &next);
        if (more && close)
            fetch_through(p, a, &next, n_sub, &from, &f);
        else if (more)
            fetch_group(p, a, &next, n_sub, strip0, strip1, &f);
        more = more && next.sub < end;
        operands o;
        load_operands(p, a, &g, n_sub, &o);
        multiply_group(p, a, &g, &o, plane, kind, strip0, strip1, &f, kept_sums, y);
        g = next;
    }
    for (int32_t strip = strip0; strip < strip1; strip++)
        unswap_strip(y + (int64_t)strip * WINA_STRIP);
}

INLINE void gemv_floats_kind(const wina_panel *p, const wina_act *act, wina_scales kind,
                             int32_t block0, int32_t block1, int32_t strip0, int32_t strip1,
                             float *y) {
    const int32_t end = find_kept(act->kept, act->n_kept, block1 * WINA_BLOCK);
    for (int32_t k = find_kept(act->kept, act->n_kept, block0 * WINA_BLOCK), n; k < end; k += n) {
        const uint8_t *col[COLUMNS];
        float x[COLUMNS];
        fetch f;
        n = load_columns(p, act, k, end, strip0, strip1, col, x, &f);
        if (n == COLUMNS)
            add_columns(col, x, COLUMNS, kind, strip0, strip1, &f, y);
        else
            add_columns(col, x, n, kind, strip0, strip1, &f, y);
    }
}

typedef void (*x86_gemv)(const wina_panel *p, const wina_quads *a, int32_t block0, int32_t block1,
                         int32_t strip0, int32_t strip1, float *y);
#define DEFINE_GEMV(name, plane, kind)                                                             \
    static void gemv_##name(const wina_panel *p, const wina_quads *a, int32_t block0,              \
                            int32_t block1, int32_t strip0, int32_t strip1, float *y) {            \
        gemv_kind(p, a, plane, kind, block0, block1, strip0, strip1, y);                           \
    }
#define LIST_GEMV(name, plane, kind) [plane][kind] = gemv_##name,
WINA_KINDS(DEFINE_GEMV)
static const x86_gemv GEMV[WINA_N_PLANES][WINA_N_SCALES] = {WINA_KINDS(LIST_GEMV)};

static void gemv_tile(const wina_panel *p, const wina_act *act, int32_t block0, int32_t block1,
                      int32_t strip0, int32_t strip1, bool add, float *y) {
    const wina_layout *l = p->layout;
    if (!add)
        wina_gemv_clear(y, strip0, strip1);
    else if (l->low_bits < 16) /* to stored order, in which they go on */
        for (int32_t strip = strip0; strip < strip1; strip++)
            unswap_strip(y + (int64_t)strip * WINA_STRIP);
    if (l->scales == WINA_SCALES_F32)
        gemv_floats_kind(p, act, WINA_SCALES_F32, block0, block1, strip0, strip1, y);
    else if (l->scales == WINA_SCALES_F16)
        gemv_floats_kind(p, act, WINA_SCALES_F16, block0, block1, strip0, strip1, y);
    else if (l->scales == WINA_SCALES_BF16)
        gemv_floats_kind(p, act, WINA_SCALES_BF16, block0, block1, strip0, strip1, y);
    else
        GEMV[l->plane][l->scales](p, l->sub == 16 ? &act->by16 : &act->by32, block0, block1, strip0,
                                  strip1, y);
}

static void gemv_by_groups(const wina_panel *p, const wina_act *act, int32_t block0, int32_t block1,
                           int32_t strip0, int32_t strip1, bool add, float *y) {
    for (int32_t s = strip0; s < strip1; s += TILE)
        gemv_tile(p, act, block0, block1, s, s + TILE < strip1 ? s + TILE : strip1, add, y);
}

/* project: select the inputs that are kept, then multiply by their columns only. */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "../sparse/rule.h"
#include "../sparse/select.h"
#include "cpu.h"

/* One call of wina_cpu_project. */
typedef struct job {
    wina_cpu *cpu;
    const wina_group_weights *group;
    const float *in; /* (n_tokens, in_stride) */
    int64_t in_stride;
    float *out; /* (n_tokens, out_stride), rows as in the group; one token goes to `parts` */
    int64_t out_stride;
    bool residual; /* the result is added to x */
    /* Where tokens may be sparse: by group of a layer, or by rules that are given. Else which is
     * -1. */
    int32_t layer, which;
    const wina_rule *rules; /* (n_masks) */
    const float *gate;      /* see wina_cpu_product */
    int64_t gate_stride;
    int32_t first;    /* of the batch's tokens, which its first one is */
    int32_t last;     /* token whose bytes are counted, or -1 */
    int32_t n_masks;  /* kept lists per token: 1, or one per projection */
    int32_t mask;     /* under way in a batch */
    int32_t token;    /* under way where tokens are multiplied one by one */
    bool by32, by16;  /* kinds of rounded activations its panels read */
    atomic_int taken; /* pieces of a batch's rows that threads have taken */
} job;

/* The rules of a token; NULL: it is dense. */
static const wina_rules *rules_of(const wina_cpu *c, int32_t token) {
    const wina_rules *r = wina_cpu_owner(c, token)->rules;
    return r->sparse && (c->members || token >= c->n_dense) ? r : NULL;
}

/* The rule of one kept list of a token; NULL: all inputs. Tokens of a batch may differ in whether
 * their lists are of groups or of projections: a group's list is then used for each of these. */
static const wina_rule *rule_of(const job *j, int32_t token, int32_t mask) {
    const wina_rules *r = j->which < 0 && !j->rules ? NULL : rules_of(j->cpu, token);
    if (r && j->rules)
        return &j->rules[mask];
    return r ? wina_rules_get(r, j->layer, j->which, r->n_masks[j->which] > 1 ? mask : 0) : NULL;
}

static void score_gate(const wina_cpu *c, const float *gate, int32_t n, float *score) {
    if (c->base.model->config.arch->activation == WINA_ACT_SILU) {
        wina_score_gate(gate, n, score);
        return;
    }
    c->kernels.geglu(score, gate, NULL, n);
    for (int32_t i = 0; i < n; i++)
        score[i] = fabsf(score[i]);
}

/* Lists the inputs of one token that mask number `mask` keeps; returns how many. */
static int32_t select_inputs(const job *j, wina_cpu_scratch *s, const float *x, int32_t token,
                             int32_t mask, int32_t *kept) {
    const wina_cpu *c = j->cpu;
    const wina_rule *r = rule_of(j, token, mask);
    int32_t n = j->group->n_in, n_keep = r ? r->n_keep : n;
    if (r && r->from_gate)
        score_gate(c, j->gate + token * j->gate_stride, n, s->score);
    else if (r && (n_keep < n || r->threshold > 0))
        c->kernels.score(x, r->norms, n, s->score);
    if (r && r->threshold > 0)
        return wina_select_from(s->score, n, r->threshold, kept);
    c->kernels.select(s->score, n, n_keep, kept, s->bits);
    return n_keep;
}

/* Which projections a mask covers: [*first, *last). */
static void mask_projections(const job *j, int32_t mask, int32_t *first, int32_t *last) {
    *first = j->n_masks > 1 ? mask : 0;
    *last = j->n_masks > 1 ? mask + 1 : j->group->n_projections;
}

static void count(const job *j, int32_t token, int32_t mask, int32_t n_kept) {
    const wina_group_weights *g = j->group;
    const bool sparse = rule_of(j, token, mask) != NULL, alone = !j->cpu->members;
    const int32_t at = j->first + token;
    wina_counters *n = alone ? &j->cpu->base.counters : &j->cpu->members[at].backend->counters;
    int32_t first, last;
    mask_projections(j, mask, &first, &last);
    for (int32_t i = first; i < last; i++) {
        const wina_projection *p = &g->projections[i];
        const wina_layout *l = g->panels[p->panel].layout;
        uint64_t rows = (uint64_t)p->n_rows, bits = rows * p->row_bits;
        if (sparse) {
            n->sparse_read += bits * (uint64_t)n_kept;
            n->sparse_total += bits * (uint64_t)g->n_in;
        }
        if (!alone || token == j->last) {
            uint64_t blocks = (uint64_t)g->panels[p->panel].n_blocks;
            n->token_bytes += bits * (uint64_t)n_kept / 8 + blocks * rows * l->scale_bytes +
                              (blocks + 7) / 8 * rows * l->super_bytes;
        }
    }
}

static void add_residual(const job *j, int32_t token, int64_t row0, int64_t row1) {
    wina_cpu *c = j->cpu;
    int64_t n = c->base.model->config.n_embd;
    if (row1 > n)
        row1 = n;
    if (row0 < row1)
        c->kernels.add(c->x + token * n + row0, j->out + token * j->out_stride + row0,
                       (int32_t)(row1 - row0));
}

static void add_bias(const job *j, int32_t token, int64_t row0, int64_t row1) {
    if (j->group->bias)
        j->cpu->kernels.add(j->out + token * j->out_stride + row0, j->group->bias + row0,
                            (int32_t)(row1 - row0));
}

/* Strips of one panel that belong to the projections of one mask. */
typedef struct segment {
    const wina_panel *panel;
    int32_t strip0, strip1;
    int64_t row0; /* first output row of the panel */
} segment;

/* Segments of a mask, at most one per panel; returns how many. */
static int find_segments(const job *j, int32_t mask, segment out[WINA_MAX_PROJECTIONS]) {
    const wina_group_weights *g = j->group;
    int32_t first, last;
    mask_projections(j, mask, &first, &last);
    const int64_t m0 = g->projections[first].row0 / WINA_STRIP;
    const int64_t m1 =
        (last < g->n_projections ? g->projections[last].row0 : g->n_out) / WINA_STRIP;
    int n = 0;
    for (int32_t i = 0; i < g->n_panels; i++) {
        int64_t p0 = g->panel_row0[i] / WINA_STRIP, p1 = p0 + g->panels[i].n_rows / WINA_STRIP;
        int64_t a = p0 > m0 ? p0 : m0, b = p1 < m1 ? p1 : m1;
        if (a < b)
            out[n++] =
                (segment){&g->panels[i], (int32_t)(a - p0), (int32_t)(b - p0), g->panel_row0[i]};
    }
    return n;
}

/* ---- one token ---------------------------------------------------------------------------- */

static void prepare_act(const job *j, int32_t mask) {
    wina_cpu *c = j->cpu;
    wina_act *a = &c->acts[mask];
    const float *x = j->in + j->token * j->in_stride;
    int32_t n = j->group->n_in;
    a->n_kept = select_inputs(j, &c->scratch[0], x, j->token, mask, c->kept[mask]);
    a->kept = c->kept[mask];
    a->x = x;
    if (j->by32)
        c->kernels.quantize(x, a->kept, a->n_kept, n, 32, &a->by32);
    if (j->by16)
        c->kernels.quantize(x, a->kept, a->n_kept, n, 16, &a->by16);
    count(j, j->token, mask, a->n_kept);
}

/* A thread's share of one segment: (part, strip) pairs in that order, so that it reads whole
 * columns where there are as many parts as threads. */
static void multiply_share(const job *j, const segment *s, const wina_act *act, int32_t thread,
                           int32_t n_threads) {
    const int64_t n_strips = s->strip1 - s->strip0;
    int64_t begin, end;
    wina_threads_share(n_strips * s->panel->n_parts, thread, n_threads, &begin, &end);
    while (begin < end) {
        const int64_t part = begin / n_strips, first = begin % n_strips;
        const int64_t n = end - begin < n_strips - first ? end - begin : n_strips - first;
        int32_t block0, block1;
        wina_panel_part(s->panel, (int32_t)part, &block0, &block1);
        j->cpu->kernels.gemv(s->panel, act, block0, block1, s->strip0 + (int32_t)first,
                             s->strip0 + (int32_t)(first + n), false,
                             j->cpu->parts + part * j->group->n_out + s->row0);
        begin += n;
    }
}

static void multiply_one(void *arg, int32_t thread, int32_t n_threads) {
    const job *j = arg;
    for (int32_t mask = 0; mask < j->n_masks; mask++) {
        segment s[WINA_MAX_PROJECTIONS];
        const int n = find_segments(j, mask, s);
        for (int i = 0; i < n; i++)
            multiply_share(j, &s[i], &j->cpu->acts[mask], thread, n_threads);
    }
}

void wina_cpu_join_parts(const wina_cpu *c, const wina_group_weights *g, int64_t row0, int64_t row1,
                         float *y) {
    for (int32_t i = 0; i < g->n_panels; i++) {
        const int64_t p0 = g->panel_row0[i], p1 = p0 + g->panels[i].n_rows;
        const int64_t a = row0 > p0 ? row0 : p0, b = row1 < p1 ? row1 : p1;
        if (a >= b)
            continue;
        memcpy(y + (a - row0), c->parts + a, (size_t)(b - a) * sizeof *y);
        for (int32_t part = 1; part < g->panels[i].n_parts; part++)
            c->kernels.add(y + (a - row0), c->parts + part * g->n_out + a, (int32_t)(b - a));
    }
    if (g->bias)
        c->kernels.add(y, g->bias + row0, (int32_t)(row1 - row0));
}

/* ---- several tokens ----------------------------------------------------------------------- */

/* A token's n inputs in blocks, the last one filled up with zeros. */
static void store_all(const wina_batch *b, int32_t token, const float *x, int32_t n) {
    for (int32_t block = 0; block * WINA_BLOCK < n; block++) {
        float *to = b->x + wina_batch_at(b, block, token);
        const int32_t left = n - block * WINA_BLOCK, now = left < WINA_BLOCK ? left : WINA_BLOCK;
        memcpy(to, x + block * WINA_BLOCK, (size_t)now * sizeof *to);
        memset(to + now, 0, (size_t)(WINA_BLOCK - now) * sizeof *to);
    }
}

/* The kept ones, and zeros. */
static void store_kept(const wina_batch *b, int32_t token, const float *x, int32_t n,
                       const int32_t *kept, int32_t n_kept) {
    for (int32_t block = 0; block * WINA_BLOCK < n; block++)
        memset(b->x + wina_batch_at(b, block, token), 0, WINA_BLOCK * sizeof *b->x);
    for (int32_t i = 0; i < n_kept; i++)
        b->x[wina_batch_at(b, kept[i] / WINA_BLOCK, token) + kept[i] % WINA_BLOCK] = x[kept[i]];
}

static void prepare_batch(void *arg, int32_t thread, int32_t n_threads) {
    const job *j = arg;
    wina_cpu *c = j->cpu;
    wina_cpu_scratch *s = &c->scratch[thread];
    int32_t n = j->group->n_in;
    int64_t t0, t1;
    wina_threads_share(c->n_tokens, thread, n_threads, &t0, &t1);
    for (int64_t t = t0; t < t1; t++) {
        const float *x = j->in + t * j->in_stride;
        if (rule_of(j, (int32_t)t, j->mask)) {
            c->n_kept[t] = select_inputs(j, s, x, (int32_t)t, j->mask, s->kept);
            store_kept(&c->batch, (int32_t)t, x, n, s->kept, c->n_kept[t]);
        } else {
            c->n_kept[t] = n;
            store_all(&c->batch, (int32_t)t, x, n);
        }
        if (j->by32)
            c->kernels.quantize_row(&c->batch, (int32_t)t, 0);
        if (j->by16)
            c->kernels.quantize_row(&c->batch, (int32_t)t, 1);
    }
}

/* Some strips of every token, part by part. The products go through a small buffer, since rows of
 * the result lie far apart, often by a power of two, which is hard on the cache. */
static void multiply_strips(const job *j, const segment *s, int32_t strip0, int32_t strip1,
                            float *sums) {
    const wina_cpu *c = j->cpu;
    for (int32_t part = 0; part < s->panel->n_parts; part++) {
        int32_t block0, block1;
        wina_panel_part(s->panel, part, &block0, &block1);
        c->kernels.gemm(s->panel, &c->batch, block0, block1, strip0, strip1, sums);
        const float *from = sums;
        for (int32_t strip = strip0; strip < strip1; strip++) {
            float *to = j->out + s->row0 + (int64_t)strip * WINA_STRIP;
            for (int32_t t = 0; t < c->n_tokens; t++, to += j->out_stride, from += WINA_STRIP)
                if (part == 0)
                    memcpy(to, from, WINA_STRIP * sizeof *to);
                else
                    c->kernels.add(to, from, WINA_STRIP);
        }
    }
}

/* Strips a thread takes at a time: fewer where there are few, so that no thread is left with much
 * while the others are done. */
static int32_t strips_at_a_time(int64_t n_strips, int32_t n_threads) {
    const int64_t n = n_threads > 1 ? n_strips / (8 * n_threads) : n_strips;
    return n < 1 ? 1 : n > WINA_GEMM_STRIPS ? WINA_GEMM_STRIPS : (int32_t)n;
}

static void multiply_rows(const job *j, const segment *s, int32_t strip0, int32_t strip1,
                          float *sums) {
    multiply_strips(j, s, strip0, strip1, sums);
    const int64_t row0 = s->row0 + (int64_t)strip0 * WINA_STRIP;
    const int64_t row1 = s->row0 + (int64_t)strip1 * WINA_STRIP;
    for (int32_t t = 0; t < j->cpu->n_tokens; t++) {
        add_bias(j, t, row0, row1);
        if (j->residual)
            add_residual(j, t, row0, row1);
    }
}

/* Threads take strips as they come to them: a processor that others use too does less. */
static void multiply_batch(void *arg, int32_t thread, int32_t n_threads) {
    job *j = arg;
    segment s[WINA_MAX_PROJECTIONS];
    const int n = find_segments(j, j->mask, s);
    int32_t first = 0; /* piece of a segment, counted through all of them */
    int32_t piece = atomic_fetch_add_explicit(&j->taken, 1, memory_order_relaxed);
    for (int i = 0; i < n; i++) {
        const int32_t size = strips_at_a_time(s[i].strip1 - s[i].strip0, n_threads);
        const int32_t n_pieces = (s[i].strip1 - s[i].strip0 + size - 1) / size;
        while (piece < first + n_pieces) {
            const int32_t strip0 = s[i].strip0 + (piece - first) * size;
            const int32_t strip1 = strip0 + size < s[i].strip1 ? strip0 + size : s[i].strip1;
            multiply_rows(j, &s[i], strip0, strip1, j->cpu->scratch[thread].part_sums);
            piece = atomic_fetch_add_explicit(&j->taken, 1, memory_order_relaxed);
        }
        first += n_pieces;
    }
}

/* ---- steps -------------------------------------------------------------------------------- */

static void find_kinds(job *j) {
    for (int32_t i = 0; i < j->group->n_panels; i++) {
        const wina_layout *l = j->group->panels[i].layout;
        /* NOLINTNEXTLINE(clang-analyzer-core*): every panel has one */
        j->by32 |= wina_layout_rounds_by(l, 32);
        j->by16 |= wina_layout_rounds_by(l, 16);
    }
}

/* What several tokens cost one by one and as a batch, in units of one dense token. A column that is
 * not kept is saved only one by one; a batch unpacks the weights once for all of its tokens,
 * however few these are. The numbers are those of AVX2 (docs/server.md). */
static bool best_one_by_one(const job *j) {
    const wina_cpu *c = j->cpu;
    float single = 0, batch = 1.2f + 0.45f * (float)c->n_tokens;
    for (int32_t t = 0; t < c->n_tokens; t++) {
        const wina_rule *r = rule_of(j, t, 0);
        single += r ? 0.25f + 0.75f * (float)r->n_keep / (float)j->group->n_in : 1.0f;
        if (single > batch)
            return false;
    }
    return true;
}

/* Whether its group is one of a layer's of which only some columns are in memory. */
static bool is_on_disk(const job *j) {
    return j->cpu->columns && j->which >= 0;
}

/* ---- one token, with columns from the disk ------------------------------------------------ */

/* Blocks of a part, which are multiplied when so much as they need was read. */
typedef struct slice {
    int32_t mask, part, block0, block1;
    segment segment;
    uint64_t mark;
} slice;

/* Of a panel: enough that reading and multiplying go on together. */
enum { N_SLICES = 16, MAX_SLICES = N_SLICES * WINA_MAX_PROJECTIONS * WINA_MAX_PROJECTIONS };

typedef struct slices {
    const job *job;
    int32_t n, next;
    slice slice[MAX_SLICES];
} slices;

static void multiply_slice(void *arg, int32_t thread, int32_t n_threads) {
    const slices *all = arg;
    const job *j = all->job;
    const slice *s = &all->slice[all->next];
    const wina_panel *p = s->segment.panel;
    int64_t strip0, strip1;
    int32_t first, end;
    wina_panel_part(p, s->part, &first, &end);
    wina_threads_share(s->segment.strip1 - s->segment.strip0, thread, n_threads, &strip0, &strip1);
    if (strip0 < strip1)
        j->cpu->kernels.gemv(p, &j->cpu->acts[s->mask], s->block0, s->block1,
                             s->segment.strip0 + (int32_t)strip0,
                             s->segment.strip0 + (int32_t)strip1, s->block0 > first,
                             j->cpu->parts + s->part * j->group->n_out + s->segment.row0);
}

/* The next slice, in the one order that gives the bits of a whole product. */
static bool multiply_next(void *arg, uint64_t n_read) {
    slices *all = arg;
    if (all->next == all->n || all->slice[all->next].mark > n_read)
        return false;
    wina_threads_run(all->job->cpu->threads, multiply_slice, all);
    all->next++;
    return true;
}

/* Cuts a segment into slices and adds what they need to what is read. */
static void cut(slices *all, int32_t mask, const segment *s) {
    const wina_panel *p = s->panel;
    const wina_act *act = &all->job->cpu->acts[mask];
    wina_columns *columns = all->job->cpu->columns;
    const int32_t panel = (int32_t)(p - all->job->group->panels), most = N_SLICES / p->n_parts;
    for (int32_t part = 0, k = 0; part < p->n_parts; part++) {
        int32_t block0, block1;
        wina_panel_part(p, part, &block0, &block1);
        const int32_t size = (block1 - block0 + most - 1) / most;
        for (int32_t b = block0, end; b < block1; b = end) {
            const int32_t from = k;
            end = b + size < block1 ? b + size : block1;
            while (k < act->n_kept && act->kept[k] < end * WINA_BLOCK)
                k++;
            wina_columns_add(columns, panel, act->kept + from, k - from);
            all->slice[all->n++] = (slice){mask, part, b, end, *s, wina_columns_mark(columns)};
        }
    }
}

/* All masks, all parts, into `parts`; where reading fails the batch does. */
static void multiply_from_disk(job *j) {
    wina_cpu *c = j->cpu;
    const wina_group_weights *whole = j->group;
    wina_group_weights view;
    slices all = {.job = j};
    wina_columns_begin(c->columns, j->layer, j->which, &view);
    j->group = &view;
    for (int32_t mask = 0; mask < j->n_masks; mask++) {
        segment s[WINA_MAX_PROJECTIONS];
        const int n = find_segments(j, mask, s);
        for (int i = 0; i < n; i++)
            cut(&all, mask, &s[i]);
    }
    const int32_t status = wina_columns_finish(c->columns, multiply_next, &all);
    if (status == WINA_OK)
        while (multiply_next(&all, wina_columns_mark(c->columns)))
            continue;
    else
        c->base.status = status;
    j->group = whole;
}

/* A token of its own or of several: all masks, all parts, into `parts`. */
static void run_one(job *j, int32_t token) {
    j->token = token;
    for (int32_t mask = 0; mask < j->n_masks; mask++)
        prepare_act(j, mask);
    if (is_on_disk(j))
        multiply_from_disk(j);
    else
        wina_threads_run(j->cpu->threads, multiply_one, j);
}

static void run(job *j) {
    wina_cpu *c = j->cpu;
    find_kinds(j);
    if (c->n_tokens == 1) {
        run_one(j, 0);
        if (j->residual) {
            wina_cpu_join_parts(c, j->group, 0, j->group->n_out, c->out);
            c->kernels.add(c->x, c->out, c->base.model->config.n_embd);
        }
        return;
    }
    if (best_one_by_one(j)) {
        for (int32_t t = 0; t < c->n_tokens; t++) {
            run_one(j, t);
            wina_cpu_join_parts(c, j->group, 0, j->group->n_out, j->out + t * j->out_stride);
            if (j->residual)
                add_residual(j, t, 0, j->group->n_out);
        }
        return;
    }
    if (is_on_disk(j))
        wina_columns_leave(c->columns);
    c->batch.n_tokens = c->n_tokens;
    c->batch.stride = (j->group->n_in + WINA_BLOCK - 1) / WINA_BLOCK * WINA_BLOCK;
    for (j->mask = 0; j->mask < j->n_masks; j->mask++) {
        wina_threads_run(c->threads, prepare_batch, j);
        for (int32_t t = 0; t < c->n_tokens; t++)
            count(j, t, j->mask, c->n_kept[t]);
        atomic_store_explicit(&j->taken, 0, memory_order_relaxed);
        wina_threads_run(c->threads, multiply_batch, j);
    }
    if (is_on_disk(j))
        wina_columns_release(c->columns, j->group);
}

const float *wina_cpu_input(wina_backend *backend, wina_group group) {
    const wina_cpu *c = (const wina_cpu *)backend;
    return group == WINA_GROUP_O ? c->att : group == WINA_GROUP_DOWN ? c->ff : c->h;
}

void wina_cpu_multiply(wina_cpu *c, const wina_cpu_product *p) {
    job j = {.cpu = c,
             .group = p->group,
             .in = p->in,
             .in_stride = p->group->n_in,
             .out = p->out,
             .out_stride = p->group->n_out,
             .which = -1,
             .rules = p->rules,
             .gate = p->gate,
             .gate_stride = p->gate_stride,
             .first = p->first,
             .last = p->no_last ? -1 : c->n_tokens - 1};
    j.n_masks = rule_of(&j, c->n_tokens - 1, 0) ? p->n_masks : 1;
    run(&j);
}

void wina_cpu_multiply_joined(wina_cpu *c, const wina_cpu_product *p) {
    wina_cpu_multiply(c, p);
    if (c->n_tokens == 1)
        wina_cpu_join_parts(c, p->group, 0, p->group->n_out, p->out);
}

void wina_cpu_project(wina_backend *backend, int32_t layer, wina_group group) {
    wina_cpu *c = (wina_cpu *)backend;
    const wina_layer *l = &backend->model->weights.layers[layer];
    const wina_group_weights *g = &l->groups[group];
    job j = {.cpu = c, .group = g, .in_stride = g->n_in, .out_stride = g->n_out};
    j.layer = layer, j.which = (int32_t)group, j.n_masks = 1;
    j.last = c->n_tokens - 1;
    j.gate = c->gate_up, j.gate_stride = l->groups[WINA_GROUP_GATE_UP].n_out;
    for (int32_t t = c->members ? 0 : c->n_tokens - 1; t < c->n_tokens; t++) {
        const wina_rules *r = rules_of(c, t);
        if (r && r->n_masks[group] > j.n_masks)
            j.n_masks = r->n_masks[group];
    }
    j.in = wina_cpu_input(backend, group);
    const bool last = group == WINA_GROUP_O || group == WINA_GROUP_DOWN;
    const bool has_exit = last && wina_config_has_exit(&backend->model->config);
    j.residual = last && !has_exit;
    j.out = group == WINA_GROUP_QKV ? c->qkv : group == WINA_GROUP_GATE_UP ? c->gate_up : c->out;
    run(&j);
    if (has_exit)
        wina_cpu_leave(c, layer, group);
}

void wina_cpu_rotate(wina_backend *backend, int32_t layer, wina_site site) {
    wina_cpu *c = (wina_cpu *)backend;
    const wina_group_weights *g = &backend->model->weights.layers[layer].rotations[site];
    wina_cpu_multiply_joined(c, &(wina_cpu_product){.group = g, .in = c->x, .out = c->out});
    for (int32_t t = 0; t < c->n_tokens; t++)
        memcpy(c->x + (int64_t)t * g->n_in, c->out + (int64_t)t * g->n_out,
               (size_t)g->n_in * sizeof *c->x);
}

/* The output matrix is a group of one projection that is never sparse. */
static wina_group_weights output_group(const wina_model *model) {
    const wina_weights *w = &model->weights;
    wina_group_weights g = {.n_in = model->config.n_embd,
                            .n_out = w->output.n_rows,
                            .n_projections = 1,
                            .n_panels = 1,
                            .panels = {w->output}};
    g.projections[0] = (wina_projection){.n_rows = model->config.n_vocab,
                                         .row_bits = wina_layout_bits(w->output.layout)};
    return g;
}

static void finish_logits(const wina_config *f, float *logits) {
    for (int32_t i = 0; i < f->n_vocab && f->logit_scale != 1.0f; i++)
        logits[i] *= f->logit_scale;
    for (int32_t i = 0; i < f->n_vocab && f->logit_softcap > 0; i++)
        logits[i] = f->logit_softcap * tanhf(logits[i] / f->logit_softcap);
}

/* Logits of tokens from `from` on: at out, or where the members want them. */
static void run_head(wina_cpu *c, int32_t from, float *out) {
    const wina_backend *backend = &c->base;
    const wina_config *f = &backend->model->config;
    const wina_group_weights g = output_group(backend->model);
    const int32_t n_all = c->n_tokens;
    for (int32_t begin = from, n; begin < n_all; begin += n) {
        n = n_all - begin < WINA_HEAD_BATCH ? n_all - begin : WINA_HEAD_BATCH;
        for (int32_t t = 0; t < n; t++)
            c->kernels.rms_norm(c->h + (int64_t)t * f->n_embd,
                                c->x + (int64_t)(begin + t) * f->n_embd,
                                backend->model->weights.output_norm, f->n_embd, f->rms_eps);
        c->n_tokens = n;
        wina_cpu_multiply_joined(
            c, &(wina_cpu_product){.group = &g, .in = c->h, .out = c->out, .first = begin});
        for (int32_t t = 0; t < n; t++) {
            float *logits = c->members ? c->members[begin + t].logits
                                       : out + (int64_t)(begin - from + t) * f->n_vocab;
            memcpy(logits, c->out + (int64_t)t * g.n_out, (size_t)f->n_vocab * sizeof *out);
            finish_logits(f, logits);
        }
    }
    c->n_tokens = n_all;
}

void wina_cpu_logits(wina_backend *backend, int32_t from, float *out) {
    run_head((wina_cpu *)backend, from, out);
}

void wina_cpu_logits_members(wina_backend *backend) {
    run_head((wina_cpu *)backend, 0, NULL);
}

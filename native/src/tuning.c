#include "tuning.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "status.h"

enum { GROUPS = WINA_RULE_GROUPS, PROJECTIONS = WINA_RULE_PROJECTIONS, MAX_TARGETS = 64 };

/* Every array of a tuning: where it is, its key, its length and what its values may be. */
typedef struct field {
    const float **at;
    char key[40];
    uint64_t count;
    float low, high;
    bool above_low; /* low itself is excluded */
} field;

enum { N_FIELDS = 4 + GROUPS + PROJECTIONS };

static const char *const GROUP_NAMES[GROUPS] = {"qkv", "o", "gate_up", "down"};
static const char *const PROJECTION_NAMES[PROJECTIONS] = {"q", "k", "v", "o", "gate", "up", "down"};

/* The group of a projection, counted as in arrays by projection. */
static int32_t group_of(int32_t projection) {
    int32_t group = 0;
    while (group + 1 < GROUPS && wina_rule_projection(group + 1) <= projection)
        group++;
    return group;
}

static void list_fields(wina_tuning *t, const wina_weights *w, field *f) {
    uint64_t layers = (uint64_t)w->n_layer, rows = (uint64_t)t->n_targets * layers;
    const wina_group_weights *g = w->layers[0].groups;
    *f++ = (field){&t->targets, "wina.targets", (uint64_t)t->n_targets, 0, 0.999f, true};
    *f++ = (field){&t->kept, "wina.kept", rows * GROUPS, 0, 1, true};
    *f++ = (field){&t->kept_projections, "wina.kept_projections", rows * PROJECTIONS, 0, 1, true};
    *f++ = (field){&t->thresholds, "wina.thresholds", rows * GROUPS, 0, 1e30f, true};
    for (int i = 0; i < GROUPS; i++, f++) {
        *f = (field){&t->norms[i], "", layers * (uint64_t)g[i].n_in, 0, 1e30f, false};
        snprintf(f->key, sizeof f->key, "wina.norms.%s", GROUP_NAMES[i]);
    }
    for (int i = 0; i < PROJECTIONS; i++, f++) {
        uint64_t n_in = (uint64_t)g[group_of(i)].n_in;
        *f = (field){&t->projection_norms[i], "", layers * n_in, 0, 1e30f, false};
        snprintf(f->key, sizeof f->key, "wina.norms.%s", PROJECTION_NAMES[i]);
    }
}

/* Projections that are a group of their own have no key: the group's is meant. */
static bool is_alone(const field *f, int i) {
    return i >= 4 + GROUPS &&
           (strcmp(f->key, "wina.norms.o") == 0 || strcmp(f->key, "wina.norms.down") == 0);
}

static int32_t check_values(int32_t status, const field *f) {
    const float *v = *f->at;
    for (uint64_t i = 0; v && i < f->count; i++)
        if (!(v[i] >= f->low && v[i] <= f->high) || (f->above_low && v[i] <= f->low))
            return wina_fail(status, "%s[%llu] is %g, must be in %c%g, %g]", f->key,
                             (unsigned long long)i, (double)v[i], f->above_low ? '(' : '[',
                             (double)f->low, (double)f->high);
    return WINA_OK;
}

/* status: what a wrong value is, WINA_E_FORMAT in a file. */
static int32_t check(int32_t status, const wina_tuning *t, const wina_weights *w,
                     const field *fields) {
    if (w->layers[0].mixture.n && t->norms[0])
        return wina_fail(status, "wina.norms.qkv: experts have norms of their own, other norms "
                                 "are not supported with a mixture of experts");
    for (int i = 0; i < N_FIELDS; i++)
        WINA_TRY(check_values(status, &fields[i]));
    if (t->n_targets > 0 && (!t->targets || !t->kept))
        return wina_fail(status, "wina.targets needs wina.kept, and the other way round");
    for (int32_t i = 1; i < t->n_targets; i++)
        if (t->targets[i] <= t->targets[i - 1])
            return wina_fail(status, "wina.targets[%d] is %g, not above the one before", i,
                             (double)t->targets[i]);
    for (int g = 0; g < GROUPS; g++) {
        if (!t->norms[g] != !t->norms[0])
            return wina_fail(status, "wina.norms.%s: there must be norms of all groups or of none",
                             GROUP_NAMES[t->norms[g] ? 0 : g]);
        if (!(t->exponents[g] >= 0 && t->exponents[g] <= 4))
            return wina_fail(status, "wina.exponents[%d] is %g, must be in [0, 4]", g,
                             (double)t->exponents[g]);
    }
    return WINA_OK;
}

/* ---- from a file -------------------------------------------------------------------------- */

/* Copies an array of exactly count floats; a missing key leaves *out as it is. */
static int32_t read_floats(const wina_gguf *gguf, const char *key, uint64_t count, float *out,
                           bool *found) {
    const wina_gguf_kv *kv;
    *found = wina_gguf_find(gguf, key) != NULL;
    if (!*found)
        return WINA_OK;
    WINA_TRY(wina_gguf_get_array(gguf, key, WINA_GGUF_F32, count, &kv));
    if (kv->count != count)
        return wina_fail(WINA_E_FORMAT, "metadata key %s has %llu items, must have %llu", key,
                         (unsigned long long)kv->count, (unsigned long long)count);
    memcpy(out, kv->data, (size_t)count * sizeof *out);
    return WINA_OK;
}

static int32_t read_fields(const wina_gguf *gguf, const wina_weights *w, const field *fields,
                           wina_tuning_store *s) {
    uint64_t total = 0, used = 0;
    for (int i = 0; i < N_FIELDS; i++)
        if (!is_alone(&fields[i], i) && wina_gguf_find(gguf, fields[i].key))
            total += fields[i].count;
    WINA_TRY(wina_mem_create(total, sizeof(float), "tuning", &s->memory));
    for (int i = 0; i < N_FIELDS; i++) {
        bool found = false;
        if (!is_alone(&fields[i], i))
            WINA_TRY(read_floats(gguf, fields[i].key, fields[i].count, s->memory + used, &found));
        if (!found)
            continue;
        *fields[i].at = s->memory + used;
        used += fields[i].count;
        s->present = true;
    }
    bool found;
    for (int i = 0; i < GROUPS; i++)
        s->tuning.exponents[i] = 1;
    WINA_TRY(read_floats(gguf, "wina.exponents", GROUPS, s->tuning.exponents, &found));
    return check(WINA_E_FORMAT, &s->tuning, w, fields);
}

int32_t wina_tuning_read(const wina_gguf *gguf, const wina_weights *w, wina_tuning_store *out) {
    wina_tuning_store s = {0};
    field fields[N_FIELDS];
    const wina_gguf_kv *targets;
    if (wina_gguf_find(gguf, "wina.targets")) {
        WINA_TRY(wina_gguf_get_array(gguf, "wina.targets", WINA_GGUF_F32, 0, &targets));
        if (targets->count < 1 || targets->count > MAX_TARGETS)
            return wina_fail(WINA_E_FORMAT, "wina.targets has %llu items, must have 1..%d",
                             (unsigned long long)targets->count, MAX_TARGETS);
        s.tuning.n_targets = (int32_t)targets->count;
    }
    list_fields(&s.tuning, w, fields);
    int32_t status = read_fields(gguf, w, fields, &s);
    if (status != WINA_OK) {
        wina_tuning_free(&s);
        return status;
    }
    *out = s;
    return WINA_OK;
}

/* ---- from a caller ------------------------------------------------------------------------ */

int32_t wina_tuning_copy(const wina_tuning *tuning, const wina_weights *w, wina_tuning_store *out) {
    wina_tuning_store s = {.tuning = *tuning, .present = true};
    field fields[N_FIELDS];
    if (tuning->n_targets < 0 || tuning->n_targets > MAX_TARGETS)
        return wina_fail(WINA_E_ARGUMENT, "n_targets is %d, must be in 0..%d", tuning->n_targets,
                         MAX_TARGETS);
    list_fields(&s.tuning, w, fields);
    for (int i = 0; i < 4; i++)
        if (fields[i].count == 0)
            *fields[i].at = NULL;
    WINA_TRY(check(WINA_E_ARGUMENT, &s.tuning, w, fields));
    uint64_t total = 0;
    for (int i = 0; i < N_FIELDS; i++)
        total += *fields[i].at ? fields[i].count : 0;
    WINA_TRY(wina_mem_create(total, sizeof(float), "tuning", &s.memory));
    float *next = s.memory;
    for (int i = 0; i < N_FIELDS; i++) {
        if (!*fields[i].at)
            continue;
        memcpy(next, *fields[i].at, (size_t)fields[i].count * sizeof *next);
        *fields[i].at = next;
        next += fields[i].count;
    }
    *out = s;
    return WINA_OK;
}

void wina_tuning_free(wina_tuning_store *s) {
    free(s->memory);
    *s = (wina_tuning_store){0};
}

/* ---- shapes ------------------------------------------------------------------------------- */

static void describe_group(const wina_group_weights *g, wina_rule_group *r) {
    r->n_in = g->n_in;
    r->n_projections = g->n_projections;
    r->norms = g->norms;
    for (int32_t p = 0; p < g->n_projections; p++) {
        r->bits[p] =
            (uint64_t)g->n_in * (uint64_t)g->projections[p].n_rows * g->projections[p].row_bits;
        r->projection_norms[p] = g->projections[p].norms;
    }
}

int32_t wina_tuning_groups(const wina_weights *w, wina_rule_group **out) {
    WINA_TRY(wina_mem_create((uint64_t)w->n_layer * GROUPS, sizeof **out, "rules", out));
    for (int32_t i = 0; i < w->n_layer * GROUPS; i++)
        describe_group(&w->layers[i / GROUPS].groups[i % GROUPS], &(*out)[i]);
    return WINA_OK;
}

/* What a token reads of group k (0: gate_up, 1: down) of a layer's experts: its share of those to
 * choose from, and all of a shared one. */
static void add_experts(const wina_config *c, const wina_rule_group *experts, int k,
                        wina_rule_group *out) {
    for (int32_t p = 0; p < out->n_projections; p++) {
        uint64_t chosen = 0;
        for (int32_t e = 0; e < c->n_expert; e++)
            chosen += experts[2 * e + k].bits[p];
        out->bits[p] = chosen / (uint64_t)c->n_expert * (uint64_t)c->n_expert_used;
        if (c->n_ff_shared)
            out->bits[p] += experts[2 * c->n_expert + k].bits[p];
    }
}

int32_t wina_tuning_experts(const wina_weights *w, const wina_config *c, wina_rule_group *groups,
                            wina_rule_group **out) {
    if (!c->n_expert)
        return WINA_OK;
    const int32_t n = wina_experts_count(c);
    WINA_TRY(wina_mem_create((uint64_t)w->n_layer * (uint64_t)n * 2, sizeof **out, "rules", out));
    for (int32_t i = 0; i < w->n_layer; i++) {
        wina_rule_group *own = *out + (int64_t)i * n * 2;
        for (int32_t e = 0; e < n; e++) {
            describe_group(&w->layers[i].mixture.experts[e].gate_up, &own[2 * e]);
            describe_group(&w->layers[i].mixture.experts[e].down, &own[2 * e + 1]);
        }
        add_experts(c, own, 0, &groups[i * GROUPS + WINA_GROUP_GATE_UP]);
        add_experts(c, own, 1, &groups[i * GROUPS + WINA_GROUP_DOWN]);
    }
    return WINA_OK;
}

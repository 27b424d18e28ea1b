#include "rule.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../mem.h"
#include "../status.h"
#include "budget.h"

enum { GROUPS = WINA_RULE_GROUPS, MASKS = WINA_RULE_MASKS, PROJECTIONS = WINA_RULE_PROJECTIONS };

/* A method is a row: what is scored, which groups it skips inputs of, what budgets suit it. */
typedef struct method {
    const char *name;
    bool norms;                /* the score is multiplied by norms */
    bool from_gate;            /* activated gates are scored: rows of up, columns of down */
    wina_budget_source budget; /* what WINA_BUDGET_AUTO means without calibration */
} method;

static const method METHODS[] = {
    [WINA_METHOD_DENSE] = {"dense", false, false, WINA_BUDGET_UNIFORM},
    [WINA_METHOD_WINA] = {"wina", true, false, WINA_BUDGET_PROFILE},
    [WINA_METHOD_TEAL] = {"teal", false, false, WINA_BUDGET_UNIFORM},
    [WINA_METHOD_CATS] = {"cats", false, true, WINA_BUDGET_UNIFORM},
};
enum { N_METHODS = sizeof METHODS / sizeof METHODS[0] };

static const char *const BUDGETS[] = {"auto", "uniform", "profile", "calibrated"};
static const char *const NORMS[] = {"auto", "l2", "calibrated"};

/* The built-in profile: kept fractions by group at sparsity 0.5. What the feed-forward product
 * (down) and the attention output (o) can spare is worth more elsewhere; docs/method.md. */
static const float PROFILE[GROUPS] = {0.58f, 0.42f, 0.59f, 0.32f};
/* Exponents of l2 norms by group where nothing was calibrated. 0, which is |x| alone, lost least on
 * every model measured (docs/method.md); the published rule has 1. */
static const float EXPONENTS[GROUPS] = {0.0f, 0.0f, 0.0f, 0.0f};

const char *wina_method_name(int32_t m) {
    return m >= 0 && m < N_METHODS ? METHODS[m].name : NULL;
}

int32_t wina_rule_projection(int32_t group) {
    static const int32_t FIRST[GROUPS] = {0, 3, 4, 6};
    return FIRST[group];
}

/* ---- what was asked for ------------------------------------------------------------------- */

/* The request with every "auto" decided. */
typedef struct choice {
    const method *method;
    wina_budget_source budget;
    bool calibrated_norms;
    float exponents[GROUPS];
    bool by_projection;
    bool thresholds;
} choice;

static choice decide(const wina_rule_model *m, const wina_sparsity *s) {
    const wina_tuning *t = m->tuning;
    choice c = {.method = &METHODS[s->method], .budget = (wina_budget_source)s->budget};
    if (c.budget == WINA_BUDGET_AUTO) {
        bool tuned = t && t->n_targets > 0 && s->method == WINA_METHOD_WINA;
        c.budget = tuned ? WINA_BUDGET_CALIBRATED : c.method->budget;
    }
    c.calibrated_norms = s->norms != WINA_NORMS_L2 && t && t->norms[0];
    for (int g = 0; g < GROUPS; g++) {
        float usual = c.calibrated_norms ? t->exponents[g] : EXPONENTS[g];
        c.exponents[g] = !c.method->norms ? 0 : s->exponent >= 0 ? s->exponent : usual;
    }
    c.by_projection = s->mask == WINA_MASK_PROJECTION && !c.method->from_gate;
    c.thresholds = s->selection == WINA_SELECT_THRESHOLD;
    return c;
}

static int32_t check_range(const char *name, int32_t value, int32_t n) {
    if (value < 0 || value >= n)
        return wina_fail(WINA_E_ARGUMENT, "unknown %s %d", name, value);
    return WINA_OK;
}

/* Thresholds were measured for one rule: the calibrated one, with group masks. */
static int32_t check_thresholds(const wina_rule_model *m, const wina_sparsity *s) {
    const wina_tuning *t = m->tuning;
    if (!t || !t->thresholds)
        return wina_fail(WINA_E_ARGUMENT, "selection by threshold needs a calibrated model");
    if (s->method != WINA_METHOD_WINA || s->mask != WINA_MASK_GROUP || s->exponent >= 0 ||
        s->norms == WINA_NORMS_L2 ||
        (s->budget != WINA_BUDGET_AUTO && s->budget != WINA_BUDGET_CALIBRATED))
        return wina_fail(WINA_E_ARGUMENT, "thresholds belong to the calibrated rule: method wina, "
                                          "group masks, its own budgets and norms");
    if (s->sparsity > t->targets[t->n_targets - 1])
        return wina_fail(WINA_E_ARGUMENT, "thresholds are calibrated up to sparsity %g, not %g",
                         (double)t->targets[t->n_targets - 1], (double)s->sparsity);
    return WINA_OK;
}

int32_t wina_rules_check(const wina_rule_model *m, const wina_sparsity *s) {
    if (!(s->sparsity >= 0.0f && s->sparsity < 1.0f))
        return wina_fail(WINA_E_ARGUMENT, "sparsity is %g, must be in [0, 1)", (double)s->sparsity);
    if (s->exponent > 4.0f || s->exponent != s->exponent)
        return wina_fail(WINA_E_ARGUMENT, "exponent is %g, must be in [0, 4], or below 0: the best",
                         (double)s->exponent);
    WINA_TRY(check_range("sparsity method", s->method, N_METHODS));
    WINA_TRY(check_range("mask", s->mask, WINA_MASK_PROJECTION + 1));
    WINA_TRY(check_range("budget", s->budget, WINA_BUDGET_CALIBRATED + 1));
    WINA_TRY(check_range("norms", s->norms, WINA_NORMS_CALIBRATED + 1));
    WINA_TRY(check_range("selection", s->selection, WINA_SELECT_THRESHOLD + 1));
    const wina_tuning *t = m->tuning;
    if (s->budget == WINA_BUDGET_CALIBRATED && (!t || t->n_targets == 0))
        return wina_fail(WINA_E_ARGUMENT, "calibrated budgets are asked for; the model has none");
    if (s->norms == WINA_NORMS_CALIBRATED && (!t || !t->norms[0]))
        return wina_fail(WINA_E_ARGUMENT, "calibrated norms are asked for; the model has none");
    return s->selection == WINA_SELECT_THRESHOLD ? check_thresholds(m, s) : WINA_OK;
}

/* ---- budgets ------------------------------------------------------------------------------ */

/* Rows of a table of targets that surround the sparsity, and where it lies between them. */
static void find_rows(const wina_tuning *t, float sparsity, int32_t *low, int32_t *high,
                      double *x) {
    int32_t i = 0;
    while (i < t->n_targets && t->targets[i] < sparsity)
        i++;
    *high = i < t->n_targets ? i : t->n_targets - 1;
    *low = i > 0 ? i - 1 : 0;
    *x = *low == *high ? 0
                       : wina_budget_position((double)sparsity, (double)t->targets[*low],
                                              (double)t->targets[*high]);
}

/* The kept fraction before all of them are moved to the wanted share. index: the item's place in a
 * row of `width` items of its table. */
static float shape_of(const wina_tuning *t, const float *table, int64_t width, int64_t index,
                      float sparsity) {
    int32_t low, high;
    double x;
    find_rows(t, sparsity, &low, &high, &x);
    return wina_budget_blend(table[low * width + index], table[high * width + index], x);
}

static float kept_shape(const wina_rule_model *m, const choice *c, const wina_sparsity *s,
                        int32_t layer, int32_t group, int32_t projection) {
    const wina_tuning *t = m->tuning;
    if (c->budget == WINA_BUDGET_PROFILE)
        return PROFILE[group];
    if (c->budget == WINA_BUDGET_UNIFORM)
        return 1.0f - s->sparsity;
    if (c->by_projection && t->kept_projections)
        return shape_of(t, t->kept_projections, (int64_t)m->n_layer * PROJECTIONS,
                        (int64_t)layer * PROJECTIONS + wina_rule_projection(group) + projection,
                        s->sparsity);
    return shape_of(t, t->kept, (int64_t)m->n_layer * GROUPS, (int64_t)layer * GROUPS + group,
                    s->sparsity);
}

/* Kept fraction of down where activated gates decide. A gate that is skipped saves its row of up
 * and its column of down; everything else stays dense. */
static int32_t gate_budget(const wina_rule_model *m, float sparsity, double *kept) {
    double all = 0, gated = 0;
    for (int32_t i = 0; i < m->n_layer * GROUPS; i++) {
        const wina_rule_group *g = &m->groups[i];
        for (int32_t p = 0; p < g->n_projections; p++) {
            double bits = (double)g->bits[p];
            bool is_up = i % GROUPS == WINA_GROUP_GATE_UP && p == 1;
            all += bits;
            gated += is_up || i % GROUPS == WINA_GROUP_DOWN ? bits : 0;
        }
    }
    *kept = 1 - (double)sparsity * all / gated;
    if (*kept <= 0)
        return wina_fail(WINA_E_ARGUMENT,
                         "sparsity is %g; cats skips parts of up and down only, less than %.3f of "
                         "this model's weights",
                         (double)sparsity, gated / all);
    return WINA_OK;
}

/* kept (n_layer, GROUPS, MASKS) fractions; entries without a mask are 1. */
static int32_t find_budgets(const wina_rule_model *m, const choice *c, const wina_sparsity *s,
                            float *kept) {
    int64_t n = (int64_t)m->n_layer * GROUPS * MASKS;
    uint64_t *bits = NULL;
    double gated = 1;
    if (c->method->from_gate)
        WINA_TRY(gate_budget(m, s->sparsity, &gated));
    else
        WINA_TRY(wina_mem_create((uint64_t)n, sizeof *bits, "budgets", &bits));
    for (int64_t i = 0; i < n; i++) {
        int32_t layer = (int32_t)(i / (GROUPS * MASKS)), group = (int32_t)(i / MASKS % GROUPS);
        int32_t mask = (int32_t)(i % MASKS);
        const wina_rule_group *g = &m->groups[i / MASKS];
        kept[i] = 1;
        if (mask >= (c->by_projection ? g->n_projections : 1))
            continue;
        if (c->method->from_gate) {
            kept[i] = group == WINA_GROUP_DOWN ? (float)gated : 1;
            continue;
        }
        kept[i] = kept_shape(m, c, s, layer, group, mask);
        for (int32_t p = 0; p < g->n_projections; p++)
            if (!c->by_projection || p == mask)
                bits[i] += g->bits[p];
    }
    double share = 1.0 - (double)s->sparsity, reached = share;
    if (bits && c->budget != WINA_BUDGET_UNIFORM)
        reached = wina_budget_fit(kept, bits, n, share);
    free(bits);
    if (reached > share + 1e-4)
        return wina_fail(WINA_E_ARGUMENT,
                         "the calibrated budgets keep so much dense that sparsity "
                         "%g cannot be reached",
                         (double)s->sparsity);
    return WINA_OK;
}

/* ---- rules -------------------------------------------------------------------------------- */

/* Scores from which on inputs are kept, straight between the targets, 0 at sparsity 0. */
static float threshold_at(const wina_rule_model *m, float sparsity, int64_t index) {
    const wina_tuning *t = m->tuning;
    int64_t width = (int64_t)m->n_layer * GROUPS;
    int32_t i = 0;
    while (t->targets[i] < sparsity)
        i++;
    float before = i > 0 ? t->thresholds[(i - 1) * width + index] : 0;
    float after = t->thresholds[i * width + index];
    float from = i > 0 ? t->targets[i - 1] : 0;
    return before + (after - before) * (sparsity - from) / (t->targets[i] - from);
}

/* Norms of a group, or of one of its matrices, before they have an exponent. */
static const float *base_norms(const wina_rule_model *m, const choice *c, const wina_rule_group *g,
                               int32_t layer, int32_t group, int32_t mask) {
    if (!c->calibrated_norms)
        return c->by_projection ? g->projection_norms[mask] : g->norms;
    const float *norms = m->tuning->norms[group];
    if (c->by_projection && m->tuning->projection_norms[wina_rule_projection(group) + mask])
        norms = m->tuning->projection_norms[wina_rule_projection(group) + mask];
    return norms + (int64_t)layer * g->n_in;
}

static void scale_norms(const float *norms, int32_t n, float exponent, float *out) {
    for (int32_t i = 0; i < n; i++)
        out[i] = powf(norms[i], exponent);
}

/* What fill_rules is at work on. */
typedef struct filling {
    const wina_rule_model *model;
    const choice *choice;
    const wina_sparsity *sparsity;
    const float *kept; /* (n_layer, GROUPS, MASKS) */
    wina_rules *out;
    float *scaled; /* room for the next norms with an exponent */
} filling;

static void fill_rule(filling *f, const wina_rule_group *g, int32_t layer, int32_t group,
                      int32_t mask, wina_rule *r) {
    const choice *c = f->choice;
    const int32_t i = layer * GROUPS + group;
    r->n_in = g->n_in;
    /* The uniform budget is taken as it was given, before any rounding to float. */
    double fraction = c->budget == WINA_BUDGET_UNIFORM && !c->method->from_gate
                          ? 1.0 - (double)f->sparsity->sparsity
                          : (double)f->kept[i * MASKS + mask];
    r->n_keep = f->out->sparse ? wina_budget_count(fraction, g->n_in) : g->n_in;
    r->from_gate = c->method->from_gate && group == WINA_GROUP_DOWN;
    r->threshold =
        c->thresholds && f->out->sparse ? threshold_at(f->model, f->sparsity->sparsity, i) : 0;
    float e = c->exponents[group];
    r->norms = e > 0 ? base_norms(f->model, c, g, layer, group, mask) : NULL;
    if (r->norms && e != 1) {
        scale_norms(r->norms, g->n_in, e, f->scaled);
        r->norms = f->scaled;
        f->scaled += g->n_in;
    }
}

static void fill_rules(filling *f) {
    const wina_rule_model *m = f->model;
    wina_rules *out = f->out;
    for (int32_t i = 0; i < m->n_layer * GROUPS; i++)
        for (int32_t mask = 0; mask < out->n_masks[i % GROUPS]; mask++)
            fill_rule(f, &m->groups[i], i / GROUPS, i % GROUPS, mask,
                      &out->rules[i * MASKS + mask]);
    for (int64_t i = 0; i < (int64_t)m->n_layer * m->n_expert * 2; i++) {
        const int32_t layer = (int32_t)(i / (2 * m->n_expert));
        const int32_t group = WINA_GROUP_GATE_UP + (int32_t)(i % 2);
        for (int32_t mask = 0; mask < out->n_masks[group]; mask++)
            fill_rule(f, &m->experts[i], layer, group, mask, &out->experts[i * MASKS + mask]);
    }
}

/* Floats that norms with an exponent take. */
static uint64_t count_scaled(const wina_rule_model *m, const choice *c, const wina_rules *r) {
    uint64_t n = 0;
    for (int32_t i = 0; i < m->n_layer * GROUPS; i++)
        if (c->exponents[i % GROUPS] > 0 && c->exponents[i % GROUPS] != 1)
            n += (uint64_t)r->n_masks[i % GROUPS] * (uint64_t)m->groups[i].n_in;
    for (int64_t i = 0; i < (int64_t)m->n_layer * m->n_expert * 2; i++) {
        const int32_t group = WINA_GROUP_GATE_UP + (int32_t)(i % 2);
        if (c->exponents[group] > 0 && c->exponents[group] != 1)
            n += (uint64_t)r->n_masks[group] * (uint64_t)m->experts[i].n_in;
    }
    return n;
}

int32_t wina_rules_create(const wina_rule_model *m, const wina_sparsity *s, wina_rules *out) {
    wina_rules r = {.n_layer = m->n_layer, .n_expert = m->n_expert};
    WINA_TRY(wina_rules_check(m, s));
    const choice c = decide(m, s);
    r.sparse = s->sparsity > 0 && s->method != WINA_METHOD_DENSE;
    const uint64_t n = (uint64_t)m->n_layer * GROUPS * MASKS;
    for (int g = 0; g < GROUPS; g++)
        r.n_masks[g] = c.by_projection && r.sparse ? m->groups[g].n_projections : 1;
    float *kept = NULL;
    int32_t status = wina_mem_create(n, sizeof *kept, "budgets", &kept);
    if (status == WINA_OK && r.sparse)
        status = find_budgets(m, &c, s, kept);
    if (status == WINA_OK)
        status = wina_mem_create(n, sizeof *r.rules, "rules", &r.rules);
    if (status == WINA_OK)
        status = wina_mem_create((uint64_t)m->n_layer * (uint64_t)m->n_expert * 2 * MASKS,
                                 sizeof *r.experts, "rules", &r.experts);
    if (status == WINA_OK)
        status = wina_mem_create(count_scaled(m, &c, &r), sizeof *r.scaled, "norms", &r.scaled);
    if (status == WINA_OK) {
        fill_rules(&(filling){m, &c, s, kept, &r, r.scaled});
        *out = r;
    } else {
        wina_rules_free(&r);
    }
    free(kept);
    return status;
}

void wina_rules_free(wina_rules *r) {
    free(r->rules);
    free(r->experts);
    free(r->scaled);
    *r = (wina_rules){0};
}

static bool has_exponents(const choice *c) {
    for (int g = 0; g < GROUPS; g++)
        if (c->exponents[g] > 0)
            return true;
    return false;
}

/* "|x| * (l2 norm)^0.5", or all four powers where they differ. */
static void describe_norms(const choice *c, char *text, size_t cap) {
    const char *name = NORMS[c->calibrated_norms ? WINA_NORMS_CALIBRATED : WINA_NORMS_L2];
    const float *e = c->exponents;
    if (e[1] == e[0] && e[2] == e[0] && e[3] == e[0])
        snprintf(text, cap, "|x| * (%s norm)^%.3g", name, (double)e[0]);
    else
        snprintf(text, cap, "|x| * (%s norm)^(%.3g, %.3g, %.3g, %.3g)", name, (double)e[0],
                 (double)e[1], (double)e[2], (double)e[3]);
}

int32_t wina_rules_describe(const wina_rule_model *m, const wina_sparsity *s, char *text,
                            size_t cap) {
    static const char *const NAMES[GROUPS] = {"qkv", "o", "gate_up", "down"};
    wina_rules r;
    WINA_TRY(wina_rules_create(m, s, &r));
    const choice c = decide(m, s);
    char score[64] = "|x|", kept[160] = "";
    if (c.method->from_gate)
        snprintf(score, sizeof score, "|silu(gate)|");
    else if (c.method->norms && has_exponents(&c))
        describe_norms(&c, score, sizeof score);
    for (int g = 0; g < GROUPS; g++) {
        double sum = 0;
        for (int32_t i = 0; i < m->n_layer; i++)
            for (int32_t k = 0; k < r.n_masks[g]; k++) {
                const wina_rule *rule = wina_rules_get(&r, i, g, k);
                sum += (double)rule->n_keep / rule->n_in / r.n_masks[g];
            }
        size_t n = strlen(kept);
        snprintf(kept + n, sizeof kept - n, "%s%s %.3f", g ? ", " : "", NAMES[g], sum / m->n_layer);
    }
    if (r.sparse)
        snprintf(text, cap, "%s: %s, %s, %s masks, %s budgets (kept: %s)", c.method->name, score,
                 c.thresholds ? "thresholds" : "top-k", c.by_projection ? "projection" : "group",
                 BUDGETS[c.budget], kept);
    else
        snprintf(text, cap, "dense");
    wina_rules_free(&r);
    return WINA_OK;
}

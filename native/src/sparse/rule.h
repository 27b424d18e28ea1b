/* rule: which inputs are kept, resolved to plain arrays. What was asked for (a method, a share of
 * bytes, masks), what calibration found and the shape of the model become one wina_rule per kept
 * list: score = |x_i| * norms_i, then the n_keep largest, or all from a threshold on. Backends know
 * only this; methods, budgets and exponents end here. */
#ifndef WINA_RULE_H
#define WINA_RULE_H

#include <stdbool.h>

#include "wina.h"

enum { WINA_RULE_GROUPS = 4, WINA_RULE_MASKS = 3, WINA_RULE_PROJECTIONS = 7 };

/* How one kept list of one group is chosen. */
typedef struct wina_rule {
    const float *norms; /* (n_in) factors of the score, or NULL: all ones */
    int32_t n_in;
    int32_t n_keep;  /* == n_in: all */
    float threshold; /* > 0: keep what scores at least this, and one input at least */
    bool from_gate;  /* the score is |silu(gate_i)| instead of |x_i| (group down) */
} wina_rule;

/* All rules of a session. */
typedef struct wina_rules {
    bool sparse;      /* false: every token runs dense, whatever the rules say */
    uint64_t version; /* set by the owner: another number for other rules */
    int32_t n_layer;
    int32_t n_masks[WINA_RULE_GROUPS]; /* kept lists of a group: 1, or one per projection */
    wina_rule *rules;                  /* (n_layer, WINA_RULE_GROUPS, WINA_RULE_MASKS) */
    int32_t n_expert;                  /* of a layer */
    wina_rule *experts; /* (n_layer, n_expert, 2, WINA_RULE_MASKS): of gate_up and down in each */
    float *scaled;      /* norms with an exponent, which rules point into */
} wina_rules;

static inline const wina_rule *wina_rules_get(const wina_rules *r, int32_t layer, int32_t group,
                                              int32_t mask) {
    return &r->rules[(layer * WINA_RULE_GROUPS + group) * WINA_RULE_MASKS + mask];
}

/* With experts those of gate_up and down above say how much is kept; these say of what. */
static inline const wina_rule *wina_rules_expert(const wina_rules *r, int32_t layer, int32_t expert,
                                                 int32_t group, int32_t mask) {
    const int64_t at = ((int64_t)layer * r->n_expert + expert) * 2 + (group - WINA_GROUP_GATE_UP);
    return &r->experts[at * WINA_RULE_MASKS + mask];
}

/* One group of one layer, as far as rules depend on it. */
typedef struct wina_rule_group {
    int32_t n_in;
    int32_t n_projections;
    uint64_t bits[WINA_RULE_MASKS]; /* of all values a dense token reads, per projection */
    const float *norms;             /* (n_in) l2, of the stacked matrix; NULL: not known, or
                                     * those of the experts count */
    const float *projection_norms[WINA_RULE_MASKS];
} wina_rule_group;

/* The model: (n_layer, WINA_RULE_GROUPS) groups; tuning is what calibration found, or NULL. */
typedef struct wina_rule_model {
    int32_t n_layer;
    const wina_rule_group *groups;
    const wina_tuning *tuning;
    int32_t n_expert;               /* of a layer; 0: none */
    const wina_rule_group *experts; /* (n_layer, n_expert, 2): gate_up and down of each */
} wina_rule_model;

/* First of a group's entries in arrays by projection (q, k, v, o, gate, up, down). */
int32_t wina_rule_projection(int32_t group);

/* WINA_E_ARGUMENT if a field is outside what it may be, or if it asks for what is not there. */
int32_t wina_rules_check(const wina_rule_model *model, const wina_sparsity *sparsity);

/* Resolves; *out is freed with wina_rules_free. */
int32_t wina_rules_create(const wina_rule_model *model, const wina_sparsity *sparsity,
                          wina_rules *out);
void wina_rules_free(wina_rules *rules);

/* The same as a line for people, cut at cap - 1 bytes. */
int32_t wina_rules_describe(const wina_rule_model *model, const wina_sparsity *sparsity, char *text,
                            size_t cap);

#endif

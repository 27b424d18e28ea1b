/* Rules: budgets at equal bytes, methods, exponents, and what cannot be followed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "sparse/budget.h"
#include "sparse/rule.h"

enum { LAYERS = 3, N = 1000, GROUPS = WINA_RULE_GROUPS };

static float norms[N];

/* Groups of one width; gate_up has twice the bits, 16 and 8 a weight. */
static void make_groups(wina_rule_group *g) {
    static const int32_t n_projections[GROUPS] = {3, 1, 2, 1};
    for (int i = 0; i < LAYERS * GROUPS; i++) {
        g[i] = (wina_rule_group){.n_in = N, .n_projections = n_projections[i % GROUPS]};
        g[i].norms = norms;
        for (int p = 0; p < g[i].n_projections; p++) {
            g[i].bits[p] = i % GROUPS == WINA_GROUP_GATE_UP ? 16 * 500 * N : 8 * 500 * N;
            g[i].projection_norms[p] = norms;
        }
    }
}

/* Share of the bits that the rules keep. */
static double kept_share(const wina_rule_model *m, const wina_rules *r) {
    double part = 0, all = 0;
    for (int i = 0; i < LAYERS * GROUPS; i++)
        for (int p = 0; p < m->groups[i].n_projections; p++) {
            int mask = r->n_masks[i % GROUPS] > 1 ? p : 0;
            const wina_rule *rule = wina_rules_get(r, i / GROUPS, i % GROUPS, mask);
            part += (double)m->groups[i].bits[p] * rule->n_keep / N;
            all += (double)m->groups[i].bits[p];
        }
    return part / all;
}

static void test_fit(void) {
    const uint64_t bits[4] = {100, 300, 200, 400};
    for (int i = 1; i < 100; i++) {
        float kept[4] = {0.9f, 0.3f, 0.5f, 0.01f};
        double share = wina_budget_fit(kept, bits, 4, i / 100.0);
        CHECK_MSG(fabs(share - i / 100.0) < 1e-6, "share %g, not %g", share, i / 100.0);
        CHECK(kept[0] > kept[2] && kept[2] > kept[1] && kept[1] > kept[3]);
    }
    float dense[2] = {1.0f, 0.5f};
    CHECK(fabs(wina_budget_fit(dense, bits, 2, 0.5) - 0.5) < 1e-6); /* the other one pays */
    CHECK(dense[0] == 1.0f && fabsf(dense[1] - 1.0f / 3) < 1e-6f);
    float all_dense[2] = {1.0f, 1.0f};
    CHECK(wina_budget_fit(all_dense, bits, 2, 0.5) == 1.0);

    CHECK(fabs(wina_budget_position(0.5, 0.25, 0.75) - 0.5) < 1e-12);
    CHECK(fabsf(wina_budget_blend(0.2f, 0.8f, 0.5) - 0.5f) < 1e-6f);
    CHECK(fabsf(wina_budget_blend(0.2f, 0.8f, 0.0) - 0.2f) < 1e-6f);
    CHECK(fabsf(wina_budget_blend(1.0f, 0.5f, 0.5) - 0.75f) < 1e-6f);
}

static void test_equal_bytes(const wina_rule_model *m) {
    static const int32_t masks[2] = {WINA_MASK_GROUP, WINA_MASK_PROJECTION};
    for (int32_t budget = WINA_BUDGET_AUTO; budget <= WINA_BUDGET_CALIBRATED; budget++)
        for (int k = 0; k < 2; k++)
            for (int i = 1; i < 20; i++) {
                wina_sparsity s;
                wina_sparsity_init(&s);
                s.sparsity = (float)i / 20;
                s.budget = budget;
                s.mask = masks[k];
                wina_rules r;
                CHECK(wina_rules_create(m, &s, &r) == WINA_OK);
                double off = kept_share(m, &r) - (1 - (double)s.sparsity);
                CHECK_MSG(fabs(off) < 0.001, "budget %d, mask %d: %+g off", budget, k, off);
                CHECK(r.sparse && r.n_masks[0] == (k ? 3 : 1) && r.n_masks[1] == 1);
                wina_rules_free(&r);
            }
}

static void test_methods(const wina_rule_model *m) {
    wina_sparsity s;
    wina_rules r;
    wina_sparsity_init(&s);
    CHECK(wina_rules_create(m, &s, &r) == WINA_OK && !r.sparse);
    CHECK(wina_rules_get(&r, 1, 2, 0)->n_keep == N);
    wina_rules_free(&r);

    s.sparsity = 0.5f;
    s.method = WINA_METHOD_TEAL;
    CHECK(wina_rules_create(m, &s, &r) == WINA_OK && r.sparse);
    for (int g = 0; g < GROUPS; g++) /* uniform and without norms unless it is asked for */
        CHECK(wina_rules_get(&r, 2, g, 0)->n_keep == N / 2 && !wina_rules_get(&r, 2, g, 0)->norms);
    wina_rules_free(&r);

    s.method = WINA_METHOD_WINA;
    s.norms = WINA_NORMS_L2;
    s.exponent = 0.5f;
    CHECK(wina_rules_create(m, &s, &r) == WINA_OK);
    for (int g = 0; g < GROUPS; g++)
        CHECK(fabsf(wina_rules_get(&r, 2, g, 0)->norms[7] - sqrtf(norms[7])) < 1e-6f);
    wina_rules_free(&r);

    /* 12 weights of which up and down are 3/10; half of them is 15% of all. */
    s.method = WINA_METHOD_CATS;
    s.sparsity = 0.15f;
    CHECK(wina_rules_create(m, &s, &r) == WINA_OK);
    CHECK(wina_rules_get(&r, 0, WINA_GROUP_GATE_UP, 0)->n_keep == N);
    const wina_rule *down = wina_rules_get(&r, 0, WINA_GROUP_DOWN, 0);
    CHECK(down->from_gate);
    double gated = (16 + 8.0) / (3 * 8 + 8 + 2 * 16 + 8);
    CHECK(abs(down->n_keep - (int32_t)(N * (1 - 0.15 / gated))) <= 1);
    wina_rules_free(&r);
    s.sparsity = 0.4f;
    CHECK(wina_rules_create(m, &s, &r) == WINA_E_ARGUMENT && strstr(wina_error(), "cats"));
}

static void test_calibrated(wina_rule_model *m) {
    wina_sparsity s;
    wina_rules r;
    wina_sparsity_init(&s);
    s.sparsity = 0.5f;
    s.selection = WINA_SELECT_THRESHOLD;
    CHECK(wina_rules_create(m, &s, &r) == WINA_OK);
    CHECK(fabsf(wina_rules_get(&r, 2, 1, 0)->threshold - 2.25f) < 1e-6f); /* between the two */
    CHECK(wina_rules_get(&r, 0, 0, 0)->norms == m->tuning->norms[0]);
    CHECK(wina_rules_get(&r, 2, 1, 0)->norms == m->tuning->norms[1] + 2 * N);
    wina_rules_free(&r);
    s.sparsity = 0.3f; /* on the way from nothing to the first target */
    CHECK(wina_rules_create(m, &s, &r) == WINA_OK);
    CHECK(fabsf(wina_rules_get(&r, 2, 1, 0)->threshold - 1.5f * 0.3f / 0.4f) < 1e-6f);
    wina_rules_free(&r);
    s.sparsity = 0.7f;
    CHECK(wina_rules_create(m, &s, &r) == WINA_E_ARGUMENT);
    s.sparsity = 0.5f;
    s.mask = WINA_MASK_PROJECTION;
    CHECK(wina_rules_create(m, &s, &r) == WINA_E_ARGUMENT);
    const wina_tuning *tuning = m->tuning;
    m->tuning = NULL;
    wina_sparsity_init(&s);
    s.budget = WINA_BUDGET_CALIBRATED;
    CHECK(wina_rules_create(m, &s, &r) == WINA_E_ARGUMENT);
    s.budget = WINA_BUDGET_AUTO;
    s.norms = WINA_NORMS_CALIBRATED;
    CHECK(wina_rules_create(m, &s, &r) == WINA_E_ARGUMENT);
    m->tuning = tuning;
    for (int i = 0; i < 5; i++) {
        wina_sparsity_init(&s);
        int32_t *field[5] = {&s.method, &s.mask, &s.budget, &s.norms, &s.selection};
        *field[i] = 9;
        CHECK(wina_rules_create(m, &s, &r) == WINA_E_ARGUMENT);
    }
}

int main(void) {
    wina_rule_group groups[LAYERS * GROUPS];
    static float calibrated[LAYERS * N], kept[2 * LAYERS * GROUPS], thresholds[2 * LAYERS * GROUPS];
    const float targets[2] = {0.4f, 0.6f};
    for (int i = 0; i < N; i++)
        norms[i] = 1 + (float)(i % 13);
    for (int i = 0; i < 2 * LAYERS * GROUPS; i++) {
        kept[i] = 0.2f + 0.05f * (float)(i % 11);
        thresholds[i] = i < LAYERS * GROUPS ? 1.5f : 3.0f;
    }
    make_groups(groups);
    wina_tuning tuning = {.n_targets = 2,
                          .targets = targets,
                          .kept = kept,
                          .thresholds = thresholds,
                          .exponents = {1, 1, 1, 1}};
    for (int g = 0; g < GROUPS; g++)
        tuning.norms[g] = calibrated;
    wina_rule_model m = {.n_layer = LAYERS, .groups = groups, .tuning = &tuning};
    test_fit();
    test_equal_bytes(&m);
    test_methods(&m);
    test_calibrated(&m);
    return check_report("rule");
}

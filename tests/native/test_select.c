/* Exact selection against sorting; norms; budgets. */
#include <math.h>
#include <stdlib.h>

#include "check.h"
#include "sparse/budget.h"
#include "sparse/norms.h"
#include "sparse/select.h"

typedef struct item {
    float score;
    int32_t index;
} item;

static int by_score(const void *a, const void *b) {
    const item *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

static int by_index(const void *a, const void *b) {
    const item *x = a, *y = b;
    return x->index < y->index ? -1 : 1;
}

/* kind 0: random; 1: many ties; 2: few huge; 3: all equal; 4: subnormal; 5: nearly equal */
static float make_score(int kind, unsigned long long *seed) {
    float u = (float)(check_random(seed) >> 40) / (1 << 24);
    switch (kind) {
    case 0:
        return u;
    case 1:
        return (float)(check_random(seed) % 5);
    case 2:
        return check_random(seed) % 10 ? u * 1e-20f : u * 1e20f;
    case 3:
        return 0.0f;
    case 4:
        return u * 1e-40f;
    default:
        return 1.0f + (float)(check_random(seed) % 7) * 1.1920929e-7f;
    }
}

static void test_select(int32_t n, int32_t n_keep, int kind, unsigned long long *seed) {
    item *items = malloc((size_t)n * sizeof *items);
    float *score = malloc((size_t)n * sizeof *score);
    int32_t *kept = malloc((size_t)n * sizeof *kept);
    uint32_t *scratch = malloc((size_t)n * sizeof *scratch);
    for (int32_t i = 0; i < n; i++)
        items[i] = (item){score[i] = make_score(kind, seed), i};
    wina_select(score, n, n_keep, kept, scratch);
    qsort(items, (size_t)n, sizeof *items, by_score);
    qsort(items, (size_t)n_keep, sizeof *items, by_index);
    int n_wrong = 0;
    for (int32_t i = 0; i < n_keep; i++)
        n_wrong += kept[i] != items[i].index;
    CHECK_MSG(n_wrong == 0, "n %d, keep %d, kind %d: %d wrong", n, n_keep, kind, n_wrong);
    free(items), free(score), free(kept), free(scratch);
}

int main(void) {
    unsigned long long seed = 42;
    static const int32_t sizes[] = {1, 2, 31, 64, 576, 1000, 4864};
    for (int s = 0; s < 7; s++)
        for (int kind = 0; kind < 6; kind++) {
            int32_t n = sizes[s];
            test_select(n, 1, kind, &seed);
            test_select(n, n, kind, &seed);
            test_select(n, (n + 1) / 2, kind, &seed);
            for (int i = 0; i < 10; i++)
                test_select(n, 1 + (int32_t)(check_random(&seed) % (unsigned)n), kind, &seed);
        }

    CHECK(wina_budget_count(1.0, 576) == 576);
    CHECK(wina_budget_count(0.5, 576) == 288);
    CHECK(wina_budget_count(0.5, 3) == 2); /* 1.5 rounds up */
    CHECK(wina_budget_count(0.001, 10) == 1);
    CHECK(wina_budget_count(1.0 - (double)0.4f, 1000) == 600);

    int32_t kept[4];
    const float four[4] = {0.5f, 3.0f, 2.0f, 3.0f};
    CHECK(wina_select_from(four, 4, 2.0f, kept) == 3);
    CHECK(kept[0] == 1 && kept[1] == 2 && kept[2] == 3);
    CHECK(wina_select_from(four, 4, 9.0f, kept) == 1 && kept[0] == 1); /* never nothing */

    float x[3] = {-2.0f, 0.5f, 0.0f}, norms[3] = {1.0f, 8.0f, 100.0f}, score[3];
    wina_score(x, norms, 3, score);
    CHECK(score[0] == 2.0f && score[1] == 4.0f && score[2] == 0.0f);
    wina_score_gate(x, 3, score);
    CHECK(fabsf(score[0] - 0.23840584f) < 1e-6f && fabsf(score[1] - 0.31122967f) < 1e-6f);
    CHECK(score[2] == 0.0f);
    wina_score(x, NULL, 3, score);
    CHECK(score[0] == 2.0f && score[1] == 0.5f && score[2] == 0.0f);

    double sums[2] = {0};
    float row1[2] = {3.0f, -1.0f}, row2[2] = {4.0f, 1.0f}, out[2];
    wina_norms_add_row(sums, row1, 2);
    wina_norms_add_row(sums, row2, 2);
    wina_norms_finish(sums, out, 2);
    CHECK(out[0] == 5.0f && fabsf(out[1] - 1.41421356f) < 1e-6f);
    return check_report("select");
}

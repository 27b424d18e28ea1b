/* Samplers draw from the distribution they promise. Expected probabilities are computed here. */
#include <math.h>

#include "check.h"
#include "wina.h"

enum { N = 6, DRAWS = 40000 };
static const float LOGITS[N] = {1.0f, 3.0f, 2.5f, -1.0f, 0.0f, 2.0f};

static wina_sampler_params plain(void) {
    wina_sampler_params p;
    wina_sampler_params_init(&p);
    p.temperature = 1.0f, p.top_k = 0, p.top_p = 1.0f, p.min_p = 0.0f, p.seed = 11;
    return p;
}

/* Frequencies of DRAWS tokens lie within five standard deviations of the softmax over the tokens
 * that `allowed` names. */
static void expect(const char *what, wina_sampler_params p, const char *allowed,
                   float temperature) {
    wina_sampler *s;
    int counts[N] = {0};
    double want[N] = {0}, total = 0;
    CHECK(wina_sampler_create(&p, &s) == WINA_OK);
    for (int i = 0; i < N; i++)
        total += want[i] = allowed[i] == '1' ? exp((double)LOGITS[i] / (double)temperature) : 0;
    for (int i = 0; i < DRAWS; i++) {
        int32_t token = -1;
        if (wina_sampler_sample(s, LOGITS, N, &token) == WINA_OK && token >= 0 && token < N)
            counts[token]++;
    }
    for (int i = 0; i < N; i++) {
        double f = want[i] / total, sd = sqrt(f * (1 - f) / DRAWS);
        double got = (double)counts[i] / DRAWS;
        CHECK_MSG(fabs(got - f) <= 5 * sd, "%s: token %d drawn %.4f, expected %.4f", what, i, got,
                  f);
    }
    wina_sampler_free(s);
}

static int32_t sample_once(wina_sampler_params p, const int32_t *history, int n) {
    wina_sampler *s;
    int32_t token = -1;
    CHECK(wina_sampler_create(&p, &s) == WINA_OK);
    for (int i = 0; i < n; i++)
        CHECK(wina_sampler_accept(s, history[i]) == WINA_OK);
    CHECK(wina_sampler_sample(s, LOGITS, N, &token) == WINA_OK);
    wina_sampler_free(s);
    return token;
}

static void test_penalties(void) {
    wina_sampler_params p = plain();
    p.temperature = 0;
    const int32_t history[] = {1, 1, 2, 0, 0};
    CHECK(sample_once(p, history, 5) == 1);
    p.repeat_penalty = 2.0f; /* 1: 1.5, 2: 1.25, 0: 0.5; 5 keeps 2.0 */
    CHECK(sample_once(p, history, 5) == 5);
    p.repeat_last_n = 2; /* only token 0 */
    CHECK(sample_once(p, history, 5) == 1);
    p.repeat_last_n = 0;
    CHECK(sample_once(p, history, 5) == 1);
    p = plain();
    p.temperature = 0, p.presence_penalty = 0.6f; /* 1: 2.4, 2: 1.9 */
    CHECK(sample_once(p, history, 5) == 1);
    p.frequency_penalty = 0.3f; /* 1: 1.8, 2: 1.6 */
    CHECK(sample_once(p, history, 5) == 5);
}

static void expect_refused(wina_sampler_params p, const char *name) {
    wina_sampler *s;
    CHECK(wina_sampler_create(&p, &s) == WINA_E_ARGUMENT && s == NULL);
    CHECK_MSG(strstr(wina_error(), name) != NULL, "\"%s\" does not name %s", wina_error(), name);
}

int main(void) {
    wina_sampler_params p = plain();
    expect("temperature 1", p, "111111", 1.0f);
    p.temperature = 0.5f;
    expect("temperature 0.5", p, "111111", 0.5f);
    p = plain(), p.top_k = 3;
    expect("top_k 3", p, "011001", 1.0f);
    p = plain(), p.top_p = 0.7f; /* 0.454, 0.275: 0.729 reaches it */
    expect("top_p 0.7", p, "011000", 1.0f);
    p = plain(), p.top_p = 0.0f;
    expect("top_p 0", p, "010000", 1.0f);
    p = plain(), p.min_p = 0.3f; /* exp(-1) = 0.37, exp(-2) = 0.14 */
    expect("min_p 0.3", p, "011001", 1.0f);
    p = plain(), p.top_k = 3, p.top_p = 0.8f,
    p.temperature = 2.0f; /* of three: 0.506 0.307 0.186 */
    expect("chain", p, "011000", 2.0f);
    test_penalties();

    p = plain(), p.temperature = 0;
    float ties[4] = {1, 5, 5, 5}, broken[3] = {0, NAN, 1}, endless[2] = {0, INFINITY};
    float nothing[2] = {-INFINITY, -INFINITY};
    int32_t a = -1, b = -1;
    wina_sampler *s, *t;
    CHECK(wina_sampler_create(&p, &s) == WINA_OK);
    CHECK(wina_sampler_sample(s, ties, 4, &a) == WINA_OK && a == 1);
    CHECK(wina_sampler_sample(s, broken, 3, &a) == WINA_E_NUMERIC);
    CHECK(wina_sampler_sample(s, endless, 2, &a) == WINA_E_NUMERIC);
    CHECK(wina_sampler_sample(s, nothing, 2, &a) == WINA_E_NUMERIC);
    wina_sampler_free(s);

    p = plain(); /* the same seed draws the same tokens */
    CHECK(wina_sampler_create(&p, &s) == WINA_OK && wina_sampler_create(&p, &t) == WINA_OK);
    int n_different = 0;
    for (int i = 0; i < 200; i++) {
        wina_sampler_sample(s, LOGITS, N, &a);
        wina_sampler_sample(t, LOGITS, N, &b);
        n_different += a != b;
    }
    CHECK(n_different == 0 && wina_sampler_seed(s) == 11);
    wina_sampler_free(s), wina_sampler_free(t);

    p = plain(), p.temperature = -1;
    expect_refused(p, "temperature");
    p = plain(), p.top_p = 1.5f;
    expect_refused(p, "top_p");
    p = plain(), p.min_p = NAN;
    expect_refused(p, "min_p");
    p = plain(), p.repeat_penalty = 0;
    expect_refused(p, "repeat_penalty");
    p = plain(), p.presence_penalty = INFINITY;
    expect_refused(p, "presence_penalty");
    return check_report("sampler");
}

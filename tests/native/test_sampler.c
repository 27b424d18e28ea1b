/* Samplers draw from the distribution they promise. Expected probabilities are computed here. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "check.h"
#include "sampler.h"
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

/* Penalties beyond all reason give some token, not a NaN among the candidates. */
static void test_wild_penalties(void) {
    static const float wild[] = {1e-38f, 1e-45f, 1, FLT_MAX, -FLT_MAX};
    const float logits[8] = {1, -2, -INFINITY, 100, 5, FLT_MAX, -FLT_MAX, 0};
    for (int i = 0; i < 5 * 5 * 5; i++) {
        wina_sampler_params p = plain();
        p.repeat_penalty = fabsf(wild[i % 5]), p.frequency_penalty = wild[i / 5 % 5];
        p.presence_penalty = wild[i / 25], p.top_k = i % 2 ? 3 : 0, p.top_p = i % 3 ? 0.9f : 1;
        wina_sampler *s;
        CHECK(wina_sampler_create(&p, &s) == WINA_OK);
        for (int32_t t = 0; t < 32; t++)
            CHECK(wina_sampler_accept(s, t % 8 * (t > 8)) == WINA_OK);
        CHECK(wina_sampler_accept(s, -7) == WINA_OK && wina_sampler_accept(s, 99) == WINA_OK);
        for (int j = 0; j < 20; j++) {
            int32_t token = -1;
            CHECK(wina_sampler_sample(s, logits, 8, &token) == WINA_OK);
            CHECK_MSG(token >= 0 && token < 8 && token != 2, "set %d: token %d", i, token);
        }
        wina_sampler_free(s);
    }
}

/* ---- a large vocabulary ------------------------------------------------------------------- */

enum { WIDE = 600, WIDE_DRAWS = 8000 };
static float wide[WIDE];

static int by_wide_logit(const void *a, const void *b) {
    int x = *(const int *)a, y = *(const int *)b;
    return wide[x] != wide[y] ? (wide[x] > wide[y] ? -1 : 1) : x - y;
}

/* Probabilities as the definitions say, from the whole vocabulary sorted. */
static void expect_wide(const wina_sampler_params *p, double *want) {
    int order[WIDE], n = p->top_k > 0 && p->top_k < WIDE ? p->top_k : WIDE;
    double total = 0, sum = 0;
    for (int i = 0; i < WIDE; i++)
        order[i] = i, want[i] = 0;
    qsort(order, WIDE, sizeof *order, by_wide_logit);
    for (int i = 0; i < n; i++)
        total += exp((double)wide[order[i]]);
    if (p->top_p < 1)
        for (int i = 0, m = n; i < m; i++) {
            n = i + 1;
            sum += exp((double)wide[order[i]]);
            if (sum >= (double)p->top_p * total)
                break;
        }
    const double best = exp((double)wide[order[0]]);
    while (n > 1 && exp((double)wide[order[n - 1]]) < (double)p->min_p * best)
        n--;
    total = 0;
    for (int i = 0; i < n; i++)
        total += exp((double)wide[order[i]] / (double)p->temperature);
    for (int i = 0; i < n; i++)
        want[order[i]] = exp((double)wide[order[i]] / (double)p->temperature) / total;
}

/* Nothing is drawn that should not be; chi-square of the rest, rare tokens pooled, is within five
 * standard deviations of its mean. */
static void test_wide(int32_t top_k, float top_p, float min_p, float temperature) {
    static double want[WIDE];
    static int counts[WIDE];
    wina_sampler_params p = plain();
    p.top_k = top_k, p.top_p = top_p, p.min_p = min_p, p.temperature = temperature;
    expect_wide(&p, want);
    memset(counts, 0, sizeof counts);
    wina_sampler *s;
    CHECK(wina_sampler_create(&p, &s) == WINA_OK);
    for (int i = 0; i < WIDE_DRAWS; i++) {
        int32_t token = 0;
        if (wina_sampler_sample(s, wide, WIDE, &token) == WINA_OK)
            counts[token]++;
    }
    wina_sampler_free(s);
    double chi = 0, rare = 0;
    int n_cells = 0, n_rare = 0, n_wrong = 0, n_drawn = 0;
    for (int i = 0; i < WIDE; i++) {
        const double e = want[i] * WIDE_DRAWS;
        n_wrong += e == 0 && counts[i] > 0;
        n_drawn += counts[i];
        if (e < 10)
            rare += e, n_rare += counts[i];
        else
            chi += (counts[i] - e) * (counts[i] - e) / e, n_cells++;
    }
    if (rare >= 10)
        chi += (n_rare - rare) * (n_rare - rare) / rare, n_cells++;
    CHECK_MSG(n_wrong == 0 && n_drawn == WIDE_DRAWS && chi <= n_cells + 5 * sqrt(2.0 * n_cells),
              "top_k %d top_p %g min_p %g temperature %g: %d tokens ruled out were drawn, "
              "chi-square %.1f of %d cells",
              top_k, (double)top_p, (double)min_p, (double)temperature, n_wrong, chi, n_cells);
}

static void test_large_vocabulary(void) {
    unsigned long long seed = 5;
    for (int i = 0; i < WIDE; i++) /* ties, and every 50th impossible */
        wide[i] = i % 50 == 7 ? -INFINITY : (float)(check_random(&seed) >> 48) / 8192.0f - 4;
    static const int32_t ks[] = {0, 1, 2, 40, 201, WIDE - 1, WIDE + 1};
    for (int i = 0; i < 7; i++) {
        test_wide(ks[i], 1, 0, 1);
        test_wide(ks[i], 0.6f, 0, 0.7f);
        test_wide(ks[i], 1, 0.2f, 1.5f);
        test_wide(ks[i], 0.999f, 0.01f, 1);
    }
    test_wide(0, 1, 1, 1);
}

/* ---- the generator ------------------------------------------------------------------------ */

static unsigned long long rotated(unsigned long long x, int k) {
    return x << k | x >> (64 - k);
}

/* xoshiro256**, written down again. */
static unsigned long long next_random(unsigned long long s[4]) {
    const unsigned long long result = rotated(s[1] * 5, 7) * 9, t = s[1] << 17;
    s[2] ^= s[0], s[3] ^= s[1], s[1] ^= s[2], s[0] ^= s[3], s[2] ^= t;
    s[3] = rotated(s[3], 45);
    return result;
}

static unsigned long long next_split(unsigned long long *state) {
    unsigned long long z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* The same draws on every machine: with equal logits a token is the random number, scaled. */
static void test_generator(void) {
    unsigned long long known[4] = {1, 2, 3, 4}, split = 1234567, state[4];
    CHECK(next_random(known) == 11520 && next_random(known) == 0 &&
          next_random(known) == 1509978240 && next_random(known) == 1215971899390074240);
    CHECK(next_split(&split) == 6457827717110365317u && next_split(&split) == 3203168211198807973u);
    float equal[1000] = {0};
    wina_sampler_params p = plain();
    p.seed = 77;
    split = 77;
    for (int i = 0; i < 4; i++)
        state[i] = next_split(&split);
    wina_sampler *s;
    CHECK(wina_sampler_create(&p, &s) == WINA_OK);
    for (int i = 0; i < 300; i++) {
        int32_t token = -1, want = (int32_t)((double)(next_random(state) >> 11) * 0x1p-53 * 1000);
        CHECK(wina_sampler_sample(s, equal, 1000, &token) == WINA_OK && token == want);
    }
    wina_sampler_free(s);
}

static void expect_refused(wina_sampler_params p, const char *name) {
    wina_sampler *s;
    CHECK(wina_sampler_create(&p, &s) == WINA_E_ARGUMENT && s == NULL);
    CHECK_MSG(strstr(wina_error(), name) != NULL, "\"%s\" does not name %s", wina_error(), name);
}

/* The best few logits choose what all of them would, for the same seed, or say that they cannot:
 * random ways to sample, logits with many equal ones, a history, banned tokens. */
static void test_best_few(void) {
    enum { MANY = 400, N_ROUNDS = 600, N_STEPS = 6 };
    unsigned long long state = 99;
    int n_told = 0, n_other = 0, n_wrong_count = 0;
    for (int round = 0; round < N_ROUNDS; round++) {
#define PICK(n) (int32_t)((check_random(&state) >> 33) % (unsigned)(n))
        wina_sampler_params p = plain();
        const wina_logit_bias bias[2] = {{PICK(MANY), -INFINITY}, {PICK(MANY), -1.5f}};
        p.seed = round;
        p.temperature = PICK(4) == 0 ? 0 : 0.5f * (float)(1 + PICK(4));
        p.top_k = PICK(4) == 0 ? 0 : PICK(5) == 0 ? PICK(MANY + 2) : 1 + PICK(60);
        p.top_p = PICK(2) ? 1 : 0.1f * (float)PICK(11);
        p.min_p = PICK(2) ? 0 : 0.02f * (float)PICK(10);
        p.typical_p = PICK(4) ? 1 : 0.8f;
        p.xtc_probability = PICK(4) ? 0 : 0.5f;
        p.dynatemp_range = PICK(4) ? 0 : 0.4f;
        p.repeat_penalty = PICK(3) ? 1 : 0.9f + 0.2f * (float)PICK(4);
        p.presence_penalty = PICK(3) ? 0 : 0.5f * (float)(PICK(4) - 1);
        p.frequency_penalty = PICK(3) ? 0 : 0.3f;
        p.dry_multiplier = PICK(4) ? 0 : 0.8f;
        p.top_n_sigma = PICK(8) ? -1 : 2;
        p.mirostat = PICK(8) ? 0 : 1 + PICK(2);
        p.logit_bias = bias;
        p.n_logit_bias = PICK(3) ? 0 : 2;
        const int32_t n_vocab = PICK(3) ? MANY : 1 + PICK(150);
        const int32_t n_best = n_vocab < WINA_MOST_BEST ? n_vocab : WINA_MOST_BEST;
        const int32_t steps = PICK(2) ? 1 << 20 : 12; /* few: many are equal */
        wina_sampler *a = NULL, *b = NULL;
        CHECK(wina_sampler_create(&p, &a) == WINA_OK && wina_sampler_create(&p, &b) == WINA_OK);
        for (int step = 0; step < N_STEPS; step++) {
            float logits[MANY];
            wina_candidate sorted[MANY];
            int32_t few = -1, all = -1;
            for (int32_t i = 0; i < n_vocab; i++) {
                logits[i] = (float)PICK(steps) * (8.0f / (float)steps) - 3;
                sorted[i] = (wina_candidate){logits[i], i};
            }
            wina_candidates_sort(sorted, n_vocab);
            wina_best best = {.n = n_best};
            memcpy(best.all, sorted, (size_t)n_best * sizeof *sorted);
            for (int32_t i = n_vocab; i-- > 0;)
                best.weight += exp((double)logits[i] - (double)best.all[0].logit);
            CHECK(wina_sampler_sample_best(a, &best, n_vocab, &few) == WINA_OK);
            n_told += few >= 0;
            const int32_t status = wina_sampler_sample(b, logits, n_vocab, &all);
            if (few < 0)
                n_wrong_count += wina_sampler_sample(a, logits, n_vocab, &few) != status;
            n_other += few != all;
            wina_sampler_accept(a, all), wina_sampler_accept(b, all);
        }
        wina_sampler_free(a), wina_sampler_free(b);
#undef PICK
    }
    CHECK_MSG(n_other == 0 && n_wrong_count == 0, "%d other tokens, %d other errors", n_other,
              n_wrong_count);
    CHECK_MSG(n_told > N_ROUNDS * N_STEPS / 3, "%d of %d told", n_told, N_ROUNDS * N_STEPS);
}

/* Those that decide are told apart from those that do not. */
static void test_best_few_limits(void) {
    float logits[200];
    wina_best best = {.n = WINA_MOST_BEST};
    for (int32_t i = 0; i < 200; i++)
        logits[i] = (float)(200 - i) / 100;
    for (int32_t i = 0; i < WINA_MOST_BEST; i++)
        best.all[i] = (wina_candidate){logits[i], i};
    wina_sampler_params p = plain();
    p.top_k = 100, p.top_p = 1;
    for (int k = 0; k < 4; k++) {
        wina_sampler *s = NULL;
        int32_t token = -2;
        p.top_k = k == 1 ? 129 : 100;
        p.presence_penalty = k == 2 ? 5 : k == 3 ? -1 : 0; /* k 2: the first 29 leave the best */
        CHECK(wina_sampler_create(&p, &s) == WINA_OK);
        for (int32_t i = 0; i < 29; i++)
            wina_sampler_accept(s, i);
        CHECK(wina_sampler_sample_best(s, &best, 200, &token) == WINA_OK);
        CHECK_MSG((token >= 0) == (k == 0), "case %d: token %d", k, token);
        wina_sampler_free(s);
    }
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
    test_wild_penalties();
    test_large_vocabulary();
    test_generator();
    test_best_few();
    test_best_few_limits();

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

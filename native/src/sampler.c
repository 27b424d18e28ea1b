#include "sampler.h"

#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "candidates.h"
#include "mem.h"
#include "status.h"

typedef wina_candidate candidate;

struct wina_sampler {
    wina_sampler_params params;
    int64_t seed;
    uint64_t state[4]; /* xoshiro256** */
    int32_t *history;  /* accepted tokens, oldest first */
    uint64_t n_history, history_capacity;
    candidate *candidates;
    uint64_t candidates_capacity;
    int32_t *breakers; /* sorted */
    wina_logit_bias *bias;
    double mu; /* of mirostat: the surprise allowed next, in bits */
};

void wina_sampler_params_init(wina_sampler_params *p) {
    *p = (wina_sampler_params){.temperature = 0.8f,
                               .top_k = 40,
                               .top_p = 0.95f,
                               .min_p = 0.05f,
                               .repeat_last_n = 64,
                               .repeat_penalty = 1.0f,
                               .seed = -1,
                               .typical_p = 1.0f,
                               .top_n_sigma = -1.0f,
                               .xtc_threshold = 0.1f,
                               .dynatemp_exponent = 1.0f,
                               .dry_base = 1.75f,
                               .dry_allowed_length = 2,
                               .dry_penalty_last_n = -1,
                               .mirostat_tau = 5.0f,
                               .mirostat_eta = 0.1f};
}

static int32_t refuse(const char *name, double value, const char *want) {
    return wina_fail(WINA_E_ARGUMENT, "%s is %g, must be %s", name, value, want);
}

/* Ranges of the numbers, ends included. */
typedef struct range {
    const char *name;
    float value, low, high;
    const char *want;
} range;

int32_t wina_sampler_check(const wina_sampler_params *p) {
    const range ranges[] = {
        {"temperature", p->temperature, 0, FLT_MAX, "0 or more"},
        {"top_p", p->top_p, 0, 1, "in [0, 1]"},
        {"min_p", p->min_p, 0, 1, "in [0, 1]"},
        {"typical_p", p->typical_p, 0, 1, "in [0, 1]"},
        {"repeat_penalty", p->repeat_penalty, FLT_TRUE_MIN, FLT_MAX, "more than 0"},
        {"presence_penalty", p->presence_penalty, -FLT_MAX, FLT_MAX, "finite"},
        {"frequency_penalty", p->frequency_penalty, -FLT_MAX, FLT_MAX, "finite"},
        {"top_n_sigma", p->top_n_sigma, -FLT_MAX, FLT_MAX, "finite"},
        {"xtc_probability", p->xtc_probability, 0, 1, "in [0, 1]"},
        {"xtc_threshold", p->xtc_threshold, 0, 1, "in [0, 1]"},
        {"dynatemp_range", p->dynatemp_range, 0, FLT_MAX, "0 or more"},
        {"dynatemp_exponent", p->dynatemp_exponent, 0, FLT_MAX, "0 or more"},
        {"dry_multiplier", p->dry_multiplier, 0, FLT_MAX, "0 or more"},
        {"dry_base", p->dry_base, 0, FLT_MAX, "0 or more"},
        {"mirostat_tau", p->mirostat_tau, 0, FLT_MAX, "0 or more"},
        {"mirostat_eta", p->mirostat_eta, 0, FLT_MAX, "0 or more"},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++)
        if (!(ranges[i].value >= ranges[i].low && ranges[i].value <= ranges[i].high))
            return refuse(ranges[i].name, (double)ranges[i].value, ranges[i].want);
    if (p->repeat_last_n < -1)
        return refuse("repeat_last_n", p->repeat_last_n, "-1 or more");
    if (p->dry_allowed_length < 1)
        return refuse("dry_allowed_length", p->dry_allowed_length, "1 or more");
    if (p->dry_penalty_last_n < -1)
        return refuse("dry_penalty_last_n", p->dry_penalty_last_n, "-1 or more");
    if (p->mirostat < 0 || p->mirostat > 2)
        return refuse("mirostat", p->mirostat, "0, 1 or 2");
    if (p->n_dry_breakers < 0 || p->n_logit_bias < 0)
        return wina_fail(WINA_E_ARGUMENT, "a number of dry_breakers or logit_bias is below 0");
    for (int32_t i = 0; i < p->n_logit_bias; i++)
        if (!(p->logit_bias[i].bias < INFINITY))
            return refuse("logit_bias", (double)p->logit_bias[i].bias, "below +infinity");
    return WINA_OK;
}

/* ---- random numbers ----------------------------------------------------------------------- */

static uint64_t splitmix(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static uint64_t rotate(uint64_t x, int k) {
    return x << k | x >> (64 - k);
}

/* Uniform in [0, 1), 53 bits. */
static double draw(wina_sampler *s) {
    uint64_t *v = s->state, result = rotate(v[1] * 5, 7) * 9, t = v[1] << 17;
    v[2] ^= v[0], v[3] ^= v[1], v[1] ^= v[2], v[0] ^= v[3];
    v[2] ^= t;
    v[3] = rotate(v[3], 45);
    return (double)(result >> 11) * 0x1p-53;
}

static int64_t random_seed(void) {
    uint32_t seed;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != sizeof seed) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        seed = (uint32_t)t.tv_nsec ^ (uint32_t)t.tv_sec;
    }
    return seed;
}

static int by_token(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* The caller's arrays end with the call. */
static int32_t copy_arrays(wina_sampler *s) {
    wina_sampler_params *p = &s->params;
    if (p->n_dry_breakers > 0) {
        WINA_TRY(wina_mem_create((uint64_t)p->n_dry_breakers, sizeof *s->breakers, "dry breakers",
                                 &s->breakers));
        memcpy(s->breakers, p->dry_breakers, (size_t)p->n_dry_breakers * sizeof *s->breakers);
        qsort(s->breakers, (size_t)p->n_dry_breakers, sizeof *s->breakers, by_token);
    }
    if (p->n_logit_bias > 0) {
        WINA_TRY(
            wina_mem_create((uint64_t)p->n_logit_bias, sizeof *s->bias, "logit bias", &s->bias));
        memcpy(s->bias, p->logit_bias, (size_t)p->n_logit_bias * sizeof *s->bias);
    }
    p->dry_breakers = s->breakers;
    p->logit_bias = s->bias;
    return WINA_OK;
}

int32_t wina_sampler_create(const wina_sampler_params *params, wina_sampler **out) {
    *out = NULL;
    wina_sampler_params p;
    wina_sampler_params_init(&p);
    if (params)
        p = *params;
    WINA_TRY(wina_sampler_check(&p));
    wina_sampler *s = NULL;
    WINA_TRY(wina_mem_create(1, sizeof *s, "sampler", &s));
    s->params = p;
    int32_t status = copy_arrays(s);
    if (status != WINA_OK) {
        wina_sampler_free(s);
        return status;
    }
    s->seed = p.seed < 0 ? random_seed() : p.seed;
    s->mu = 2 * (double)p.mirostat_tau;
    uint64_t state = (uint64_t)s->seed;
    for (int i = 0; i < 4; i++)
        s->state[i] = splitmix(&state);
    *out = s;
    return WINA_OK;
}

void wina_sampler_free(wina_sampler *s) {
    if (!s)
        return;
    free(s->history);
    free(s->candidates);
    free(s->breakers);
    free(s->bias);
    free(s);
}

int64_t wina_sampler_seed(const wina_sampler *s) {
    return s->seed;
}

int32_t wina_sampler_accept(wina_sampler *s, int32_t token) {
    WINA_TRY(wina_mem_grow(&s->history, &s->history_capacity, s->n_history + 1, sizeof *s->history,
                           "sampler history"));
    s->history[s->n_history++] = token;
    return WINA_OK;
}

/* ---- logits: candidates are all tokens in order, or the best few ----------------------------- */

/* Where a token is among n candidates, or NULL. */
static candidate *find(wina_sampler *s, int64_t n, int32_t token) {
    candidate *c = s->candidates;
    if (token < 0)
        return NULL;
    if (token < n && c[token].token == token)
        return &c[token];
    for (int64_t i = 0; i < n; i++)
        if (c[i].token == token)
            return &c[i];
    return NULL;
}

static void add_bias(wina_sampler *s, int64_t n, int32_t n_vocab) {
    for (int32_t i = 0; i < s->params.n_logit_bias; i++) {
        candidate *c = s->bias[i].token < n_vocab ? find(s, n, s->bias[i].token) : NULL;
        if (c)
            c->logit += s->bias[i].bias;
    }
}

/* Logits as candidates. */
static int32_t read_logits(wina_sampler *s, const float *logits, int32_t n_vocab) {
    WINA_TRY(wina_mem_grow(&s->candidates, &s->candidates_capacity, (uint64_t)n_vocab,
                           sizeof *s->candidates, "sampler candidates"));
    for (int32_t i = 0; i < n_vocab; i++) {
        if (!(logits[i] < INFINITY))
            return wina_fail(WINA_E_NUMERIC, "the logit of token %d is %g", i, (double)logits[i]);
        s->candidates[i] = (candidate){logits[i], i};
    }
    add_bias(s, n_vocab, n_vocab);
    for (int32_t i = 0; i < n_vocab; i++)
        if (s->candidates[i].logit > -INFINITY)
            return WINA_OK;
    return wina_fail(WINA_E_NUMERIC, "every logit is -infinity");
}

/* Subtracts in double, and leaves a float that is finite whatever the penalty is. */
static void lower(float *logit, double from, double by) {
    *logit = (float)fmin(fmax(from - by, -(double)FLT_MAX), (double)FLT_MAX);
}

/* Lowers those of n_candidates that occur among the last tokens. */
static int32_t penalize(wina_sampler *s, int64_t n_candidates, int32_t n_vocab) {
    const wina_sampler_params *p = &s->params;
    uint64_t n = p->repeat_last_n < 0 || (uint64_t)p->repeat_last_n > s->n_history
                     ? s->n_history
                     : (uint64_t)p->repeat_last_n;
    bool off = p->repeat_penalty == 1.0f && p->presence_penalty == 0 && p->frequency_penalty == 0;
    if (off || n == 0)
        return WINA_OK;
    int32_t *recent = NULL;
    WINA_TRY(wina_mem_create(n, sizeof *recent, "sampler history", &recent));
    memcpy(recent, s->history + s->n_history - n, n * sizeof *recent);
    qsort(recent, n, sizeof *recent, by_token);
    for (uint64_t i = 0, j; i < n; i = j) {
        for (j = i; j < n && recent[j] == recent[i];)
            j++;
        candidate *c = recent[i] < n_vocab ? find(s, n_candidates, recent[i]) : NULL;
        if (!c || c->logit == -INFINITY)
            continue;
        float *logit = &c->logit;
        double x = (double)*logit, repeat = (double)p->repeat_penalty;
        x = x > 0 ? x / repeat : x * repeat;
        lower(logit, x,
              (double)(j - i) * (double)p->frequency_penalty + (double)p->presence_penalty);
    }
    free(recent);
    return WINA_OK;
}

/* For every end of the history: how many tokens before it equal the history's last ones. The
 * Z algorithm on the reversed history: linear. matches[i] belongs to the i-th token from the end.
 */
static void match_suffix(const int32_t *last, uint64_t n, uint64_t limit, uint64_t *matches) {
    uint64_t begin = 0, end = 0; /* reversed positions that are known to repeat the first ones */
    for (uint64_t i = 1; i < n; i++) {
        uint64_t m = 0;
        if (i < end)
            m = matches[i - begin] < end - i ? matches[i - begin] : end - i;
        while (i + m < n && *(last - m) == *(last - i - m))
            m++;
        matches[i] = m;
        if (i + m > end)
            begin = i, end = i + m;
    }
    for (uint64_t i = 1; i < n; i++)
        matches[i] = matches[i] < limit ? matches[i] : limit;
}

/* Don't repeat yourself: a token that would make the history's end go on as it once did is
 * lowered by multiplier * base^(length - allowed), length counting tokens that repeat already. */
static int32_t dry(wina_sampler *s, int64_t n_candidates, int32_t n_vocab) {
    const wina_sampler_params *p = &s->params;
    uint64_t n = p->dry_penalty_last_n < 0 || (uint64_t)p->dry_penalty_last_n > s->n_history
                     ? s->n_history
                     : (uint64_t)p->dry_penalty_last_n;
    const uint64_t allowed = (uint64_t)p->dry_allowed_length;
    if (p->dry_multiplier == 0 || p->dry_base < 1 || n <= allowed)
        return WINA_OK;
    const int32_t *last = s->history + s->n_history - 1;
    uint64_t limit = 0;                        /* tokens at the end up to the last breaker */
    while (limit < n && !(p->n_dry_breakers && /* bsearch wants an array even for nothing */
                          bsearch(last - limit, s->breakers, (size_t)p->n_dry_breakers,
                                  sizeof *s->breakers, by_token)))
        limit++;
    if (limit < allowed)
        return WINA_OK;
    uint64_t *matches = NULL, *longest = NULL;
    WINA_TRY(wina_mem_create(n, sizeof *matches, "dry matches", &matches));
    int32_t status = wina_mem_create((uint64_t)n_vocab, sizeof *longest, "dry matches", &longest);
    if (status == WINA_OK) {
        match_suffix(last, n, limit, matches);
        for (uint64_t i = 1; i < n; i++) {
            int32_t next = *(last - i + 1);
            if (next >= 0 && next < n_vocab && matches[i] > longest[next])
                longest[next] = matches[i];
        }
        for (int64_t i = 0; i < n_candidates; i++) {
            candidate *c = &s->candidates[i];
            const uint64_t length = longest[c->token];
            if (length >= allowed && c->logit > -INFINITY)
                lower(&c->logit, (double)c->logit,
                      (double)p->dry_multiplier *
                          pow((double)p->dry_base, (double)(length - allowed)));
        }
    }
    free(matches);
    free(longest);
    return status;
}

/* ---- choosing ----------------------------------------------------------------------------- */

/* Index of the candidate drawn from n at a temperature. */
static int64_t draw_one(wina_sampler *s, const candidate *c, int64_t n, double temperature) {
    const float max = wina_candidates_best(c, n).logit;
    double total = 0;
    for (int64_t i = 0; i < n; i++)
        total += wina_candidate_weight(c[i], max, temperature);
    double left = draw(s) * total;
    int64_t chosen = 0; /* the last with any weight, should rounding carry us past the end */
    for (int64_t i = 0; i < n && left >= 0; i++) {
        double w = wina_candidate_weight(c[i], max, temperature);
        left -= w;
        if (w > 0)
            chosen = i;
    }
    return chosen;
}

/* Keeps the surprise of what is drawn near tau. */
static int32_t mirostat(wina_sampler *s, int32_t n_vocab) {
    candidate *c = s->candidates;
    int64_t n = n_vocab;
    for (int64_t i = 0; i < n; i++) /* temperature comes first here */
        lower(&c[i].logit, (double)c[i].logit / (double)s->params.temperature, 0);
    wina_candidates_sort(c, n);
    n = s->params.mirostat == 1 ? wina_candidates_mirostat(c, n, n_vocab, s->mu)
                                : wina_candidates_mirostat_v2(c, n, s->mu);
    int64_t chosen = draw_one(s, c, n, 1);
    double total = 0;
    for (int64_t i = 0; i < n; i++)
        total += wina_candidate_weight(c[i], c[0].logit, 1);
    double surprise = -log2(wina_candidate_weight(c[chosen], c[0].logit, 1) / total);
    s->mu -= (double)s->params.mirostat_eta * (surprise - (double)s->params.mirostat_tau);
    return c[chosen].token;
}

/* Filters that come before those by probability of a few; *n candidates are left. */
static int32_t filter(wina_sampler *s, int64_t *n) {
    const wina_sampler_params *p = &s->params;
    candidate *c = s->candidates;
    if (p->top_n_sigma > 0)
        *n = wina_candidates_top_n_sigma(c, *n, p->top_n_sigma);
    *n = wina_candidates_top_k(c, *n, p->top_k);
    if (p->typical_p < 1)
        WINA_TRY(wina_candidates_typical(c, *n, p->typical_p, n));
    *n = wina_candidates_tail(c, *n, p->top_p, p->min_p);
    return WINA_OK;
}

/* Only these can leave out the best token. */
static bool has_filters(const wina_sampler_params *p) {
    return p->temperature > 0 || p->typical_p < 1 || p->xtc_probability > 0;
}

/* From those that the filters left. */
static int32_t choose_filtered(wina_sampler *s, int64_t n) {
    const wina_sampler_params *p = &s->params;
    candidate *c = s->candidates;
    if (p->xtc_probability > 0 && p->xtc_threshold <= 0.5f && draw(s) < (double)p->xtc_probability)
        n = wina_candidates_xtc(c, n, p->xtc_threshold);
    double temperature =
        wina_candidates_temperature(c, n, p->temperature, p->dynatemp_range, p->dynatemp_exponent);
    return p->temperature > 0 && temperature > 0 ? c[draw_one(s, c, n, temperature)].token
                                                 : wina_candidates_best(c, n).token;
}

/* From n candidates whose logits are as they shall be. */
static int32_t choose(wina_sampler *s, int64_t n, int32_t *token) {
    if (has_filters(&s->params))
        WINA_TRY(filter(s, &n));
    *token = choose_filtered(s, n);
    return WINA_OK;
}

int32_t wina_sampler_sample(wina_sampler *s, const float *logits, int32_t n_vocab, int32_t *token) {
    const wina_sampler_params *p = &s->params;
    if (n_vocab < 1)
        return wina_fail(WINA_E_ARGUMENT, "no logits to sample from");
    WINA_TRY(read_logits(s, logits, n_vocab));
    if (p->mirostat > 0 && p->temperature > 0) {
        *token = mirostat(s, n_vocab);
        return WINA_OK;
    }
    WINA_TRY(penalize(s, n_vocab, n_vocab));
    WINA_TRY(dry(s, n_vocab, n_vocab));
    return choose(s, n_vocab, token);
}

/* ---- the best few ------------------------------------------------------------------------- */

/* Candidates, best first, that decide what is chosen; 0: all may matter. */
static int32_t n_wanted(const wina_sampler *s, int32_t n_vocab) {
    const wina_sampler_params *p = &s->params;
    if (p->mirostat > 0 && p->temperature > 0)
        return 0;
    if (p->repeat_penalty < 1 || p->presence_penalty < 0 || p->frequency_penalty < 0)
        return 0; /* could lift any token */
    for (int32_t i = 0; i < p->n_logit_bias; i++)
        if (s->bias[i].bias > 0)
            return 0;
    if (!has_filters(p))
        return 1;
    return p->top_n_sigma > 0 || p->top_k <= 0 || p->top_k >= n_vocab ? 0 : p->top_k;
}

/* Top_p and min_p alone, of logits as the model gave them. */
static bool is_plain(const wina_sampler *s, int32_t n_vocab) {
    const wina_sampler_params *p = &s->params;
    return has_filters(p) && (p->top_k <= 0 || p->top_k >= n_vocab) && p->top_n_sigma <= 0 &&
           p->typical_p >= 1 && p->mirostat == 0 && p->repeat_penalty == 1.0f &&
           p->presence_penalty == 0 && p->frequency_penalty == 0 && p->dry_multiplier == 0 &&
           p->n_logit_bias == 0;
}

int32_t wina_sampler_sample_best(wina_sampler *s, const wina_best *best, int32_t n_vocab,
                                 int32_t *token) {
    const int32_t k = n_wanted(s, n_vocab), n = best->n;
    *token = -1;
    if (n < 1)
        return WINA_OK;
    WINA_TRY(wina_mem_grow(&s->candidates, &s->candidates_capacity, (uint64_t)n,
                           sizeof *s->candidates, "sampler candidates"));
    candidate *c = s->candidates;
    if (is_plain(s, n_vocab)) {
        int64_t n_kept;
        if (wina_candidates_tail_of_best(best, n_vocab, s->params.top_p, s->params.min_p, c,
                                         &n_kept))
            *token = choose_filtered(s, n_kept);
        return WINA_OK;
    }
    if (k == 0 || k > n)
        return WINA_OK;
    memcpy(c, best->all, (size_t)n * sizeof *c);
    add_bias(s, n, n_vocab);
    WINA_TRY(penalize(s, n, n_vocab));
    WINA_TRY(dry(s, n, n_vocab));
    wina_candidates_sort(c, n);
    /* Logits were only lowered: those that are not here are still worse than the last that is. */
    if (c[k - 1].logit == -INFINITY ||
        (n < n_vocab && wina_candidates_is_worse(c[k - 1], best->all[n - 1])))
        return WINA_OK;
    return choose(s, k, token);
}

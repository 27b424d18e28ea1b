#include "sampler.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "mem.h"
#include "status.h"

typedef struct candidate {
    float logit;
    int32_t token;
} candidate;

struct wina_sampler {
    wina_sampler_params params;
    int64_t seed;
    uint64_t state[4]; /* xoshiro256** */
    int32_t *history;  /* accepted tokens, oldest first */
    uint64_t n_history, history_capacity;
    candidate *candidates;
    uint64_t candidates_capacity;
};

void wina_sampler_params_init(wina_sampler_params *p) {
    *p = (wina_sampler_params){.temperature = 0.8f,
                               .top_k = 40,
                               .top_p = 0.95f,
                               .min_p = 0.05f,
                               .repeat_last_n = 64,
                               .repeat_penalty = 1.0f,
                               .seed = -1};
}

static int32_t refuse(const char *name, double value, const char *want) {
    return wina_fail(WINA_E_ARGUMENT, "%s is %g, must be %s", name, value, want);
}

int32_t wina_sampler_check(const wina_sampler_params *p) {
    if (!(p->temperature >= 0) || !isfinite(p->temperature))
        return refuse("temperature", (double)p->temperature, "0 or more");
    if (!(p->top_p >= 0 && p->top_p <= 1))
        return refuse("top_p", (double)p->top_p, "in [0, 1]");
    if (!(p->min_p >= 0 && p->min_p <= 1))
        return refuse("min_p", (double)p->min_p, "in [0, 1]");
    if (p->repeat_last_n < -1)
        return refuse("repeat_last_n", p->repeat_last_n, "-1 or more");
    if (!(p->repeat_penalty > 0) || !isfinite(p->repeat_penalty))
        return refuse("repeat_penalty", (double)p->repeat_penalty, "more than 0");
    if (!isfinite(p->presence_penalty))
        return refuse("presence_penalty", (double)p->presence_penalty, "finite");
    if (!isfinite(p->frequency_penalty))
        return refuse("frequency_penalty", (double)p->frequency_penalty, "finite");
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
    s->seed = p.seed < 0 ? random_seed() : p.seed;
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

/* ---- choosing ----------------------------------------------------------------------------- */

static int by_token(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static int by_logit(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return (x->token > y->token) - (x->token < y->token);
}

/* Lowers the candidates that occur among the last tokens; candidates are still in token order. */
static int32_t penalize(wina_sampler *s, int32_t n_vocab) {
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
        if (recent[i] < 0 || recent[i] >= n_vocab)
            continue;
        float *logit = &s->candidates[recent[i]].logit;
        *logit = *logit > 0 ? *logit / p->repeat_penalty : *logit * p->repeat_penalty;
        *logit -= (float)(j - i) * p->frequency_penalty + p->presence_penalty;
    }
    free(recent);
    return WINA_OK;
}

static void swap(candidate *a, candidate *b) {
    candidate t = *a;
    *a = *b;
    *b = t;
}

/* Moves the k best of n candidates to the front, unsorted (quickselect, middle pivot). */
static void select_best(candidate *c, int64_t n, int64_t k) {
    int64_t low = 0, high = n - 1;
    while (low < high) {
        candidate pivot = c[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (by_logit(&c[i], &pivot) < 0)
                i++;
            while (by_logit(&c[j], &pivot) > 0)
                j--;
            if (i <= j)
                swap(&c[i++], &c[j--]);
        }
        if (k <= j)
            high = j;
        else if (k >= i)
            low = i;
        else
            return;
    }
}

/* Keeps the best candidates whose probabilities first reach top_p, then those of at least min_p
 * times the best one's. Candidates are sorted; returns how many are left, at least one. */
static int64_t cut_tail(const wina_sampler_params *p, const candidate *c, int64_t n) {
    if (p->top_p < 1.0f) {
        double total = 0, sum = 0;
        for (int64_t i = 0; i < n; i++)
            total += exp((double)(c[i].logit - c[0].logit));
        int64_t m = 0;
        while (m < n && (m == 0 || sum < (double)p->top_p * total))
            sum += exp((double)(c[m++].logit - c[0].logit));
        n = m;
    }
    if (p->min_p > 0.0f) {
        float lowest = c[0].logit + logf(p->min_p);
        while (n > 1 && c[n - 1].logit < lowest)
            n--;
    }
    return n;
}

static int32_t draw_token(wina_sampler *s, const candidate *c, int64_t n) {
    double total = 0, t = (double)s->params.temperature;
    for (int64_t i = 0; i < n; i++)
        total += exp((double)(c[i].logit - c[0].logit) / t);
    double left = draw(s) * total;
    for (int64_t i = 0; i < n; i++) {
        left -= exp((double)(c[i].logit - c[0].logit) / t);
        if (left < 0)
            return c[i].token;
    }
    return c[n - 1].token;
}

int32_t wina_sampler_sample(wina_sampler *s, const float *logits, int32_t n_vocab, int32_t *token) {
    const wina_sampler_params *p = &s->params;
    if (n_vocab < 1)
        return wina_fail(WINA_E_ARGUMENT, "no logits to sample from");
    WINA_TRY(wina_mem_grow(&s->candidates, &s->candidates_capacity, (uint64_t)n_vocab,
                           sizeof *s->candidates, "sampler candidates"));
    candidate *c = s->candidates;
    bool any = false;
    for (int32_t i = 0; i < n_vocab; i++) {
        if (!(logits[i] < INFINITY))
            return wina_fail(WINA_E_NUMERIC, "the logit of token %d is %g", i, (double)logits[i]);
        any |= logits[i] > -INFINITY;
        c[i] = (candidate){logits[i], i};
    }
    if (!any)
        return wina_fail(WINA_E_NUMERIC, "every logit is -infinity");
    WINA_TRY(penalize(s, n_vocab));
    if (p->temperature == 0) {
        candidate best = c[0];
        for (int32_t i = 1; i < n_vocab; i++)
            if (c[i].logit > best.logit)
                best = c[i];
        *token = best.token;
        return WINA_OK;
    }
    int64_t n = n_vocab;
    if (p->top_k > 0 && p->top_k < n) {
        select_best(c, n, p->top_k);
        n = p->top_k;
    }
    qsort(c, (size_t)n, sizeof *c, by_logit);
    while (n > 1 && c[n - 1].logit == -INFINITY)
        n--;
    n = cut_tail(p, c, n);
    *token = draw_token(s, c, n);
    return WINA_OK;
}

#include "sampler.h"

#include <float.h>
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
        if (*logit == -INFINITY)
            continue;
        /* In double, and back to a float that is finite whatever the penalties are. */
        double x = (double)*logit, repeat = (double)p->repeat_penalty;
        x = x > 0 ? x / repeat : x * repeat;
        x -= (double)(j - i) * (double)p->frequency_penalty + (double)p->presence_penalty;
        *logit = (float)fmin(fmax(x, -(double)FLT_MAX), (double)FLT_MAX);
    }
    free(recent);
    return WINA_OK;
}

static bool is_worse(candidate a, candidate b) {
    return a.logit < b.logit || (a.logit == b.logit && a.token > b.token);
}

/* Restores the heap below element i of n; the worst candidate is at its root. */
static void sift_down(candidate *heap, int64_t n, int64_t i) {
    const candidate moved = heap[i];
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && is_worse(heap[child + 1], heap[child]))
            child++;
        if (!is_worse(heap[child], moved))
            break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

static void make_heap(candidate *c, int64_t n) {
    for (int64_t i = n / 2 - 1; i >= 0; i--)
        sift_down(c, n, i);
}

/* The k best of n candidates end up in c[0, k), as a heap. */
static void keep_best(candidate *c, int64_t n, int64_t k) {
    make_heap(c, k);
    for (int64_t i = k; i < n; i++)
        if (is_worse(c[0], c[i])) {
            c[0] = c[i];
            sift_down(c, k, 0);
        }
}

static void sort_best_first(candidate *c, int64_t n) {
    make_heap(c, n);
    for (int64_t m = n - 1; m > 0; m--) {
        const candidate worst = c[0];
        c[0] = c[m];
        c[m] = worst;
        sift_down(c, m, 0);
    }
}

static double weight(candidate c, float max, double temperature) {
    return exp(((double)c.logit - (double)max) / temperature);
}

/* top_p: keeps the best candidates whose probabilities first reach it; min_p: those of at least
 * min_p times the best one's. Both keep a first part of the sorted candidates, at least one, so
 * what min_p drops need not be sorted. Nor what is rarer than (1 - top_p) / (2 n): all of it
 * together is in the tail that top_p drops. Returns how many are left. */
static int64_t cut_tail(const wina_sampler_params *p, candidate *c, int64_t n, float max) {
    double total = 0, lowest = -INFINITY;
    if (p->top_p < 1) {
        for (int64_t i = 0; i < n; i++)
            total += weight(c[i], max, 1);
        lowest = log(0.5 * (1 - (double)p->top_p) * total / (double)n);
    }
    if (p->min_p > 0)
        lowest = fmax(lowest, log((double)p->min_p));
    int64_t n_kept = 0;
    for (int64_t i = 0; i < n; i++)
        if ((double)c[i].logit - (double)max >= lowest)
            c[n_kept++] = c[i];
    if (p->top_p >= 1)
        return n_kept;
    sort_best_first(c, n_kept);
    double sum = 0;
    int64_t m = 0;
    while (m < n_kept && (m == 0 || sum < (double)p->top_p * total))
        sum += weight(c[m++], max, 1);
    return m;
}

static int32_t draw_token(wina_sampler *s, const candidate *c, int64_t n, float max) {
    double total = 0, t = (double)s->params.temperature;
    for (int64_t i = 0; i < n; i++)
        total += weight(c[i], max, t);
    double left = draw(s) * total;
    int32_t token = -1; /* the last with any weight, should rounding carry us past the end */
    for (int64_t i = 0; i < n && left >= 0; i++) {
        double w = weight(c[i], max, t);
        left -= w;
        if (w > 0)
            token = c[i].token;
    }
    return token;
}

/* Logits as candidates, in token order. */
static int32_t read_logits(wina_sampler *s, const float *logits, int32_t n_vocab) {
    WINA_TRY(wina_mem_grow(&s->candidates, &s->candidates_capacity, (uint64_t)n_vocab,
                           sizeof *s->candidates, "sampler candidates"));
    bool any = false;
    for (int32_t i = 0; i < n_vocab; i++) {
        if (!(logits[i] < INFINITY))
            return wina_fail(WINA_E_NUMERIC, "the logit of token %d is %g", i, (double)logits[i]);
        any |= logits[i] > -INFINITY;
        s->candidates[i] = (candidate){logits[i], i};
    }
    return any ? WINA_OK : wina_fail(WINA_E_NUMERIC, "every logit is -infinity");
}

int32_t wina_sampler_sample(wina_sampler *s, const float *logits, int32_t n_vocab, int32_t *token) {
    const wina_sampler_params *p = &s->params;
    if (n_vocab < 1)
        return wina_fail(WINA_E_ARGUMENT, "no logits to sample from");
    WINA_TRY(read_logits(s, logits, n_vocab));
    WINA_TRY(penalize(s, n_vocab));
    candidate *c = s->candidates, best = c[0];
    for (int32_t i = 1; i < n_vocab; i++)
        if (c[i].logit > best.logit)
            best = c[i];
    if (p->temperature == 0) {
        *token = best.token;
        return WINA_OK;
    }
    int64_t n = n_vocab;
    if (p->top_k > 0 && p->top_k < n) {
        keep_best(c, n, p->top_k);
        n = p->top_k;
    }
    n = cut_tail(p, c, n, best.logit);
    *token = draw_token(s, c, n, best.logit);
    return WINA_OK;
}

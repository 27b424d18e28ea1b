#include "candidates.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "mem.h"
#include "status.h"

typedef wina_candidate candidate;

bool wina_candidates_is_worse(candidate a, candidate b) {
    return a.logit < b.logit || (a.logit == b.logit && a.token > b.token);
}

candidate wina_candidates_best(const candidate *c, int64_t n) {
    candidate best = c[0];
    for (int64_t i = 1; i < n; i++)
        if (wina_candidates_is_worse(best, c[i]))
            best = c[i];
    return best;
}

double wina_candidate_weight(candidate c, float max, double temperature) {
    return exp(((double)c.logit - (double)max) / temperature);
}

static double total_weight(const candidate *c, int64_t n, float max) {
    double total = 0;
    for (int64_t i = 0; i < n; i++)
        total += wina_candidate_weight(c[i], max, 1);
    return total;
}

/* ---- order -------------------------------------------------------------------------------- */

/* Restores the heap below element i of n; the worst candidate is at its root. */
static void sift_down(candidate *heap, int64_t n, int64_t i) {
    const candidate moved = heap[i];
    for (int64_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && wina_candidates_is_worse(heap[child + 1], heap[child]))
            child++;
        if (!wina_candidates_is_worse(heap[child], moved))
            break;
        heap[i] = heap[child];
    }
    heap[i] = moved;
}

static void make_heap(candidate *c, int64_t n) {
    for (int64_t i = n / 2 - 1; i >= 0; i--)
        sift_down(c, n, i);
}

void wina_candidates_sort(candidate *c, int64_t n) {
    make_heap(c, n);
    for (int64_t m = n - 1; m > 0; m--) {
        const candidate worst = c[0];
        c[0] = c[m];
        c[m] = worst;
        sift_down(c, m, 0);
    }
}

/* ---- filters ------------------------------------------------------------------------------ */

int64_t wina_candidates_top_n_sigma(candidate *c, int64_t n, float sigmas) {
    double sum = 0, squares = 0, max = -INFINITY;
    int64_t n_finite = 0, n_kept = 0;
    for (int64_t i = 0; i < n; i++)
        if (c[i].logit > -INFINITY) {
            sum += (double)c[i].logit;
            max = fmax(max, (double)c[i].logit);
            n_finite++;
        }
    const double mean = sum / (double)n_finite;
    for (int64_t i = 0; i < n; i++)
        if (c[i].logit > -INFINITY)
            squares += ((double)c[i].logit - mean) * ((double)c[i].logit - mean);
    const double least = max - (double)sigmas * sqrt(squares / (double)n_finite);
    for (int64_t i = 0; i < n; i++)
        if ((double)c[i].logit >= least)
            c[n_kept++] = c[i];
    return n_kept;
}

int64_t wina_candidates_top_k(candidate *c, int64_t n, int32_t k) {
    if (k <= 0 || k >= n)
        return n;
    make_heap(c, k);
    for (int64_t i = k; i < n; i++)
        if (wina_candidates_is_worse(c[0], c[i])) {
            c[0] = c[i];
            sift_down(c, k, 0);
        }
    wina_candidates_sort(c, k); /* so that the draw does not depend on how they were found */
    return k;
}

typedef struct typical {
    double distance, share;
    candidate own;
} typical;

static int by_distance(const void *a, const void *b) {
    const typical *x = a, *y = b;
    if (x->distance != y->distance)
        return x->distance < y->distance ? -1 : 1;
    return wina_candidates_is_worse(x->own, y->own) - wina_candidates_is_worse(y->own, x->own);
}

int32_t wina_candidates_typical(candidate *c, int64_t n, float p, int64_t *n_kept) {
    typical *rows = NULL;
    WINA_TRY(wina_mem_create((uint64_t)n, sizeof *rows, "sampler candidates", &rows));
    const float max = wina_candidates_best(c, n).logit;
    const double total = total_weight(c, n, max);
    double entropy = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        double share = wina_candidate_weight(c[i], max, 1) / total;
        rows[i] = (typical){.share = share, .own = c[i]};
        entropy -= share > 0 ? share * log(share) : 0;
    }
    for (int64_t i = 0; i < n; i++)
        rows[i].distance = rows[i].share > 0 ? fabs(-log(rows[i].share) - entropy) : INFINITY;
    qsort(rows, (size_t)n, sizeof *rows, by_distance);
    int64_t m = 0;
    while (m < n && !(sum > (double)p)) {
        sum += rows[m].share;
        c[m] = rows[m].own;
        m++;
    }
    free(rows);
    *n_kept = m;
    return WINA_OK;
}

/* What min_p drops need not be sorted. Nor what is rarer than (1 - top_p) / (2 n): all of it
 * together is in the tail that top_p drops. */
int64_t wina_candidates_tail(candidate *c, int64_t n, float top_p, float min_p) {
    const float max = wina_candidates_best(c, n).logit;
    double total = 0, lowest = -INFINITY;
    if (top_p < 1) {
        total = total_weight(c, n, max);
        lowest = log(0.5 * (1 - (double)top_p) * total / (double)n);
    }
    if (min_p > 0)
        lowest = fmax(lowest, log((double)min_p));
    int64_t n_kept = 0;
    for (int64_t i = 0; i < n; i++)
        if ((double)c[i].logit - (double)max >= lowest)
            c[n_kept++] = c[i];
    if (top_p >= 1)
        return n_kept;
    wina_candidates_sort(c, n_kept);
    double sum = 0;
    int64_t m = 0;
    while (m < n_kept && (m == 0 || sum < (double)top_p * total))
        sum += wina_candidate_weight(c[m++], max, 1);
    return m;
}

static int by_token(const void *a, const void *b) {
    const int32_t x = ((const candidate *)a)->token, y = ((const candidate *)b)->token;
    return (x > y) - (x < y);
}

/* Another sum of the same weights may differ from ours by roundings: if that could change how many
 * are kept, nothing is told. */
bool wina_candidates_tail_of_best(const wina_best *best, int32_t n_vocab, float top_p, float min_p,
                                  candidate *c, int64_t *n_kept) {
    const double ROUNDING = 1e-9, lowest = min_p > 0 ? log((double)min_p) : -INFINITY;
    const float max = best->all[0].logit;
    int64_t n = 0, m = 0;
    while (n < best->n && (double)best->all[n].logit - (double)max >= lowest)
        n++;
    const bool ends = n < best->n || n == n_vocab; /* all that min_p leaves are here */
    memcpy(c, best->all, (size_t)n * sizeof *c);
    if (top_p >= 1) {
        qsort(c, (size_t)n, sizeof *c, by_token);
        *n_kept = n;
        return ends;
    }
    if (!(best->weight >= 1 && best->weight < INFINITY))
        return false;
    const double wanted = (double)top_p * best->weight;
    double sum = 0;
    while (m < n && (m == 0 || sum < wanted)) {
        sum += wina_candidate_weight(c[m++], max, 1);
        if (top_p > 0 && fabs(sum - wanted) <= ROUNDING * best->weight)
            return false;
    }
    *n_kept = m;
    return ends || sum >= wanted;
}

int64_t wina_candidates_xtc(candidate *c, int64_t n, float threshold) {
    wina_candidates_sort(c, n);
    const double total = total_weight(c, n, c[0].logit);
    int64_t n_likely = 0;
    while (n_likely < n &&
           wina_candidate_weight(c[n_likely], c[0].logit, 1) >= (double)threshold * total)
        n_likely++;
    if (n_likely < 2)
        return n;
    for (int64_t i = n_likely - 1; i < n; i++)
        c[i - (n_likely - 1)] = c[i];
    return n - (n_likely - 1);
}

double wina_candidates_temperature(const candidate *c, int64_t n, float temperature, float range,
                                   float exponent) {
    if (!(range > 0) || n < 2)
        return (double)temperature;
    const float max = wina_candidates_best(c, n).logit;
    const double total = total_weight(c, n, max);
    double entropy = 0;
    for (int64_t i = 0; i < n; i++) {
        double share = wina_candidate_weight(c[i], max, 1) / total;
        entropy -= share > 0 ? share * log(share) : 0;
    }
    const double low = fmax(0, (double)temperature - (double)range);
    const double high = (double)temperature + (double)range;
    const double share = fmin(fmax(entropy / log((double)n), 0), 1);
    return low + (high - low) * pow(share, (double)exponent);
}

/* ---- mirostat (arXiv 2007.14966) ---------------------------------------------------------- */

/* The exponent of Zipf's law through the hundred likeliest tokens, and from it the k at which
 * top-k sampling has the surprise mu. */
int64_t wina_candidates_mirostat(const candidate *c, int64_t n, int32_t n_vocab, double mu) {
    double products = 0, squares = 0;
    for (int64_t i = 0; i < 99 && i < n - 1; i++) {
        double t = log((double)(i + 2) / (double)(i + 1));
        products += t * ((double)c[i].logit - (double)c[i + 1].logit);
        squares += t * t;
    }
    double s = squares > 0 ? products / squares : 1, epsilon = s - 1;
    double k = pow(epsilon * pow(2, mu) / (1 - pow((double)n_vocab, -epsilon)), 1 / s);
    if (!(k >= 1))
        return 1;
    return k >= (double)n ? n : (int64_t)k;
}

int64_t wina_candidates_mirostat_v2(const candidate *c, int64_t n, double mu) {
    const double total = total_weight(c, n, c[0].logit);
    int64_t n_kept = 1;
    while (n_kept < n && -log2(wina_candidate_weight(c[n_kept], c[0].logit, 1) / total) <= mu)
        n_kept++;
    return n_kept;
}

/* candidates: tokens that may still be chosen, and the filters that leave some of them out. A
 * filter keeps at least one, changes the order as it likes, and returns how many are left: the
 * first ones. Definitions, names and order of application are llama.cpp's. */
#ifndef WINA_CANDIDATES_H
#define WINA_CANDIDATES_H

#include <stdbool.h>
#include <stdint.h>

typedef struct wina_candidate {
    float logit;
    int32_t token;
} wina_candidate;

/* What a backend may hand out instead of all logits. */
enum { WINA_MOST_BEST = 128 };
typedef struct wina_best {
    int32_t n;                          /* 0: it could not find them */
    double weight;                      /* of all tokens together, 1 for the first candidate */
    wina_candidate all[WINA_MOST_BEST]; /* (n) the best, best first */
} wina_best;

/* The worse of two: the lower logit; the higher token where they are equal. */
bool wina_candidates_is_worse(wina_candidate a, wina_candidate b);

/* The likeliest; the lower token where two are equal. */
wina_candidate wina_candidates_best(const wina_candidate *c, int64_t n);

/* exp((logit - max) / temperature) */
double wina_candidate_weight(wina_candidate c, float max, double temperature);

void wina_candidates_sort(wina_candidate *c, int64_t n); /* best first */

/* Logits of at least the largest minus `sigmas` standard deviations. */
int64_t wina_candidates_top_n_sigma(wina_candidate *c, int64_t n, float sigmas);

/* The k best; best first, if any are left out. */
int64_t wina_candidates_top_k(wina_candidate *c, int64_t n, int32_t k);

/* Those whose surprise is nearest to the entropy, until they have more than probability p
 * together. The only filter that needs memory. */
int32_t wina_candidates_typical(wina_candidate *c, int64_t n, float p, int64_t *n_kept);

/* The best that together first have probability top_p; of these, at least min_p times the best
 * one's probability. 1 and 0: off. */
int64_t wina_candidates_tail(wina_candidate *c, int64_t n, float top_p, float min_p);

/* The same, in the same order, from the best of n_vocab tokens: false if these do not tell. */
bool wina_candidates_tail_of_best(const wina_best *best, int32_t n_vocab, float top_p, float min_p,
                                  wina_candidate *c, int64_t *n_kept);

/* All but the least likely one of those with at least this probability are left out. */
int64_t wina_candidates_xtc(wina_candidate *c, int64_t n, float threshold);

/* Between temperature - range and temperature + range, by the entropy's share of its maximum. */
double wina_candidates_temperature(const wina_candidate *c, int64_t n, float temperature,
                                   float range, float exponent);

/* Mirostat: how many of the sorted candidates to draw from at temperature 1. */
int64_t wina_candidates_mirostat(const wina_candidate *c, int64_t n, int32_t n_vocab, double mu);
int64_t wina_candidates_mirostat_v2(const wina_candidate *c, int64_t n, double mu);

#endif

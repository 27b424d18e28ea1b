/* select: which inputs of a projection group are kept for one token.
 *
 * score_i = |x_i| * norm_i (or |x_i|); the budget's number of inputs with the largest scores is
 * kept, exactly, ties going to the lower index, and listed in rising order. Scores are not
 * negative, so their order is that of their bits: the threshold is found by counting leading bits,
 * then the rest among the few candidates that share them. */
#ifndef WINA_SELECT_H
#define WINA_SELECT_H

#include <stdint.h>

/* score (n) = |x| * norms; norms may be NULL (all ones). */
void wina_score(const float *x, const float *norms, int32_t n, float *score);

/* score (n) = |silu(gate)|. */
void wina_score_gate(const float *gate, int32_t n, float *score);

/* Lists the n_keep largest of n scores; kept has room for n. scratch has room for n. */
void wina_select(const float *score, int32_t n, int32_t n_keep, int32_t *kept, uint32_t *scratch);

/* Lists the scores that are at least threshold, else the largest one; returns how many. */
int32_t wina_select_from(const float *score, int32_t n, float threshold, int32_t *kept);

#endif

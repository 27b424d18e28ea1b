/* norms: l2 norms of weight columns. Rows arrive in any number of calls; sums of squares are kept
 * in double so that their order hardly matters. */
#ifndef WINA_NORMS_H
#define WINA_NORMS_H

#include <stdint.h>

/* sums[i] += row[i]^2 for n inputs. */
void wina_norms_add_row(double *sums, const float *row, int64_t n);

/* norms[i] = sqrt(sums[i]). */
void wina_norms_finish(const double *sums, float *norms, int64_t n);

#endif

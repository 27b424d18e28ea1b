#include "norms.h"

#include <math.h>

void wina_norms_add_row(double *sums, const float *row, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        sums[i] += (double)row[i] * (double)row[i];
}

void wina_norms_finish(const double *sums, float *norms, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        norms[i] = (float)sqrt(sums[i]);
}

/* profile: what WINA_CUDA_PROFILE=1 prints when a session ends. */
#include "profile.h"

#include <stdio.h>
#include <stdlib.h>

/* Share of the time of each stage in its parts, and until all blocks were there. */
void wina_cuda_profile_print(const wina_cuda_times *device_times,
                             const wina_cuda_phase *device_phases, int32_t n_phases) {
    static const char *const NAMES[WINA_CUDA_N_STAGES] = {
        "qkv", "o", "gate_up", "down", "attention", "activation", "head"};
    wina_cuda_times *times = calloc((size_t)n_phases, sizeof *times);
    wina_cuda_phase *phases = calloc((size_t)n_phases, sizeof *phases);
    if (times && phases &&
        cudaMemcpy(times, device_times, (size_t)n_phases * sizeof *times, cudaMemcpyDeviceToHost) ==
            cudaSuccess &&
        cudaMemcpy(phases, device_phases, (size_t)n_phases * sizeof *phases,
                   cudaMemcpyDeviceToHost) == cudaSuccess) {
        double sums[WINA_CUDA_N_STAGES][WINA_CUDA_N_MARKS] = {{0}}, all = 0;
        for (int32_t i = 0; i < n_phases; i++)
            for (int k = 0; k < WINA_CUDA_N_MARKS; k++) {
                sums[phases[i].stage][k] += (double)times[i].marks[k];
                all += (double)times[i].marks[k];
            }
        fprintf(stderr, "%-10s %7s %7s %7s %7s %7s %7s %7s %7s %7s  (%% of a token)\n", "stage",
                "input", "thresh", "kept", "list", "columns", "warps", "blocks", "barrier", "all");
        for (int s = 0; s < WINA_CUDA_N_STAGES && all > 0; s++) {
            double total = 0;
            fprintf(stderr, "%-10s", NAMES[s]);
            for (int k = 0; k < WINA_CUDA_N_MARKS; k++) {
                fprintf(stderr, " %7.2f", 100 * sums[s][k] / all);
                total += sums[s][k];
            }
            fprintf(stderr, " %7.2f\n", 100 * total / all);
        }
        fprintf(stderr, "%.0f clocks\n", all);
    }
    free(times);
    free(phases);
}

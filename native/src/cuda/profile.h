/* profile: where the time of decoded tokens went, as the clock of one multiprocessor saw it. */
#ifndef WINA_CUDA_PROFILE_H
#define WINA_CUDA_PROFILE_H

#include "device.h"

/* Prints a table to stderr: the environment variable that asks for it is for those who work on the
 * kernels. Both arrays are device memory, (n_phases). */
void wina_cuda_profile_print(const wina_cuda_times *device_times,
                             const wina_cuda_phase *device_phases, int32_t n_phases);

#endif

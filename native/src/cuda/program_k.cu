/* program_k: instances of the decode kernel for blocks of 256, with the Q6_K that files have beside
 * them. */
#include "program.cuh"

const program_instance *program_instances_k() {
    return program_instances<bit_of(WINA_CUDA_Q4_K) | bit_of(WINA_CUDA_Q6_K),
                             bit_of(WINA_CUDA_Q5_K) | bit_of(WINA_CUDA_Q6_K)>::get();
}

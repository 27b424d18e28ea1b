/* program_block: instances of the decode kernel for blocks of 32. */
#include "program.cuh"

const program_instance *program_instances_block() {
    return program_instances<bit_of(WINA_CUDA_Q4_0), bit_of(WINA_CUDA_Q8_0), bit_of(WINA_CUDA_Q4_1),
                             bit_of(WINA_CUDA_Q5_0), bit_of(WINA_CUDA_Q5_1),
                             bit_of(WINA_CUDA_Q4_0) | bit_of(WINA_CUDA_Q6_K)>::get();
}

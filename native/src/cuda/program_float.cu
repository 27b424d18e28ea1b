/* program_float: instances of the decode kernel for floats. */
#include "program.cuh"

const program_instance *program_instances_float() {
    return program_instances<bit_of(WINA_CUDA_F16), bit_of(WINA_CUDA_BF16),
                             bit_of(WINA_CUDA_F32)>::get();
}

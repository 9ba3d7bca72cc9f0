/* Operations on many rows (kernels.h, many.cu) as Hopper does them: groups.cu. Gate and up are
 * multiples of 8 rows; max_active is how many experts there are. */

#ifndef KERNELS_CUDA_MANY_CUH
#define KERNELS_CUDA_MANY_CUH

#include "kernels/cuda/kernels.h"

namespace llm {

int linears_by_groups(const struct llm_cuda_linear *l, uint32_t n, uint32_t n_rows,
                      const struct llm_cuda_queue &q);
int experts_up_by_groups(const struct llm_cuda_experts &e, const struct llm_cuda_pairs &p,
                         uint32_t max_pairs, const void *x, size_t ldx, void *h, size_t ldh,
                         const struct llm_cuda_queue &q);
int experts_down_by_groups(const struct llm_cuda_experts &e, const struct llm_cuda_pairs &p,
                           uint32_t max_pairs, const void *h, size_t ldh, void *y, size_t ldy,
                           const struct llm_cuda_queue &q);

} // namespace llm

#endif

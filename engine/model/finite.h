/* Whether stored numbers are finite. */

#ifndef LLM_MODEL_FINITE_H
#define LLM_MODEL_FINITE_H

#include "engine/model/dtype.h"
#include "engine/model/plane.h"

#include <stdbool.h>
#include <stddef.h>

/* True when no number among the bytes, whole numbers at any alignment, is NaN or infinite. */
bool llm_all_finite(enum llm_dtype dtype, const void *data, size_t bytes);

/* The same of the latents and rope parts of a plane, from its first row on; a latent in fp8 is its
 * value times its scale. */
bool llm_plane_is_finite(const struct llm_plane *p, enum llm_latent_dtype dtype, const void *rows);

#endif

/* Whether stored numbers are finite. */

#ifndef LLM_MODEL_FINITE_H
#define LLM_MODEL_FINITE_H

#include "engine/model/dtype.h"
#include "engine/model/plane.h"

#include <stdbool.h>
#include <stddef.h>

/* True when no number among the bytes, whole numbers at any alignment, is NaN or infinite. */
bool llm_all_finite(enum llm_dtype dtype, const void *data, size_t bytes);

/* The same of the latents and rope parts of a plane, from its first row on. An fp8 scale must leave
 * the largest e4m3 finite. */
bool llm_plane_is_finite(const struct llm_plane *p, enum llm_latent_dtype dtype, const void *rows);

#endif

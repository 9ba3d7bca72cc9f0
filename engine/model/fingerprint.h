/* What makes two checkpoints the same for whoever caches their latents. */

#ifndef LLM_MODEL_FINGERPRINT_H
#define LLM_MODEL_FINGERPRINT_H

#include "engine/model/checkpoint.h"
#include "engine/model/config.h"

/* SHA-256 over a format tag, the config fields that change the maths, and for every tensor, in
 * the order of names, its name, dtype, shape and three windows of its bytes as stored. The same
 * for one file and for shards. Reads about 12 KiB a tensor. */
int llm_fingerprint(const struct llm_model_config *c, const struct llm_checkpoint *ck,
                    uint8_t out[32], struct llm_error *err);

/* The same of weights that are made from a seed (dummy.c): the tag names the way they are made. */
int llm_fingerprint_dummy(const struct llm_model_config *c, uint64_t seed, uint8_t out[32],
                          struct llm_error *err);

#endif

/* Weights made up from a seed, for trying out speed and machinery on the true shape of a model
 * whose checkpoint is not there. */

#ifndef LLM_MODEL_DUMMY_H
#define LLM_MODEL_DUMMY_H

#include "engine/model/model.h"

/* Makes a model of a directory that holds only config.json (and perhaps generation_config.json),
 * with a thread on every core this process may use. Weights are BF16, or F8_E4M3 with block scales
 * where quantization_config says so; an MTP layer shares embedding and head with the model. The
 * same seed gives the same bytes on every machine, and the fingerprint depends on it.
 *
 * Every number is finite and none is zero. What goes through a matrix comes out as large as it was;
 * norms are near 1; a router chooses some experts a few times as often as others.
 *
 * LLM_ENOMEM when the weights do not fit into the memory there is. *out is allocated; free it with
 * llm_model_close. */
int llm_model_dummy(const char *dir, uint64_t seed, struct llm_model **out, struct llm_error *err);

#endif

/* model_config.h - inside the engine: reads a Qwen3 folder's config.json and
 * generation_config.json. */
#ifndef ENGINE_MODEL_CONFIG_H
#define ENGINE_MODEL_CONFIG_H

#include "engine/model.h"

/* Every number is checked against what the arithmetic can do before anything is sized by it.
 * ERR_USER names the setting, its value and what was expected. */
int model_config_read(const char *dir, struct model_conf *mc, struct err *e) WARN_UNUSED;

/* What each of ranks equal parts of a whole model is.  ERR_USER when ranks does not divide the
 * query and key heads, the intermediate size and the vocabulary, or is above 8 or below 1. */
int model_config_part(const struct model_conf *whole, int ranks, struct model_conf *part,
                      struct err *e) WARN_UNUSED;

#endif

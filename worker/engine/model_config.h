/* model_config.h - inside the engine: reads a Qwen3 folder's config.json and
 * generation_config.json. */
#ifndef ENGINE_MODEL_CONFIG_H
#define ENGINE_MODEL_CONFIG_H

#include "engine/model.h"

/* Every number is checked against what the arithmetic can do before anything is sized by it.
 * ERR_USER names the setting, its value and what was expected. */
int model_config_read(const char *dir, struct model_conf *mc, struct err *e) WARN_UNUSED;

#endif

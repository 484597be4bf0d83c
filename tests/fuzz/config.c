/* A model's config.json. */
#include <assert.h>
#include "engine/model_config.h"
#include "fuzz/folder.h"
#include "fuzz/target.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct err e = {0};
    struct model_conf mc = {0};
    if (model_config_read(folder_with("config.json", bytes, size), &mc, &e) < 0)
        assert(e.text[0]);
    else
        assert(mc.vocab > 0 && mc.hidden > 0 && mc.layers > 0 && mc.heads % mc.kv_heads == 0);
    return 0;
}

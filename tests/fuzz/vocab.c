/* A tokenizer.json. */
#include <assert.h>
#include "engine/model.h"
#include "fuzz/folder.h"
#include "fuzz/target.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct err e = {0};
    size_t length, all = 0;
    struct vocab *v = vocab_load(folder_with("tokenizer.json", bytes, size), &e);
    assert(v || e.text[0]);
    for (int id = -1; v && id < 1024; id++) {
        const char *text = vocab_bytes(v, id, &length);
        for (size_t i = 0; text && i < length; i++)
            all += (unsigned char)text[i];
    }
    vocab_free(v);
    return all > ((size_t)1 << 40);
}

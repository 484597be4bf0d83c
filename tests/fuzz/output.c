/* What a result carries, turned into JSON for clients that want that; the first byte chooses. */
#include <assert.h>
#include <stdlib.h>
#include "fuzz/target.h"
#include "wire/payload.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct err e = {0};
    size_t length = 0;
    if (size < 1) return 0;
    char *text = bytes[0] & 1 ? train_output_to_json(bytes + 1, size - 1, &length, &e)
                              : sample_output_to_json(bytes + 1, size - 1, &length, &e);
    assert(text ? text[length] == '\0' : e.text[0] != '\0');
    free(text);
    return 0;
}

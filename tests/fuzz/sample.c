/* A sample request; the first byte chooses between sample and compute_logprobs. */
#include <assert.h>
#include "fuzz/target.h"
#include "wire/payload.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    struct err e = {0};
    bool malformed = false;
    if (size < 1) return 0;
    enum job_kind kind = bytes[0] & 1 ? JOB_COMPUTE_LOGPROBS : JOB_SAMPLE;
    struct sample_request *r = sample_request_decode(bytes + 1, size - 1, kind, &malformed, &e);
    if (r) {
        assert(r->prompt_count > 0 && r->num_samples <= NUM_SAMPLES_MAX);
        if (sample_request_fits(r, 32768, &e) < 0) assert(e.text[0]);
    } else {
        assert(e.kind != ERR_NONE && e.text[0]);
    }
    sample_request_free(r);
    return 0;
}

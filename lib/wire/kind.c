/* kind.c - see kind.h.  One table; the order is the enum's. */
#include "wire/kind.h"

#include <string.h>

static const char *const names[JOB_KIND_COUNT] = {
    [JOB_CREATE] = "create",
    [JOB_FORWARD] = "forward",
    [JOB_FORWARD_BACKWARD] = "forward_backward",
    [JOB_OPTIM_STEP] = "optim_step",
    [JOB_SAVE] = "save",
    [JOB_SAVE_SAMPLER] = "save_sampler",
    [JOB_LOAD] = "load",
    [JOB_SAMPLE] = "sample",
    [JOB_COMPUTE_LOGPROBS] = "compute_logprobs",
    [JOB_REJECT] = "reject",
    [JOB_EXPIRE] = "expire",
    [JOB_CANCEL] = "cancel",
    [JOB_UNLOAD] = "unload",
};

const char *job_kind_name(enum job_kind kind)
{
    return (unsigned)kind < JOB_KIND_COUNT ? names[kind] : "unknown";
}

enum job_kind job_kind_of(const char *name)
{
    for (int i = 0; i < JOB_KIND_COUNT; i++)
        if (!strcmp(names[i], name)) return (enum job_kind)i;
    return JOB_KIND_UNKNOWN;
}

bool job_kind_is_train(enum job_kind kind)
{
    return kind != JOB_SAMPLE && kind != JOB_COMPUTE_LOGPROBS && kind != JOB_CANCEL;
}

/* kind.h - the primitives and the control records of the job log. */
#ifndef WIRE_KIND_H
#define WIRE_KIND_H

#include <stdbool.h>

enum job_kind {
    JOB_CREATE,           /* a run begins (seq 0): fresh adapter or from a checkpoint        */
    JOB_FORWARD,          /* logprobs and loss, no gradient                                  */
    JOB_FORWARD_BACKWARD, /* the same, and gradients are added up                            */
    JOB_OPTIM_STEP,       /* gradients are applied and cleared                               */
    JOB_SAVE,             /* a training checkpoint: weights and optimizer state              */
    JOB_SAVE_SAMPLER,     /* a sampler checkpoint, named or for one sampler                  */
    JOB_LOAD,             /* a checkpoint into this run                                      */
    JOB_SAMPLE,           /* tokens from a base model or a sampler checkpoint                */
    JOB_COMPUTE_LOGPROBS, /* a prompt's logprobs, nothing sampled                            */
    JOB_REJECT,           /* train: this seq was refused at the door; its future fails       */
    JOB_EXPIRE,           /* train: the client is gone; what waits behind a gap fails        */
    JOB_UNLOAD,           /* only a request id's: the gateway settles it, nothing is logged  */
    JOB_CANCEL,           /* sample: a wish, not an order                                    */
    JOB_KIND_COUNT,
    JOB_KIND_UNKNOWN = JOB_KIND_COUNT
};

/* "create", "forward", "forward_backward", "optim_step", "save", "save_sampler", "load", "sample",
 * "compute_logprobs", "reject", "expire", "cancel",
 * "unload" */
const char *job_kind_name(enum job_kind kind);
enum job_kind job_kind_of(const char *name); /* JOB_KIND_UNKNOWN when there is none */
bool job_kind_is_train(enum job_kind kind);  /* goes to <model>.train.jobs */

#endif

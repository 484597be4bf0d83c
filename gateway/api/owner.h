/* owner.h - whose run, sampler or checkpoint an id names.
 *
 * Every look-up carries the caller's account, so another account's id, a missing one and a forged
 * one end in the same 404.  What is kept never changes after it was written; ids that are not there
 * are not remembered. */
#ifndef API_OWNER_H
#define API_OWNER_H

#include "api/gateway.h"
#include "wire/payload.h"

#define MODEL_NAME_SIZE  128
#define OWNED_CACHED_MAX 65536

struct run_facts {
    char model[MODEL_NAME_SIZE];
    int shard, rank;
    bool train_attn, train_mlp, train_unembed;
    bool refused; /* it was never made; runs.refusal says why */
    bool copied;  /* it only holds a checkpoint that was copied */
    bool arrival; /* its calls have no numbers: they are numbered as they arrive (arrivals.h) */
};

struct sampler_facts {
    char model[MODEL_NAME_SIZE];
    int shard;
    char checkpoint_run[ID_SIZE]; /* "": the bare base model */
    int64_t checkpoint_seq;
};

struct cache *owner_runs_create(struct err *e);
struct cache *owner_samplers_create(struct err *e);

/* Each answers 404 (or 503) itself when it does not return STEP_ON. */
enum step owner_find_run(struct call *c, const char *id, struct run_facts *out);
enum step owner_find_sampler(struct call *c, const char *id, struct sampler_facts *out);

/* The base model of a run or sampler that was asked for lately, else "". */
void owner_recent_model(struct call *c, const char *parent, char model[MODEL_NAME_SIZE]);

/* The rest needs c->db and answers nothing: 1 found, 0 not, -1 failed. */
int owner_look_up_run(struct call *c, const char *id, struct run_facts *out,
                      struct err *e) WARN_UNUSED;
int owner_session(struct call *c, const char *id, struct err *e) WARN_UNUSED;

/* The newest version of that name, one's own or published: fills ref->seq, and *run with the facts
 * of its run.  token (NULL or "": none) is the key or token of another account, whose checkpoints
 * may be read with it as well; one that is nobody's is ERR_USER. */
int owner_checkpoint(struct call *c, struct checkpoint_ref *ref, const char *token,
                     struct run_facts *run, struct err *e) WARN_UNUSED;

struct model_facts {
    int train_partitions, sample_partitions;
    char arch[64], dir[512];
};
int owner_model(struct call *c, const char *name, struct model_facts *out,
                struct err *e) WARN_UNUSED;

#endif

/* trained.h - the run and the number that a training call is about. */
#ifndef API_TRAINED_H
#define API_TRAINED_H

#include "api/owner.h"

struct trained {
    char run[ID_SIZE];
    int64_t seq;
    struct run_facts facts;
};

/* Reads "model_id" and "seq_id", finds the run, and numbers the call if its run wants that
 * (owner.h): 400 names the field, 404 the model.  Call it once what needs c->db can be done. */
enum step trained_begin(struct call *c, const json_t *body, struct trained *t);
/* A run that can be trained: one that was refused at its creation is not found. */
enum step trained_run(struct call *c, const char *run, struct run_facts *facts);

#endif

/* ids.h - the names of things: sessions, runs, samplers, jobs, topics.
 *
 *   session   "s" + 26 characters of base32 over 16 random bytes: cannot be guessed
 *   run       <session>:train:<model_seq_id>                 (the SDK computes it itself)
 *   sampler   <session>:sample:<sampling_session_seq_id>
 *   job       <parent>:<kind>:<seq>:<tag>, parent a run or a sampler,
 *             tag = first 16 hex digits of HMAC-SHA-256(secret, tenant|parent|kind|seq)
 *
 * A job id is the request id that the client polls with and the future's key.  The gateway
 * recomputes the tag with the caller's tenant, so an id of somebody else is as wrong as an
 * invented one, and no lookup is needed to say so. */
#ifndef WIRE_IDS_H
#define WIRE_IDS_H

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "wire/kind.h"

#define ID_SIZE       192 /* any id of ours, with its NUL */
#define TENANT_SIZE   64
#define SECRET_SIZE   32
#define TOPIC_SIZE    200

struct secret {
    uint8_t key[SECRET_SIZE];
};

/* Reads 64 hex digits from the file. */
int secret_read(struct secret *s, const char *path, struct err *e) WARN_UNUSED;

void session_id_make(char out[ID_SIZE]);
/* ERR_USER when the parts do not fit. */
int run_id_make(char out[ID_SIZE], const char *session, int64_t model_seq, struct err *e) WARN_UNUSED;
int sampler_id_make(char out[ID_SIZE], const char *session, int64_t sampler_seq, struct err *e) WARN_UNUSED;

int job_id_make(char out[ID_SIZE], const struct secret *s, const char *tenant, const char *parent,
                enum job_kind kind, int64_t seq, struct err *e) WARN_UNUSED;

struct job_id_parts {
    char parent[ID_SIZE];
    enum job_kind kind;
    int64_t seq;
};

/* Splits an id and checks its tag for tenant, in constant time.  -1 with ERR_USER "unknown request id". */
int job_id_check(const char *id, const struct secret *s, const char *tenant, struct job_id_parts *parts,
                 struct err *e) WARN_UNUSED;

/* The stable partition of an id: first 8 bytes of SHA-256(id), big endian, modulo count. */
int partition_of(const char *id, int count);

/* The seed that stands in for one the user did not give: first 8 bytes of SHA-256(id), big endian. */
uint64_t seed_of(const char *id);

/* A base model's name inside topic names: "/" becomes "--"; only [A-Za-z0-9._-] and "/" may occur. */
int model_slug(char *out, size_t size, const char *model, struct err *e) WARN_UNUSED;

enum stream { STREAM_TRAIN, STREAM_SAMPLE, STREAM_COUNT };
const char *stream_name(enum stream s); /* "train", "sample" */

/* <prefix><slug>.train.jobs, <prefix><slug>.train.results, <prefix><slug>.batches, <prefix>dlq;
 * out has TOPIC_SIZE bytes. */
int topic_jobs(char *out, const char *prefix, const char *model, enum stream s, struct err *e) WARN_UNUSED;
int topic_results(char *out, const char *prefix, const char *model, enum stream s, struct err *e) WARN_UNUSED;
int topic_batches(char *out, const char *prefix, const char *model, struct err *e) WARN_UNUSED;
int topic_dlq(char *out, const char *prefix, struct err *e) WARN_UNUSED;

#endif

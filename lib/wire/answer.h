/* answer.h - result payloads of the small primitives, and what a cancel asks for: all JSON.
 *
 * Encoders return malloc'ed text or NULL (memory).  docs/protocol.md lists the members. */
#ifndef WIRE_ANSWER_H
#define WIRE_ANSWER_H

#include <stddef.h>
#include <stdint.h>
#include "base/err.h"
#include "wire/payload.h"

/* {"model_id", "type": "create_model"}: a fresh run. */
char *answer_created(const char *run, size_t *size, struct err *e);

/* {"metrics": {...}}; numbers that are not finite are left out, since JSON has none. */
char *answer_metrics(const struct metric *metrics, int count, size_t *size, struct err *e);

/* {"path", "type": "save_weights"} */
char *answer_saved(const char *path, size_t *size, struct err *e);

/* {"path", "type": "save_weights_for_sampler"}, or with a sampler {"path": null, "sampling_session_id", "type"}. */
char *answer_saved_sampler(const char *path, const char *sampler, size_t *size, struct err *e);

/* {"path", "type": "save_weights_external"} */
char *answer_saved_external(const char *path, size_t *size, struct err *e);

/* {"path", "model_id", "type": "load_weights"}: into a run, and for a run that begins from a checkpoint. */
char *answer_loaded(const char *run, const char *path, size_t *size, struct err *e);

/* {"job_id": s}: the job that a cancel record names. */
int cancel_decode(const void *bytes, size_t size, char job_id[ID_SIZE], struct err *e) WARN_UNUSED;

#endif

/* models.h - base models that are offered. */
#ifndef API_MODELS_H
#define API_MODELS_H

#include "api/gateway.h"

/* Fills e with a user error that names what was asked for and what there is; returns -1.  Needs
 * c->db. */
int models_unknown(struct call *c, const char *name, struct err *e);

#endif

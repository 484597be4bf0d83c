/* sessions.h - sessions that stand in where a client knows none. */
#ifndef API_SESSIONS_H
#define API_SESSIONS_H

#include "api/gateway.h"

/* The id that (account, what, key) always gets; nobody else can compute it.  key: at most 512
 * bytes. */
void session_of(struct call *c, const char *what, const char *key, char id[ID_SIZE]);

/* Makes its row if there is none.  project may be NULL.  Needs c->db. */
int session_stand_in(struct call *c, const char *id, const char *project,
                     struct err *e) WARN_UNUSED;

#endif

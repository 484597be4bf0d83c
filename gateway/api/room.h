/* room.h - is there room for one more run, for one more checkpoint?
 *
 * Asked of Postgres when something is made, so what is being made at the same moment is not seen.
 * Waiting would not help, so no room is a user error that says what would. */
#ifndef API_ROOM_H
#define API_ROOM_H

#include "api/trained.h"

/* ERR_USER when the account has as many open runs as it may, `run` aside: such as were called
 * within the last day and were neither unloaded nor left behind by a session that ended.  Needs
 * c->db. */
int room_for_run(struct call *c, const char *run, struct err *e) WARN_UNUSED;

/* The same for the bytes of all its checkpoints that are not deleted or expired; needs c->db. */
int room_for_checkpoint(struct call *c, struct err *e) WARN_UNUSED;

/* The same for a numbered save.  STEP_ON: there is room, or e is ERR_USER.  It is decided once and
 * written down (save_decisions) before anything is published, so that every copy of the call is told
 * the same, whatever was saved or deleted meanwhile, by whichever gateway.  While Postgres is away,
 * there is room: the worker will wait for it; a copy that comes later is known by this gateway, and
 * by another one asked about anew. */
enum step room_for_save(struct call *c, const struct trained *t, struct err *e);

#endif

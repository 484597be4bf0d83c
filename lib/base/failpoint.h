/* failpoint.h - named points where a test kills, stops, delays or fails a process, and rules that a
 * test switches off.
 *
 * Only in builds with the option TINWORKS_FAILPOINTS.  In all others each use is a constant: no
 * code, and not even the name is in the binary (a test looks).
 *
 * A point is armed while the folder $TINWORKS_FAILPOINTS has a file of its name.  The file holds
 * words:
 *   kill | term | stop | err | delay   SIGKILL, SIGTERM or SIGSTOP to ourselves; ERR_RETRY; sleep
 *   nth=N      at the N-th pass of this process since it was armed (1)
 *   match=S    count only passes whose subject contains S
 *   ms=N       how long delay sleeps (1000)
 *   keep       fire at every pass from the nth on; otherwise once, for all processes together: the
 *              file is renamed to NAME.fired before anything happens, and who renames it fires
 *
 * docs/reliability.md lists the points.  They may be passed by any thread. */
#ifndef BASE_FAILPOINT_H
#define BASE_FAILPOINT_H

#include <stdbool.h>
#include "base/err.h"

#ifdef TINWORKS_FAILPOINTS

/* subject: what the pass is about (an id, a path), or NULL.  -1 with ERR_RETRY when armed with err.
 */
int failpoint(const char *name, const char *subject, struct err *e) WARN_UNUSED;

/* The same where there is no error to return; err is then refused with an abort. */
void failpoint_pass(const char *name, const char *subject);

/* Is the rule switched off: does the folder have the file mut.NAME? */
bool mutation(const char *name);

#else

#define failpoint(name, subject, e)   0
#define failpoint_pass(name, subject) ((void)0)
#define mutation(name)                false

#endif
#endif

/* stop.h - SIGTERM and SIGINT set a flag; loops look at it.  SIGPIPE and SIGXFSZ are
 * ignored: what failed says so itself.
 * A second signal ends the process at once. */
#ifndef BASE_STOP_H
#define BASE_STOP_H

#include <stdbool.h>

void stop_on_signals(void);
bool stop_requested(void);
void stop_request(void); /* the same from inside, from any thread */

#endif

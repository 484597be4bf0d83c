/* profile.h - where the time goes, op by op.
 *
 * Wraps the engine's table of operations: the product's own path knows nothing of it.  On the CPU
 * an op has finished when it returns, so a clock around each call is enough. */
#ifndef BENCH_ENGINE_PROFILE_H
#define BENCH_ENGINE_PROFILE_H

#include "engine/engine.h"

void profile_begin(struct engine *en);
/* Takes the wrapper off and prints each op's share of the time since profile_begin(), in percent;
 * "rest" is what no op took. */
void profile_end(struct engine *en, const char *name);

#endif

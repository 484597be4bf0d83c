/* share.h - the gateways tell each other, by way of Redis, what each account uses.
 *
 * A thread tells each SHARE_EVERY_MS what this gateway let in since and has in flight, many accounts at a
 * time, and learns what all of them let in (quota.h); no call ever waits for that.  So an account
 * that sends to n gateways gets its limit, and what the others let in within that moment on top,
 * once: requests above it are counted too, and come back later.
 *
 * While Redis is away each gateway counts for itself, and says so in its log. */
#ifndef API_SHARE_H
#define API_SHARE_H

#include "api/conf.h"
#include "base/err.h"

#define SHARE_EVERY_MS  200
#define SHARE_POSTS_MAX 1024 /* accounts told of in one round, and as many again whose tokens are */

struct flight;
struct quota;
struct share;

/* quota and flight must outlive it. */
struct share *share_create(const struct gateway_conf *conf, struct quota *quota,
                           struct flight *flight, struct err *e);
void share_free(struct share *s); /* NULL is fine */

#endif

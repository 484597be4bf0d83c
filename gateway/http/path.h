/* path.h - a request target taken apart: path segments, query, and the patterns that match them.
 *
 * The target is split at "/" first and decoded segment by segment afterwards, so an encoded slash
 * stays inside its segment and "+" is a plus.  A NUL, a bad escape or too many parts make the whole
 * target invalid. */
#ifndef HTTP_PATH_H
#define HTTP_PATH_H

#include <stdbool.h>
#include <stddef.h>

#define PATH_TARGET_MAX   8192
#define PATH_SEGMENTS_MAX 12
#define PATH_QUERY_MAX    16

struct path {
    char *text; /* owned; what the pointers below point into */
    int segment_count;
    const char *segments[PATH_SEGMENTS_MAX];
    int query_count;
    struct {
        const char *name, *value;
    } query[PATH_QUERY_MAX];
};

/* -1: not a target that we could ever serve (or no memory). */
int path_init(struct path *p, const char *target);
void path_clear(struct path *p);

/* The pattern is "/api/v1/sessions/STAR/finish" with "*" for STAR; "*" stands for exactly one
 * non-empty segment. stars gets the index of each segment that a "*" matched. */
bool path_matches(const struct path *p, const char *pattern, int stars[PATH_SEGMENTS_MAX]);

/* The first query value of that name, or NULL. */
const char *path_query(const struct path *p, const char *name);

#endif

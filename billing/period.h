/* period.h - times as people write them, and a report's span cut at whole hours. */
#ifndef BILLING_PERIOD_H
#define BILLING_PERIOD_H

#include <stdint.h>
#include "base/err.h"

#define TIME_TEXT_SIZE 40
#define TIME_BEGIN     INT64_MIN /* before everything: Postgres' -infinity */
#define TIME_END       INT64_MAX /* after everything: infinity */

/* "2026-11-24" (midnight UTC) or RFC 3339 with a zone ("2026-11-24T10:30:00+01:00"), years 1970 to
 * 9999, as microseconds since 1970.  ERR_USER names `what`, the text and what was expected. */
int time_parse(const char *what, const char *text, int64_t *out_us, struct err *e) WARN_UNUSED;

/* RFC 3339 in UTC with microseconds, or "-infinity" and "infinity"; returns out (TIME_TEXT_SIZE
 * bytes). */
char *time_text(int64_t us, char *out);

/* [from, to) as whole hours [hour_from, hour_to) and the two cut ends [from, head_to), [tail_from,
 * to). An empty part has its first number >= its second. */
struct period {
    int64_t from, to;
    int64_t hour_from, hour_to, head_to, tail_from;
};
/* ERR_USER when from is not before to. */
int period_cut(int64_t from, int64_t to, struct period *out, struct err *e) WARN_UNUSED;

#endif

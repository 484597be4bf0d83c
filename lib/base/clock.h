/* clock.h - the two clocks.  Durations and deadlines use the monotonic one. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>

int64_t clock_mono_ms(void);
int64_t clock_mono_us(void);
int64_t clock_wall_ms(void); /* since 1970, UTC */
void clock_sleep_ms(int64_t ms);

/* "2026-11-23T19:18:42.370Z" into text, which has room for 32 bytes; returns text. */
char *clock_rfc3339(int64_t wall_ms, char *text);

#endif

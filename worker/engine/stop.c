/* stop.c - has a sample just said one of its stop strings? */
#include <string.h>
#include "engine/model.h"

/* A hit must end among the fresh bytes: an earlier one would have ended the sample already.  A
 * token may carry bytes past the end of the stop string. */
bool stop_string_hit(const char *text, size_t size, size_t fresh, const char *const *stops,
                     int count)
{
    if (fresh > size) fresh = size;
    for (int i = 0; i < count; i++) {
        size_t n = strlen(stops[i]);
        if (!n || n > size) continue;
        size_t first_end = size - fresh + 1;
        for (size_t end = first_end > n ? first_end : n; end <= size; end++)
            if (!memcmp(text + end - n, stops[i], n)) return true;
    }
    return false;
}

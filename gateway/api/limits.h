/* limits.h - what the families of endpoints bound alike. */
#ifndef API_LIMITS_H
#define API_LIMITS_H

#define TTL_MIN_S    3600
#define TTL_MAX_S    315360000 /* ten years */
#define METADATA_MAX 65536     /* bytes of user_metadata */
#define PATH_SIZE    (ID_SIZE + 200) /* a checkpoint's URI, with its NUL */

#endif

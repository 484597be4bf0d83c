/* blobs.h - the data folder, for those who do not write it: open a file, remove a folder, link one.
 *
 * A folder is named relative to the root and has no "..".  Every step is an openat() of one name
 * that may not be a link, so nothing outside the root can be reached. */
#ifndef BASE_BLOBS_H
#define BASE_BLOBS_H

#include <stdint.h>
#include "base/err.h"

/* Removes the folder root/dir with all that is in it.  A folder that is not there is fine. */
int blobs_remove(const char *root, const char *dir, struct err *e) WARN_UNUSED;

/* Opens the regular file root/dir/name to read it, and tells its size.  -1: ERR_USER when there is
 * none, else ERR_RETRY. */
int blobs_open(const char *root, const char *dir, const char *name, int64_t *size,
               struct err *e) WARN_UNUSED;

/* Makes the folder root/to (with its parents) of hard links to the files of root/from, or of copies
 * where no link can be had.  Checkpoints
 * are never written to again, so both are whole whichever is removed first.  Doing it again is
 * fine. */
int blobs_link(const char *root, const char *from, const char *to, struct err *e) WARN_UNUSED;

#endif

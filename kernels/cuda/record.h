/* record.h - sequences of calls that come again and again, sent to the device as one.
 *
 * Between cuda_record_begin() and cuda_record_end() all that is asked of the stream is noted: kernels
 * with their arguments, copies, products, and where descriptors lie.  Each sequence has memory for
 * its descriptors of its own, so that the next time they lie in the same places.
 *
 *   The first time every call is made as it is asked for.
 *   The next time with the same key nothing is made at first: each call is compared with the one that
 *   was noted, and the descriptors are written over the old ones.  If at the end all were the same,
 *   the descriptors are uploaded and the calls made as one CUDA graph, which is captured from the
 *   list when it is wanted for the first time.
 *   At the first call that differs the ones before it are made, and it goes on as the first time
 *   does: what is noted from there on replaces what was.
 *
 * Either way the same kernels run on one stream in the order in which they were asked for, with the
 * arguments and descriptors of this time: no bit depends on it.
 *
 * A pointer is an argument like others, or stands in descriptors, which are new each time.  So a
 * graph that names memory which was released is never launched, unless the caller names the same
 * address again, and then it is his.  That is why nobody has to tell of a release. */
#ifndef KERNELS_CUDA_RECORD_H
#define KERNELS_CUDA_RECORD_H

#include "kernels/cuda/cuda.h"

cudaError_t cuda_recorder_open(struct device *d);
void cuda_recorder_close(struct device *d); /* the stream is idle */

/* cuda_stage() between begin and end; NULL when the ring has to do it. */
const void *cuda_record_stage(struct device *d, const void *host, size_t bytes);

/* Makes all calls that were asked for and only compared.  For who is about to free what they name. */
void cuda_record_settle(struct device *d);

/* The same; and the rest, up to the end, is not noted.  For what cannot be made again. */
void cuda_record_stop(struct device *d);

#endif

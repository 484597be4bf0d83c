/* session.c - see session.h. */
#include "session.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

int flags_read(const struct conf_item *items, const char *about, int argc, char **argv,
               struct err *e)
{
    int rest;
    if (conf_read_flags(items, about, argc, argv, &rest, e) < 0) return -1;
    if (rest < argc)
        return err_set(e, ERR_USER, "unexpected word \"%.80s\", see --help", argv[rest]);
    return 0;
}

int flag_number(const char *name, const char *text, double *out, struct err *e)
{
    char *end;
    errno = 0;
    *out = strtod(text, &end);
    if (errno || end == text || *end || !isfinite(*out))
        return err_set(e, ERR_USER, "setting %s is \"%.40s\", expected a number", name, text);
    return 0;
}

struct engine *session_engine(const struct session *s, struct err *e)
{
    return engine_open(&(struct engine_conf){.model_dir = s->model,
                                             .device = s->device,
                                             .threads = (int)s->threads,
                                             .ranks = (int)s->ranks,
                                             .replicas = (int)s->replicas,
                                             .scratch_bytes_max = (size_t)s->scratch_mb << 20,
                                             .kv_bytes_max = (size_t)s->kv_mb << 20,
                                             .weights = s->weights,
                                             .paged_moments = s->paged_moments},
                       e);
}

int session_adapter(struct engine *en, const struct session *s, bool trainable, struct adapter **ad,
                    struct err *e)
{
    if (!*s->adapter) return 0;
    *ad = adapter_load(en, s->adapter, NULL, trainable, false, e);
    return *ad ? 0 : -1;
}

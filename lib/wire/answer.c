/* answer.c - see answer.h. */
#include "wire/answer.h"

#include <math.h>
#include "wire/json.h"

char *answer_created(const char *run, size_t *size, struct err *e)
{
    return wire_json_write(json_pack("{s:s, s:s}", "model_id", run, "type", "create_model"), size,
                           e);
}

char *answer_metrics(const struct metric *metrics, int count, size_t *size, struct err *e)
{
    json_t *values = json_object();
    for (int i = 0; i < count; i++)
        if (isfinite(metrics[i].value))
            json_object_set_new(values, metrics[i].name, json_real(metrics[i].value));
    return wire_json_write(json_pack("{s:o}", "metrics", values), size, e);
}

char *answer_saved(const char *path, size_t *size, struct err *e)
{
    return wire_json_write(json_pack("{s:s, s:s}", "path", path, "type", "save_weights"), size, e);
}

char *answer_saved_sampler(const char *path, const char *sampler, size_t *size, struct err *e)
{
    const char *type = "save_weights_for_sampler";
    json_t *j = *sampler ? json_pack("{s:n, s:s, s:s}", "path", "sampling_session_id", sampler,
                                     "type", type)
                         : json_pack("{s:s, s:s}", "path", path, "type", type);
    return wire_json_write(j, size, e);
}

char *answer_saved_external(const char *path, size_t *size, struct err *e)
{
    return wire_json_write(json_pack("{s:s, s:s}", "path", path, "type", "save_weights_external"),
                           size, e);
}

char *answer_loaded(const char *run, const char *path, size_t *size, struct err *e)
{
    return wire_json_write(
        json_pack("{s:s, s:s, s:s}", "path", path, "model_id", run, "type", "load_weights"), size,
        e);
}

int cancel_decode(const void *bytes, size_t size, char job_id[ID_SIZE], struct err *e)
{
    json_t *j = wire_json_read(bytes, size, e);
    if (!j) return -1;
    int rc = wire_json_text(j, "", "job_id", true, job_id, ID_SIZE, e);
    json_decref(j);
    return rc;
}

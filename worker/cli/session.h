/* session.h - what every command begins with: its flags, and the engine and adapter they name. */
#ifndef CLI_SESSION_H
#define CLI_SESSION_H

#include <stdint.h>
#include "base/conf.h"
#include "engine/engine.h"

struct session {
    const char *model, *device, *weights, *adapter;
    int64_t threads, scratch_mb, kv_mb, ranks, replicas;
    bool paged_moments;
};

/* Lines of a settings table. */
#define SESSION_SETTINGS(s)                                                                        \
    {"model", CONF_STR, &(s)->model, NULL, 0, 0, "Hugging Face folder of a Qwen3 model"},          \
        {"device", CONF_STR, &(s)->device, "cpu", 0, 0, "cpu, or cuda:N in a build that has it"},  \
        {"weights",                                                                                \
         CONF_STR,                                                                                 \
         &(s)->weights,                                                                            \
         "auto",                                                                                   \
         0,                                                                                        \
         0,                                                                                        \
         "how the base is kept: fp32, bf16, or auto: what its files hold"},                        \
        {"threads", CONF_INT, &(s)->threads, "2", 1, 256, "threads of the arithmetic"},            \
        {"scratch_mb", CONF_INT, &(s)->scratch_mb, "4096", 1, 1 << 24, "memory of one pass"},      \
        {"kv_mb", CONF_INT, &(s)->kv_mb, "1024", 1, 1 << 24, "memory of running samples"}
#define SESSION_RANKS(s)                                                                           \
    {"ranks", CONF_INT, &(s)->ranks, "1", 1, ENGINE_RANKS_MAX, "devices that share every layer"},  \
        {"replicas",                                                                               \
         CONF_INT,                                                                                 \
         &(s)->replicas,                                                                           \
         "1",                                                                                      \
         1,                                                                                        \
         ENGINE_RANKS_MAX,                                                                         \
         "times that all of it is there, to share batches and requests"}
#define SESSION_ADAPTER(s)                                                                         \
    {"adapter", CONF_STR, &(s)->adapter, "", 0, 0, "folder of a saved adapter to apply"}

/* conf_read_flags(), which also refuses words that belong to no flag. */
int flags_read(const struct conf_item *items, const char *about, int argc, char **argv,
               struct err *e) WARN_UNUSED;

/* A setting of type CONF_STR that is to be a finite number. */
int flag_number(const char *name, const char *text, double *out, struct err *e) WARN_UNUSED;

struct engine *session_engine(const struct session *s, struct err *e);

/* *ad stays NULL without --adapter. */
int session_adapter(struct engine *en, const struct session *s, bool trainable, struct adapter **ad,
                    struct err *e) WARN_UNUSED;

#endif

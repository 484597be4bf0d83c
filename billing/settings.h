/* settings.h - what a billing command is told by flags and environment (base/conf.h). */
#ifndef BILLING_SETTINGS_H
#define BILLING_SETTINGS_H

#include <stdint.h>
#include "base/err.h"

struct settings {
    const char *postgres, *kafka_brokers, *kafka_config, *topic_prefix;
    const char *secret_file, *migrations_dir;
    int64_t batch_max, kafka_replication;
};

/* Which of them a command cannot do without. */
enum { NEEDS_POSTGRES = 1, NEEDS_KAFKA = 2, NEEDS_SECRET = 4 };

int settings_read(struct settings *s, int needs, const char *about, int argc, char **argv,
                  struct err *e) WARN_UNUSED;

#endif

/* args.h - what is said to one command: its words and its own flags.
 *
 * Unlike settings (base/conf.h) these never come from the environment: a price must not change
 * because TINWORKS_MODEL happens to be set. */
#ifndef BILLING_ARGS_H
#define BILLING_ARGS_H

#include <stdbool.h>
#include "base/err.h"

#define ARGS_MAX 8

struct arg_spec {
    const char *name;  /* without the dashes; NULL ends the list */
    const char *value; /* what stands for its value in help; NULL: a switch */
    const char *help;
};

struct args {
    const struct arg_spec *specs;
    const char *values[ARGS_MAX]; /* beside specs; NULL: not given, "" for a switch that is */
    const char *words[ARGS_MAX];
    int word_count;
    bool help;
};

/* Takes words and known flags out of argv[0..argc); the others, with their values, go to rest
 * (argc + 1 entries; *rest_count of them) for conf_read().  ERR_USER for a flag without its value
 * or more than words_max words. */
int args_read(struct args *a, const struct arg_spec *specs, int words_max, int argc, char **argv,
              char **rest, int *rest_count, struct err *e) WARN_UNUSED;

const char *arg(const struct args *a, const char *name); /* NULL: not given */
/* ERR_USER when it was not given. */
int arg_must(const struct args *a, const char *name, const char **out, struct err *e) WARN_UNUSED;
void args_print(const struct arg_spec *specs);

#endif

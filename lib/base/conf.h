/* conf.h - settings of a process: one table of name, type, default and help.
 *
 * A setting `kafka_brokers` is read from, later wins: its default, the variable
 * TINWORKS_KAFKA_BROKERS, the flag --kafka-brokers VALUE.  `--help` prints the
 * table and exits 0.  Strings are kept as pointers into argv or the environment. */
#ifndef BASE_CONF_H
#define BASE_CONF_H

#include <stdbool.h>
#include <stdint.h>
#include "base/err.h"

enum conf_type {
    CONF_STR,  /* const char * */
    CONF_INT,  /* int64_t      */
    CONF_BOOL, /* bool: 1/0/true/false; the flag alone means true */
};

struct conf_item {
    const char *name; /* snake_case; NULL ends the table */
    enum conf_type type;
    void *value;              /* where it goes, of the type above */
    const char *preset;       /* default, as text; NULL: the setting must be given */
    int64_t int_min, int_max; /* CONF_INT only; both 0: no limit */
    const char *help;
};

/* Reads flags from argv[1..]; stops at the first word that is no flag and sets
 * *rest (may be NULL) to its index (argc when there is none).
 * -1 with ERR_USER names the setting, the value and what was expected. */
int conf_read(const struct conf_item *items, const char *about, int argc, char **argv, int *rest,
              struct err *e) WARN_UNUSED;

/* The same for a tool that people type: the environment is not asked, where the same name may mean
 * something to a server (TINWORKS_DATA, TINWORKS_MODEL). */
int conf_read_flags(const struct conf_item *items, const char *about, int argc, char **argv,
                    int *rest, struct err *e) WARN_UNUSED;

#endif

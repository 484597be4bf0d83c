/* commands.h - what main's table points to.
 *
 * Each gets an open (not yet connected) database, its settings and its arguments; it prints to
 * stdout and returns 0, or -1 and why. */
#ifndef BILLING_COMMANDS_H
#define BILLING_COMMANDS_H

#include "base/err.h"
#include "db/db.h"
#include "args.h"
#include "settings.h"

struct command_input {
    const struct settings *settings;
    const struct args *args;
    struct db *db;
};
typedef int command(const struct command_input *in, struct err *e);

command migrate_command;
command account_create, account_list, account_disable, account_enable, account_credit,
    account_limit;
command key_create, key_list, key_revoke;
command price_list, price_set;
command consume_command, usage_command, audit_command;

#define ACCOUNT_ID_SIZE 64
/* The id of an account given by id or name.  ERR_USER when there is none. */
int account_find(struct db *db, const char *id_or_name, char out[ACCOUNT_ID_SIZE],
                 struct err *e) WARN_UNUSED;

#endif

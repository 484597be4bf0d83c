/* main.c - the commands of tinworks-billing, as one table. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/log.h"
#include "bus/bus.h"
#include "commands.h"

static const struct arg_spec account_create_args[] = {
    {"credit-usd", "X", "credit to begin with, in dollars"}, {NULL, NULL, NULL}};
static const struct arg_spec account_credit_args[] = {
    {"usd", "X", "dollars to add; a negative number corrects and needs a reason"},
    {"reason", "TEXT", "kept beside the entry"},
    {NULL, NULL, NULL}};
static const struct arg_spec account_limit_args[] = {
    {"requests-per-minute", "N", "calls but for polls"},
    {"tokens-in-flight", "N", "tokens in line and running"},
    {"runs", "N", "open training runs"},
    {"storage-bytes", "N", "bytes of checkpoints"},
    {NULL, NULL, NULL}};
static const struct arg_spec key_create_args[] = {
    {"account", "ID|NAME", "whose key it is"},
    {"name", "N", "what its owner calls it"},
    {"scopes", "LIST", "some of train,sample,read,finance,admin (train,sample,read)"},
    {NULL, NULL, NULL}};
static const struct arg_spec list_args[] = {{"format", "F", "table, csv or json (table)"},
                                            {NULL, NULL, NULL}};
static const struct arg_spec price_set_args[] = {
    {"model", "M", "a base model, or * for all without a price of their own"},
    {"kind", "K", "prefill, sample or train"},
    {"usd-per-million", "X", "dollars per million tokens, at most 6 decimals"},
    {"from", "T", "when it begins: a date or RFC 3339 time to come (now)"},
    {NULL, NULL, NULL}};
static const struct arg_spec usage_args[] = {
    {"account", "ID|NAME", "one account (all)"},
    {"from", "T", "a date (midnight UTC) or RFC 3339 time, included (the beginning)"},
    {"to", "T", "the same, not included (now)"},
    {"by", "GROUP", "run, day, month, model, kind or account (run)"},
    {"format", "F", "table, csv or json (table)"},
    {NULL, NULL, NULL}};
static const struct arg_spec audit_args[] = {
    {"log", NULL, "also read the results logs whole and compare them"}, {NULL, NULL, NULL}};

static const struct entry {
    const char *group, *name, *words, *about;
    int words_min, words_max, needs;
    const struct arg_spec *args;
    command *run;
    const char *notes;
} entries[] = {
    {"run", NULL, "", "folds results into the ledger until SIGTERM", 0, 0,
     NEEDS_POSTGRES | NEEDS_KAFKA, NULL, consume_command, NULL},
    {"migrate", NULL, "", "brings the database to this program's version", 0, 0, NEEDS_POSTGRES,
     NULL, migrate_command, NULL},
    {"account", "create", "NAME", "makes an account and prints its id", 1, 1, NEEDS_POSTGRES,
     account_create_args, account_create, NULL},
    {"account", "list", "", "accounts with their balances", 0, 0, NEEDS_POSTGRES, list_args,
     account_list, NULL},
    {"account", "disable", "ID|NAME", "lets it read what it has and ask for nothing new", 1, 1,
     NEEDS_POSTGRES, NULL, account_disable, "Gateways notice within 30 s.\n"},
    {"account", "enable", "ID|NAME", "takes that back", 1, 1, NEEDS_POSTGRES, NULL, account_enable,
     NULL},
    {"account", "credit", "ID|NAME", "adds credit, as a double entry", 1, 1, NEEDS_POSTGRES,
     account_credit_args, account_credit, NULL},
    {"account", "limit", "ID|NAME", "sets and shows what it may use", 1, 1, NEEDS_POSTGRES,
     account_limit_args, account_limit,
     "N is a whole number, 0 for no limit, or \"default\" for the gateways' own setting.  Without "
     "flags\nthe limits are shown.  Gateways notice within 30 s.\n"},
    {"key", "create", "", "makes an API key and prints it, this once", 0, 0,
     NEEDS_POSTGRES | NEEDS_SECRET, key_create_args, key_create, NULL},
    {"key", "list", "", "keys, without their secrets", 0, 0, NEEDS_POSTGRES, list_args, key_list,
     NULL},
    {"key", "revoke", "ID", "ends a key", 1, 1, NEEDS_POSTGRES, NULL, key_revoke, NULL},
    {"price", "list", "", "prices and when they are valid", 0, 0, NEEDS_POSTGRES, list_args,
     price_list, NULL},
    {"price", "set", "", "ends a price and begins the next", 0, 0, NEEDS_POSTGRES, price_set_args,
     price_set, NULL},
    {"usage", NULL, "", "tokens and amounts by run, day, month, model, kind or account", 0, 0,
     NEEDS_POSTGRES, usage_args, usage_command,
     "Whole hours come from usage_hours; where --from or --to cuts an hour, that hour's part "
     "comes\n"
     "from job_outcomes and the ledger.  A time is that of the result in the log.  Days and "
     "months\n"
     "are UTC.  Amounts are exact; a price after ~ is an average (it changed within the "
     "period).\n"},
    {"audit", NULL, "", "recomputes every figure and compares; 1 on any difference", 0, 0,
     NEEDS_POSTGRES, audit_args, audit_command,
     "Without --log everything is recomputed from job_outcomes; with it the outcomes themselves "
     "are\n"
     "compared with the logs (kafka_brokers must then be set).\n"},
};
#define ENTRY_COUNT (int)(sizeof entries / sizeof *entries)

static void print_title(const struct entry *it)
{
    char title[64];
    snprintf(title, sizeof title, "%s%s%s%s%s", it->group, it->name ? " " : "",
             it->name ? it->name : "", *it->words ? " " : "", it->words);
    printf("  %-26s%s\n", title, it->about);
}

static void print_commands(void)
{
    printf("tinworks-billing COMMAND [flags]\n\n");
    for (int i = 0; i < ENTRY_COUNT; i++)
        print_title(&entries[i]);
    printf("  %-26s%s\n\nCOMMAND --help shows its flags and settings; docs/billing.md explains.\n",
           "help", "prints this");
}

static void print_help(const struct entry *it)
{
    print_title(it);
    if (it->args) printf("\nflags:\n");
    args_print(it->args);
    if (it->notes) printf("\n%s", it->notes);
    printf("\n");
}

/* The entry that argv begins with; *used is the number of words that name it. */
static const struct entry *find(int argc, char **argv, int *used, struct err *e)
{
    bool group = false;
    for (int i = 0; i < ENTRY_COUNT && argc; i++) {
        const struct entry *it = &entries[i];
        if (strcmp(argv[0], it->group)) continue;
        group = true;
        *used = it->name ? 2 : 1;
        if (!it->name || (argc > 1 && !strcmp(argv[1], it->name))) return it;
    }
    if (group)
        err_set(e, ERR_USER, "\"%s\" wants to know what to do; see tinworks-billing help", argv[0]);
    else
        err_set(e, ERR_USER, "unrecognized command \"%.60s\"; see tinworks-billing help",
                argc ? argv[0] : "");
    return NULL;
}

static int open_and_run(const struct entry *it, const struct args *args, const struct settings *s,
                        struct err *e)
{
    if (args->word_count < it->words_min)
        return err_set(e, ERR_USER, "%s %s must be followed by %s", it->group,
                       it->name ? it->name : "", it->words);
    struct db *db = db_create(s->postgres, "tinworks-billing", e);
    if (!db) return -1;
    int rc = it->run(&(struct command_input){s, args, db}, e);
    db_free(db);
    return rc;
}

static int run_entry(const struct entry *it, int argc, char **argv, struct err *e)
{
    struct args args;
    struct settings settings;
    char title[64], help_flag[] = "--help";
    int rest_count, rc = -1;
    char **rest = calloc((size_t)argc + 3, sizeof *rest);
    if (!rest) return err_set(e, ERR_RETRY, "out of memory");
    snprintf(title, sizeof title, "tinworks-billing %s%s%s", it->group, it->name ? " " : "",
             it->name ? it->name : "");
    rest[0] = title;
    if (args_read(&args, it->args, it->words_max, argc, argv, rest + 1, &rest_count, e) < 0)
        goto out;
    if (args.help) {
        print_help(it);
        rest[++rest_count] = help_flag; /* conf_read() prints the settings and leaves */
    }
    int needs = it->needs;
    if (it->run == audit_command && arg(&args, "log")) needs |= NEEDS_KAFKA;
    if (settings_read(&settings, needs, it->about, rest_count + 1, rest, e) < 0) goto out;
    if (bus_security_read(settings.kafka_config, e) < 0) goto out;
    rc = open_and_run(it, &args, &settings, e);
out:
    free(rest);
    return rc;
}

int main(int argc, char **argv)
{
    struct err e = {0};
    int used = 0;
    if (argc < 2 || !strcmp(argv[1], "help") || !strcmp(argv[1], "--help")) {
        print_commands();
        return argc < 2 ? 2 : EXIT_SUCCESS;
    }
    const struct entry *it = find(argc - 1, argv + 1, &used, &e);
    int rc = it ? run_entry(it, argc - 1 - used, argv + 1 + used, &e) : -1;
    if (fflush(stdout) && !rc) rc = err_set(&e, ERR_RETRY, "could not write to stdout");
    if (e.kind && it && it->run == consume_command)
        log_err("billing.end", &e);
    else if (e.kind)
        fprintf(stderr, "tinworks-billing: %s\n", e.text);
    return rc < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}

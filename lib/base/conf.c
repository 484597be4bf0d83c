/* conf.c - see conf.h.  getopt_long does the parsing of flags. */
#include "base/conf.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ITEMS_MAX 64
#define NAME_MAX_ 64

static void env_name(const char *name, char *out, size_t size)
{
    snprintf(out, size, "TINWORKS_%s", name);
    for (char *c = out; *c; c++)
        *c = (char)toupper((unsigned char)*c);
}

static void flag_name(const char *name, char *out, size_t size)
{
    snprintf(out, size, "%s", name);
    for (char *c = out; *c; c++)
        if (*c == '_') *c = '-';
}

static int set_int(const struct conf_item *it, const char *text, struct err *e)
{
    char *end;
    errno = 0;
    long long n = strtoll(text, &end, 10);
    bool limited = it->int_min || it->int_max;
    if (errno || end == text || *end)
        return err_set(e, ERR_USER, "setting %s is \"%s\", expected a whole number", it->name, text);
    if (limited && (n < it->int_min || n > it->int_max))
        return err_set(e, ERR_USER, "setting %s is %lld, expected %lld to %lld", it->name, n,
                       (long long)it->int_min, (long long)it->int_max);
    *(int64_t *)it->value = n;
    return 0;
}

static int set(const struct conf_item *it, const char *text, struct err *e)
{
    switch (it->type) {
    case CONF_STR:
        *(const char **)it->value = text;
        return 0;
    case CONF_INT:
        return set_int(it, text, e);
    case CONF_BOOL:
        if (!strcmp(text, "1") || !strcmp(text, "true"))
            *(bool *)it->value = true;
        else if (!strcmp(text, "0") || !strcmp(text, "false"))
            *(bool *)it->value = false;
        else
            return err_set(e, ERR_USER, "setting %s is \"%s\", expected true or false", it->name,
                           text);
        return 0;
    }
    return err_set(e, ERR_BUG, "setting %s has no type", it->name);
}

static void print_help(const struct conf_item *items, const char *about, const char *program,
                       bool environment)
{
    printf("%s - %s\n\nsettings%s:\n", program, about,
           environment ? " (flag, then its environment variable)" : "");
    for (const struct conf_item *it = items; it->name; it++) {
        char flag[NAME_MAX_], env[NAME_MAX_ + 16];
        flag_name(it->name, flag, sizeof flag);
        env_name(it->name, env, sizeof env);
        printf(environment ? "  --%s  (%s)\n" : "  --%s\n", flag, env);
        printf("      %s; %s%s\n", it->help, it->preset ? "default " : "must be given",
               it->preset ? it->preset : "");
    }
}

static int read_presets(const struct conf_item *items, bool environment, bool *given,
                        struct err *e)
{
    for (int i = 0; items[i].name; i++) {
        char env[NAME_MAX_ + 16];
        env_name(items[i].name, env, sizeof env);
        const char *text = environment ? getenv(env) : NULL;
        given[i] = text || items[i].preset;
        if (!text) text = items[i].preset;
        if (text && set(&items[i], text, e) < 0) return -1;
    }
    return 0;
}

static int read_all(const struct conf_item *items, const char *about, int argc, char **argv,
                    int *rest, bool environment, struct err *e)
{
    struct option options[ITEMS_MAX + 2] = {0};
    char flags[ITEMS_MAX][NAME_MAX_];
    bool given[ITEMS_MAX] = {0};
    int n = 0;
    for (; items[n].name; n++) {
        if (n == ITEMS_MAX) return err_set(e, ERR_BUG, "more than %d settings", ITEMS_MAX);
        flag_name(items[n].name, flags[n], NAME_MAX_);
        options[n] = (struct option){
            .name = flags[n],
            .has_arg = items[n].type == CONF_BOOL ? optional_argument : required_argument,
            .val = n + 256};
    }
    options[n] = (struct option){.name = "help", .has_arg = no_argument, .val = 'h'};
    if (read_presets(items, environment, given, e) < 0) return -1;

    optind = 0; /* GNU: start afresh, so that a process may read twice */
    for (int c; (c = getopt_long(argc, argv, "+h", options, NULL)) != -1;) {
        if (c == 'h') {
            print_help(items, about, argv[0], environment);
            exit(EXIT_SUCCESS);
        }
        if (c < 256)
            return err_set(e, ERR_USER, "unrecognized flag \"%s\", see --help", argv[optind - 1]);
        if (set(&items[c - 256], optarg ? optarg : "true", e) < 0) return -1;
        given[c - 256] = true;
    }
    for (int i = 0; i < n; i++)
        if (!given[i])
            return err_set(e, ERR_USER, "setting %s must be given (--%s)", items[i].name, flags[i]);
    if (rest) *rest = optind;
    return 0;
}

int conf_read(const struct conf_item *items, const char *about, int argc, char **argv, int *rest,
              struct err *e)
{
    return read_all(items, about, argc, argv, rest, true, e);
}

int conf_read_flags(const struct conf_item *items, const char *about, int argc, char **argv,
                    int *rest, struct err *e)
{
    return read_all(items, about, argc, argv, rest, false, e);
}

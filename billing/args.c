/* args.c - see args.h. */
#include "args.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

static int spec_of(const struct args *a, const char *name, size_t size)
{
    for (int i = 0; a->specs && a->specs[i].name; i++)
        if (strlen(a->specs[i].name) == size && !strncmp(a->specs[i].name, name, size)) return i;
    return -1;
}

/* One flag at argv[*i]; moves *i over its value. */
static int take_flag(struct args *a, int argc, char **argv, int *i, char **rest, int *rest_count,
                     struct err *e)
{
    const char *name = argv[*i] + 2;
    const char *equals = strchr(name, '=');
    size_t size = equals ? (size_t)(equals - name) : strlen(name);
    int at = spec_of(a, name, size);
    if (at < 0) { /* a setting, or a mistake that conf_read() will name */
        rest[(*rest_count)++] = argv[*i];
        if (!equals && *i + 1 < argc) rest[(*rest_count)++] = argv[++*i];
        return 0;
    }
    if (!a->specs[at].value) {
        if (equals) return err_set(e, ERR_USER, "--%s takes no value", a->specs[at].name);
        a->values[at] = "";
        return 0;
    }
    if (!equals && *i + 1 == argc)
        return err_set(e, ERR_USER, "--%s must be followed by %s", a->specs[at].name,
                       a->specs[at].value);
    a->values[at] = equals ? equals + 1 : argv[++*i];
    return 0;
}

int args_read(struct args *a, const struct arg_spec *specs, int words_max, int argc, char **argv,
              char **rest, int *rest_count, struct err *e)
{
    assert(words_max <= ARGS_MAX);
    memset(a, 0, sizeof *a);
    a->specs = specs;
    *rest_count = 0;
    for (int i = 0; i < argc; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            a->help = true;
        } else if (!strncmp(argv[i], "--", 2)) {
            if (take_flag(a, argc, argv, &i, rest, rest_count, e) < 0) return -1;
        } else if (a->word_count == words_max) {
            return err_set(e, ERR_USER, "unexpected word \"%.60s\", see --help", argv[i]);
        } else {
            a->words[a->word_count++] = argv[i];
        }
    }
    return 0;
}

const char *arg(const struct args *a, const char *name)
{
    int at = spec_of(a, name, strlen(name));
    assert(at >= 0);
    return a->values[at];
}

int arg_must(const struct args *a, const char *name, const char **out, struct err *e)
{
    *out = arg(a, name);
    if (*out) return 0;
    return err_set(e, ERR_USER, "--%s must be given, see --help", name);
}

void args_print(const struct arg_spec *specs)
{
    for (; specs && specs->name; specs++) {
        int at = printf("  --%s%s%s", specs->name, specs->value ? " " : "",
                        specs->value ? specs->value : "");
        printf("%*s%s\n", at < 26 ? 26 - at : 1, "", specs->help);
    }
}

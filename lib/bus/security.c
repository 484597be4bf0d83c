/* security.c - how a guarded cluster is reached: see bus.h. */
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "bus/bus.h"
#include "conf.h"

#define PROPERTIES_MAX    16
#define PROPERTY_LINE_MAX 1024

/* Names of librdkafka that say how to get in, and nothing that changes what we promise. */
static const char *const allowed[] = {
    "security.protocol",
    "sasl.mechanism",
    "sasl.username",
    "sasl.password",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.endpoint.identification.algorithm",
};
#define ALLOWED (sizeof allowed / sizeof *allowed)

/* Written once, before there are threads. */
static struct {
    char name[48], value[PROPERTY_LINE_MAX];
} properties[PROPERTIES_MAX];
static int property_count;

static char *trimmed(char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    for (size_t n = strlen(s); n && isspace((unsigned char)s[n - 1]);)
        s[--n] = '\0';
    return s;
}

static int add(const char *name, const char *value, int line, const char *path, struct err *e)
{
    bool known = false;
    for (size_t i = 0; i < ALLOWED; i++)
        known |= !strcmp(allowed[i], name);
    if (!known)
        return err_set(e, ERR_USER,
                       "%s, line %d: the property \"%.60s\" is not one of security.*, sasl.* and "
                       "ssl.* that we take (docs/operations.md)",
                       path, line, name);
    if (property_count == PROPERTIES_MAX)
        return err_set(e, ERR_USER, "%s has more than %d properties", path, PROPERTIES_MAX);
    snprintf(properties[property_count].name, sizeof properties->name, "%s", name);
    snprintf(properties[property_count].value, sizeof properties->value, "%s", value);
    property_count++;
    return 0;
}

/* A line is empty, a comment or name=value. */
static int read_line(char *text, int line, const char *path, struct err *e)
{
    char *name = trimmed(text), *equals = strchr(name, '=');
    if (!*name || *name == '#') return 0;
    if (!equals)
        return err_set(e, ERR_USER, "%s, line %d: no \"=\", expected name=value", path, line);
    *equals = '\0';
    return add(trimmed(name), trimmed(equals + 1), line, path, e);
}

static int read_file(FILE *f, const char *path, struct err *e)
{
    char text[PROPERTY_LINE_MAX];
    struct stat st;
    if (fstat(fileno(f), &st) < 0 || !S_ISREG(st.st_mode))
        return err_set(e, ERR_USER, "\"%s\" is no regular file", path);
    if (st.st_mode & (S_IRWXG | S_IRWXO))
        return err_set(e, ERR_USER,
                       "\"%s\" has mode %03o, expected 600 or less: it may hold a password", path,
                       (unsigned)(st.st_mode & 0777));
    for (int line = 1; fgets(text, sizeof text, f); line++) {
        if (!strchr(text, '\n') && !feof(f))
            return err_set(e, ERR_USER, "%s, line %d: longer than %zu characters", path, line,
                           sizeof text - 2);
        if (read_line(text, line, path, e) < 0) return -1;
    }
    return ferror(f) ? err_set(e, ERR_RETRY, "could not read \"%s\"", path) : 0;
}

int bus_security_read(const char *path, struct err *e)
{
    property_count = 0;
    if (!path || !*path) return 0;
    FILE *f = fopen(path, "re");
    if (!f) return err_set(e, ERR_USER, "cannot read \"%s\": %s", path, strerror(errno));
    int rc = read_file(f, path, e);
    fclose(f);
    return rc;
}

int bus_security_apply(rd_kafka_conf_t *conf, struct err *e)
{
    char why[256];
    for (int i = 0; i < property_count; i++)
        if (rd_kafka_conf_set(conf, properties[i].name, properties[i].value, why, sizeof why) !=
            RD_KAFKA_CONF_OK) /* the text may hold the value: a password's is kept to ourselves */
            return err_set(e, ERR_USER, "the Kafka property %s has a value that is not understood",
                           properties[i].name);
    return 0;
}

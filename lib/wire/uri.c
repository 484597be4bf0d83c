/* uri.c - names and URIs of checkpoints, as both clients write them; see payload.h. */
#include <stdio.h>
#include <string.h>
#include "wire/payload.h"
#include "wire/text.h"

#define NAME_LENGTH_MAX 128

int checkpoint_name_check(const char *name, struct err *e)
{
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t length = strlen(name);
    bool good = length && length <= NAME_LENGTH_MAX && strspn(name, allowed) == length &&
                name[0] != '.' && name[0] != '-';
    if (good) return 0;
    return err_set(e, ERR_USER,
                   "checkpoint name \"%.140s\", expected 1 to %d of letters, digits, \".\", \"_\" "
                   "and \"-\", not beginning with \".\" or \"-\"",
                   name, NAME_LENGTH_MAX);
}

/* In the URI's order; hpcai's may leave `inner` out, and then it looks like the plain form that its
 * own service writes. */
static const struct form {
    enum uri_scheme scheme;
    const char *kind, *outer, *inner;
} forms[] = {
    {URI_TINKER, "training", "weights", NULL},
    {URI_TINKER, "sampler", "sampler_weights", NULL},
    {URI_TINKER, "external", "external_weights", NULL},
    {URI_HPCAI, "training", "training", "weights"},
    {URI_HPCAI, "sampler", "sampler", "sampler_weights"},
};
#define FORMS (sizeof forms / sizeof *forms)
static const char *const prefixes[] = {[URI_TINKER] = "tinker://", [URI_HPCAI] = "hpcai://"};

static int bad_uri(const char *uri, struct err *e)
{
    return err_set(e, ERR_USER,
                   "checkpoint \"%.200s\", expected tinker://<run>/weights/<name>, "
                   "tinker://<run>/sampler_weights/<name> or hpcai://<run>/<training or "
                   "sampler>/<name>",
                   uri);
}

/* Copies the text up to the next '/' and returns what comes after it, or NULL. */
static const char *take_part(const char *from, char *out, size_t size)
{
    const char *slash = strchr(from, '/');
    size_t length = slash ? (size_t)(slash - from) : 0;
    if (!length || length >= size) return NULL;
    memcpy(out, from, length);
    out[length] = '\0';
    return slash + 1;
}

static const struct form *form_of(enum uri_scheme scheme, const char *outer)
{
    for (size_t i = 0; i < FORMS; i++)
        if (forms[i].scheme == scheme && !strcmp(forms[i].outer, outer)) return &forms[i];
    return NULL;
}

/* name without "<inner>/" in front, if it has that. */
static const char *skip_inner(const struct form *form, const char *name)
{
    size_t length = form->inner ? strlen(form->inner) : 0;
    bool there = length && !strncmp(name, form->inner, length) && name[length] == '/';
    return there ? name + length + 1 : name;
}

int checkpoint_uri_parse(const char *uri, struct checkpoint_ref *out, struct err *e)
{
    char outer[32];
    enum uri_scheme scheme = URI_TINKER;
    *out = (struct checkpoint_ref){.seq = -1};
    if (!strncmp(uri, prefixes[URI_HPCAI], strlen(prefixes[URI_HPCAI]))) scheme = URI_HPCAI;
    if (strncmp(uri, prefixes[scheme], strlen(prefixes[scheme])) != 0) return bad_uri(uri, e);
    const char *rest = take_part(uri + strlen(prefixes[scheme]), out->run, sizeof out->run);
    const char *name = rest ? take_part(rest, outer, sizeof outer) : NULL;
    if (!name || !text_is_id(out->run, sizeof out->run)) return bad_uri(uri, e);
    const struct form *form = form_of(scheme, outer);
    if (!form) return bad_uri(uri, e);
    name = skip_inner(form, name);
    if (checkpoint_name_check(name, e) < 0) return -1;
    strcpy(out->kind, form->kind);
    memcpy(out->name, name, strlen(name) + 1);
    return 0;
}

int checkpoint_uri_make(char *out, size_t size, enum uri_scheme scheme,
                        const struct checkpoint_ref *ref, struct err *e)
{
    const struct form *form = NULL;
    for (size_t i = 0; i < FORMS && !form; i++)
        if (forms[i].scheme == scheme && !strcmp(forms[i].kind, ref->kind)) form = &forms[i];
    if (!form)
        return err_set(e, ERR_USER, "a checkpoint of kind \"%s\" has no %s URI", ref->kind,
                       prefixes[scheme]);
    int n = snprintf(out, size, "%s%s/%s/%s%s%s", prefixes[scheme], ref->run, form->outer,
                     form->inner ? form->inner : "", form->inner ? "/" : "", ref->name);
    if (n < 0 || (size_t)n >= size)
        return err_set(e, ERR_USER, "the URI of checkpoint \"%.140s\" is too long", ref->name);
    return 0;
}

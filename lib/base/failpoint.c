/* failpoint.c - see failpoint.h. */
#include "base/failpoint.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"

#define POINTS_MAX 64
#define TEXT_SIZE  512
#define PATH_SIZE  1024

enum action { ACT_NONE, ACT_KILL, ACT_TERM, ACT_STOP, ACT_ERR, ACT_DELAY };

struct orders {
    enum action action;
    long nth, ms;
    bool keep;
    char match[TEXT_SIZE];
};

/* Passes of each point since it was armed. */
static struct {
    const char *name;
    long passes;
} counts[POINTS_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static bool path_of(char out[PATH_SIZE], const char *prefix, const char *name, const char *suffix)
{
    const char *dir = getenv("TINWORKS_FAILPOINTS");
    if (!dir || !*dir) return false;
    return snprintf(out, PATH_SIZE, "%s/%s%s%s", dir, prefix, name, suffix) < PATH_SIZE;
}

static void read_word(struct orders *o, const char *word)
{
    static const struct {
        const char *name;
        enum action action;
    } actions[] = {
        {"kill", ACT_KILL}, {"term", ACT_TERM}, {"stop", ACT_STOP},
        {"err", ACT_ERR},   {"delay", ACT_DELAY}};
    for (size_t i = 0; i < sizeof actions / sizeof *actions; i++)
        if (!strcmp(word, actions[i].name)) o->action = actions[i].action;
    if (!strncmp(word, "nth=", 4)) o->nth = atol(word + 4);
    if (!strncmp(word, "ms=", 3)) o->ms = atol(word + 3);
    if (!strncmp(word, "match=", 6)) snprintf(o->match, sizeof o->match, "%s", word + 6);
    if (!strcmp(word, "keep")) o->keep = true;
}

static bool armed(const char *name, struct orders *o)
{
    char path[PATH_SIZE], text[TEXT_SIZE] = "", *rest = NULL;
    if (!path_of(path, "", name, "")) return false;
    FILE *f = fopen(path, "re");
    if (!f) return false;
    size_t size = fread(text, 1, sizeof text - 1, f);
    text[size] = '\0';
    fclose(f);
    *o = (struct orders){.nth = 1, .ms = 1000};
    for (char *word = strtok_r(text, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest))
        read_word(o, word);
    return o->action != ACT_NONE;
}

static long *count_of(const char *name)
{
    for (int i = 0; i < POINTS_MAX; i++) {
        if (!counts[i].name) counts[i].name = name;
        if (!strcmp(counts[i].name, name)) return &counts[i].passes;
    }
    abort(); /* more points than the table holds */
}

/* Whoever renames the file fires. */
static bool take(const char *name)
{
    char path[PATH_SIZE], fired[PATH_SIZE];
    return path_of(path, "", name, "") && path_of(fired, "", name, ".fired") &&
           rename(path, fired) == 0;
}

/* Is it now? */
static bool due(const char *name, const char *subject, struct orders *o)
{
    bool fires = false;
    pthread_mutex_lock(&lock);
    long *passes = count_of(name);
    if (!armed(name, o))
        *passes = 0;
    else if (!*o->match || (subject && strstr(subject, o->match)))
        fires = ++*passes >= o->nth && (o->keep || take(name));
    if (fires && !o->keep) *passes = 0;
    pthread_mutex_unlock(&lock);
    return fires;
}

int failpoint(const char *name, const char *subject, struct err *e)
{
    struct orders o;
    if (!due(name, subject, &o)) return 0;
    switch (o.action) {
    case ACT_KILL:
        kill(getpid(), SIGKILL);
        for (;;)
            pause();
    case ACT_TERM:
        kill(getpid(), SIGTERM);
        return 0;
    case ACT_STOP:
        raise(SIGSTOP); /* to this thread, which goes no step further; kill() may tell another one */
        return 0;
    case ACT_DELAY:
        clock_sleep_ms((int)o.ms);
        return 0;
    default:
        return err_set(e, ERR_RETRY, "failpoint \"%s\"", name);
    }
}

void failpoint_pass(const char *name, const char *subject)
{
    if (failpoint(name, subject, NULL) < 0) abort();
}

bool mutation(const char *name)
{
    char path[PATH_SIZE];
    return path_of(path, "mut.", name, "") && access(path, F_OK) == 0;
}

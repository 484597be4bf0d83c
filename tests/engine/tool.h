/* tool.h - for tests: our command line tools, run as a user runs them. */
#ifndef TESTS_ENGINE_TOOL_H
#define TESTS_ENGINE_TOOL_H

#include "world.h"

#include <jansson.h>
#include <sys/wait.h>

#define SKIPPED 77 /* what ctest takes for "skipped" */

struct ran {
    int code; /* of its exit; -1: a signal ended it */
    char *out, *err;
};

static inline void ran_clear(struct ran *r)
{
    free(r->out);
    free(r->err);
}

/* Runs a command line; what it says goes through files in f. */
static inline struct ran run_tool(const struct folder *f, const char *fmt, ...)
{
    char command[4096], whole[5120];
    struct ran r;
    size_t size;
    va_list va;
    va_start(va, fmt);
    int n = vsnprintf(command, sizeof command, fmt, va);
    va_end(va);
    assert_in_range(n, 1, sizeof command - 1);
    snprintf(whole, sizeof whole, "%s >%s/out 2>%s/err </dev/null", command, f->path, f->path);
    int status = system(whole);
    r.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    r.out = folder_get(folder_at(f, "out"), &size);
    r.err = folder_get(folder_at(f, "err"), &size);
    return r;
}

/* ------------------------------------------------------------------ cases recorded from PyTorch */

static inline void case_path(char *out, size_t size, const char *name)
{
    snprintf(out, size, "%s/shapes/%s.json", FIXTURES, name);
}

/* Makes the model that a case names in the folder "model". */
static inline void case_make_model(const struct folder *f, const char *name)
{
    char path[512];
    json_error_t at;
    case_path(path, sizeof path, name);
    json_t *root = json_load_file(path, 0, &at);
    if (!root) fail_msg("%s: %s", path, at.text);
    struct ran r = run_tool(f, "%s make %s --tokenizer %s --out %s/model", MODEL_TOOL,
                            json_string_value(json_object_get(root, "make")), TOKENIZER, f->path);
    if (r.code) fail_msg("%s", r.err);
    ran_clear(&r);
    json_decref(root);
}

#endif

/* err.h - how a failure travels.
 *
 * What can fail returns int (0 or -1) or a pointer (NULL) and takes a
 * `struct err *e` last.  The kind answers the caller's two questions: whose
 * fault, and what now?  The text is for its reader: lower case, no full stop,
 * what was tried, the value in quotes. */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#define WARN_UNUSED          __attribute__((warn_unused_result))
#define PRINTF_LIKE(fmt, va) __attribute__((format(printf, fmt, va)))

enum err_kind {
    ERR_NONE = 0,
    ERR_USER,  /* the request is wrong: answer it, never retry it      */
    ERR_RETRY, /* the world was not ready: try again later             */
    ERR_BUG,   /* we broke our own promise: answer "server", log error */
    ERR_LOST,  /* this process cannot go on (device context is gone)   */
};

#define ERR_TEXT_MAX 512

struct err {
    enum err_kind kind;
    char text[ERR_TEXT_MAX];
};

/* Fills e (which may be NULL) and returns -1, so that `return err_set(...)` reads well. */
int err_set(struct err *e, enum err_kind kind, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Puts "prefix: " before the text that is there; keeps the kind; returns -1. */
int err_prefix(struct err *e, const char *fmt, ...) PRINTF_LIKE(2, 3);

void err_clear(struct err *e);

/* "user", "retry", "bug", "lost", "none" */
const char *err_kind_name(enum err_kind kind);

#endif

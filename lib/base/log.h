/* log.h - one event, one line, on stderr: `time level event key=value ...`.
 *
 * error: someone must act; warn: odd, handled; info: a fact of the business;
 * debug: off unless TINWORKS_LOG=debug.  An error is returned or logged, never
 * both.  Prompts, tokens, keys and weights never appear.  Safe from any thread. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include "base/err.h"

enum log_level { LOG_DEBUG, LOG_INFO, LOG_WARN, LOG_ERROR };

/* fmt is the key=value part, printf style: log_info("worker.ready", "model=%s", m). */
void log_event(enum log_level level, const char *event, const char *fmt, ...) PRINTF_LIKE(3, 4);
void log_set_level(enum log_level level);

#define log_debug(...) log_event(LOG_DEBUG, __VA_ARGS__)
#define log_info(...)  log_event(LOG_INFO, __VA_ARGS__)
#define log_warn(...)  log_event(LOG_WARN, __VA_ARGS__)
#define log_error(...) log_event(LOG_ERROR, __VA_ARGS__)

/* Logs e at error level, or nothing when e->kind is ERR_NONE. */
void log_err(const char *event, const struct err *e);

#endif

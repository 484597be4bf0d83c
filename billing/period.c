/* period.c - see period.h. */
#include "period.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define SECOND_US 1000000LL
#define HOUR_US   (3600 * SECOND_US)

/* Reads exactly `digits` digits and the separator after them (0: none) and moves on. */
static bool number(const char **at, int digits, char separator, int *out)
{
    *out = 0;
    for (int i = 0; i < digits; i++, (*at)++) {
        if (!isdigit((unsigned char)**at)) return false;
        *out = *out * 10 + (**at - '0');
    }
    if (!separator) return true;
    if (**at != separator) return false;
    (*at)++;
    return true;
}

/* ".5" to ".999999"; digits after the sixth are below what we keep. */
static bool fraction(const char **at, int64_t *us)
{
    if (**at != '.') return true;
    (*at)++;
    if (!isdigit((unsigned char)**at)) return false;
    for (int64_t unit = SECOND_US / 10; isdigit((unsigned char)**at); unit /= 10, (*at)++)
        *us += (**at - '0') * unit;
    return true;
}

/* "Z", "+01:00", "-0x..." -> seconds east of UTC */
static bool zone(const char **at, int *east_s)
{
    int sign = **at == '-' ? -1 : 1, hours, minutes;
    *east_s = 0;
    if (**at == 'Z' || **at == 'z') {
        (*at)++;
        return true;
    }
    if (**at != '+' && **at != '-') return false;
    (*at)++;
    if (!number(at, 2, ':', &hours) || !number(at, 2, 0, &minutes)) return false;
    *east_s = sign * (hours * 3600 + minutes * 60);
    return hours < 24 && minutes < 60;
}

static bool clock_part(const char **at, struct tm *tm, int64_t *us, int *east_s)
{
    return number(at, 2, ':', &tm->tm_hour) && number(at, 2, ':', &tm->tm_min) &&
           number(at, 2, 0, &tm->tm_sec) && tm->tm_hour < 24 && tm->tm_min < 60 &&
           tm->tm_sec < 60 && fraction(at, us) && zone(at, east_s);
}

static bool read_time(const char *at, int64_t *out_us)
{
    struct tm tm = {0};
    int64_t us = 0;
    int east_s = 0;
    if (!number(&at, 4, '-', &tm.tm_year) || !number(&at, 2, '-', &tm.tm_mon) ||
        !number(&at, 2, 0, &tm.tm_mday))
        return false;
    if (*at == 'T' || *at == 't' || *at == ' ') {
        at++;
        if (!clock_part(&at, &tm, &us, &east_s)) return false;
    }
    if (*at || tm.tm_year < 1970) return false;
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    struct tm same = tm;
    time_t s = timegm(&same); /* makes March 2 of February 30 */
    if (same.tm_mon != tm.tm_mon || same.tm_mday != tm.tm_mday) return false;
    *out_us = ((int64_t)s - east_s) * SECOND_US + us;
    return *out_us >= 0;
}

int time_parse(const char *what, const char *text, int64_t *out_us, struct err *e)
{
    if (read_time(text, out_us)) return 0;
    return err_set(e, ERR_USER,
                   "%s is \"%.60s\", expected a date (2026-11-24) or a time with its zone "
                   "(2026-11-24T10:00:00Z)",
                   what, text);
}

char *time_text(int64_t us, char *out)
{
    struct tm tm;
    if (us == TIME_BEGIN) return strcpy(out, "-infinity");
    if (us == TIME_END) return strcpy(out, "infinity");
    time_t s = (time_t)(us / SECOND_US);
    gmtime_r(&s, &tm);
    size_t at = strftime(out, TIME_TEXT_SIZE, "%Y-%m-%dT%H:%M:%S", &tm);
    snprintf(out + at, TIME_TEXT_SIZE - at, ".%06dZ", (int)(us % SECOND_US));
    return out;
}

static int64_t hour_floor(int64_t us)
{
    return us == TIME_BEGIN || us == TIME_END ? us : us / HOUR_US * HOUR_US;
}

int period_cut(int64_t from, int64_t to, struct period *out, struct err *e)
{
    char a[TIME_TEXT_SIZE], b[TIME_TEXT_SIZE];
    if (from >= to)
        return err_set(e, ERR_USER, "the period from %s to %s is empty", time_text(from, a),
                       time_text(to, b));
    out->from = from;
    out->to = to;
    out->hour_from = hour_floor(from);
    if (out->hour_from < from) out->hour_from += HOUR_US;
    out->hour_to = hour_floor(to);
    out->head_to = out->hour_from < to ? out->hour_from : to;
    /* Both ends in one hour: the head is all there is. */
    out->tail_from = out->hour_to > out->head_to ? out->hour_to : out->head_to;
    return 0;
}

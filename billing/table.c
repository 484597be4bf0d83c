/* table.c - see table.h.  Widths are counted in code points, which is right for the names we meet.
 */
#include "table.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SHOWN_SIZE 512

struct table {
    const struct column *columns;
    int width; /* columns */
    char ***rows;
    int count;
    char **total;
};

int table_format_of(const char *name, enum table_format *out, struct err *e)
{
    static const char *const names[] = {"table", "csv", "json"};
    *out = FORMAT_TABLE;
    if (!name) return 0;
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, names[i])) continue;
        *out = (enum table_format)i;
        return 0;
    }
    return err_set(e, ERR_USER, "--format is \"%.60s\", expected table, csv or json", name);
}

struct table *table_create(const struct column *columns, int count, struct err *e)
{
    struct table *t = calloc(1, sizeof *t);
    if (!t) {
        err_set(e, ERR_RETRY, "out of memory for a table");
        return NULL;
    }
    t->columns = columns;
    t->width = count;
    return t;
}

static void row_free(const struct table *t, char **row)
{
    for (int c = 0; row && c < t->width; c++)
        free(row[c]);
    free(row);
}

void table_free(struct table *t)
{
    if (!t) return;
    for (int r = 0; r < t->count; r++)
        row_free(t, t->rows[r]);
    row_free(t, t->total);
    free(t->rows);
    free(t);
}

static char **row_copy(const struct table *t, const char *const *cells, struct err *e)
{
    char **row = calloc((size_t)t->width, sizeof *row);
    for (int c = 0; row && c < t->width; c++) {
        row[c] = strdup(cells[c]);
        if (row[c]) continue;
        row_free(t, row);
        row = NULL;
    }
    if (!row) err_set(e, ERR_RETRY, "out of memory for a table");
    return row;
}

int table_add(struct table *t, const char *const *cells, struct err *e)
{
    char ***grown = t->count & (t->count - 1) /* room is a power of two */
                        ? t->rows
                        : realloc(t->rows, (t->count ? (size_t)t->count * 2 : 1) * sizeof *grown);
    if (!grown) return err_set(e, ERR_RETRY, "out of memory for a table");
    t->rows = grown;
    t->rows[t->count] = row_copy(t, cells, e);
    if (!t->rows[t->count]) return -1;
    t->count++;
    return 0;
}

int table_total(struct table *t, const char *const *cells, struct err *e)
{
    row_free(t, t->total);
    t->total = row_copy(t, cells, e);
    return t->total ? 0 : -1;
}

int table_rows(const struct table *t)
{
    return t->count;
}

/* ---------------------------------------------------------------- for people */

static int points(const char *s)
{
    int n = 0;
    for (; *s; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

static int decimals_of(const char *s)
{
    const char *point = strchr(s, '.');
    return point ? (int)strlen(point + 1) : 0;
}

/* The most decimals of a column, so that its points stand in one line. */
static int decimals_max(const struct table *t, int c)
{
    int most = t->total ? decimals_of(t->total[c]) : 0;
    for (int r = 0; r < t->count; r++)
        if (decimals_of(t->rows[r][c]) > most) most = decimals_of(t->rows[r][c]);
    return most;
}

static void show_usd(const char *text, int decimals, char *out)
{
    int missing = decimals - decimals_of(text);
    bool pad = *text && missing > 0; /* an empty cell stays empty */
    snprintf(out, SHOWN_SIZE, "%s%s%.*s", text, pad && !strchr(text, '.') ? "." : "",
             pad ? missing : 0, "00000000000000000000");
}

static void show(const struct table *t, int c, const char *text, char *out)
{
    enum cell cell = t->columns[c].cell;
    if (cell == CELL_USD)
        show_usd(text, decimals_max(t, c), out);
    else
        snprintf(out, SHOWN_SIZE, "%s", text);
}

static int column_width(const struct table *t, int c)
{
    char shown[SHOWN_SIZE];
    int width = points(t->columns[c].title);
    for (int r = 0; r <= t->count; r++) {
        char **row = r < t->count ? t->rows[r] : t->total;
        if (!row) continue;
        show(t, c, row[c], shown);
        if (points(shown) > width) width = points(shown);
    }
    return width;
}

static void pad(FILE *out, char with, int n)
{
    while (n-- > 0)
        fputc(with, out);
}

static void print_row(const struct table *t, char **row, const int *widths, FILE *out)
{
    char shown[SHOWN_SIZE];
    int owed = 0; /* spaces that are only written when something follows */
    for (int c = 0; c < t->width; c++) {
        if (!t->columns[c].title) continue;
        bool left = t->columns[c].cell == CELL_TEXT;
        if (row)
            show(t, c, row[c], shown);
        else
            snprintf(shown, sizeof shown, "%s", t->columns[c].title);
        int spare = widths[c] - points(shown);
        if (*shown) {
            pad(out, ' ', owed + (left ? 0 : spare));
            fputs(shown, out);
            owed = left ? spare : 0;
        } else {
            owed += widths[c];
        }
        owed += 2;
    }
    fputc('\n', out);
}

static void print_line(const struct table *t, const int *widths, FILE *out)
{
    bool first = true;
    for (int c = 0; c < t->width; c++) {
        if (!t->columns[c].title) continue;
        if (!first) pad(out, ' ', 2);
        first = false;
        pad(out, '-', widths[c]);
    }
    fputc('\n', out);
}

static void print_table(const struct table *t, FILE *out)
{
    int *widths = calloc((size_t)t->width, sizeof *widths);
    if (!widths) abort();
    for (int c = 0; c < t->width; c++)
        if (t->columns[c].title) widths[c] = column_width(t, c);
    print_row(t, NULL, widths, out);
    print_line(t, widths, out);
    for (int r = 0; r < t->count; r++)
        print_row(t, t->rows[r], widths, out);
    if (t->total) {
        print_line(t, widths, out);
        print_row(t, t->total, widths, out);
    }
    free(widths);
}

/* ---------------------------------------------------------------- for programs */

/* RFC 4180 quoting.  A text that a spreadsheet would take for a formula gets a ' before it. */
static void print_csv_text(const char *s, bool is_text, FILE *out)
{
    bool formula = is_text && *s && strchr("=+-@\t\r", *s);
    bool quote = formula || strpbrk(s, ",\"\r\n");
    if (quote) fputc('"', out);
    if (formula) fputc('\'', out);
    for (; *s; s++) {
        if (*s == '"') fputc('"', out);
        fputc(*s, out);
    }
    if (quote) fputc('"', out);
}

static void print_csv_row(const struct table *t, char **row, FILE *out)
{
    bool first = true;
    for (int c = 0; c < t->width; c++) {
        if (!t->columns[c].name) continue;
        if (!first) fputc(',', out);
        first = false;
        print_csv_text(row ? row[c] : t->columns[c].name, row && t->columns[c].cell == CELL_TEXT,
                       out);
    }
    fputs("\r\n", out);
}

static void print_json_text(const char *s, FILE *out)
{
    fputc('"', out);
    for (; *s; s++) {
        unsigned char b = (unsigned char)*s;
        if (b == '"' || b == '\\')
            fprintf(out, "\\%c", b);
        else if (b < ' ')
            fprintf(out, "\\u%04x", b);
        else
            fputc(b, out);
    }
    fputc('"', out);
}

static void print_json_row(const struct table *t, char **row, FILE *out)
{
    bool first = true;
    fputc('{', out);
    for (int c = 0; c < t->width; c++) {
        if (!t->columns[c].name) continue;
        if (!first) fputs(", ", out);
        first = false;
        print_json_text(t->columns[c].name, out);
        fputs(": ", out);
        if (!*row[c])
            fputs("null", out);
        else if (t->columns[c].cell == CELL_COUNT)
            fputs(row[c], out);
        else
            print_json_text(row[c], out);
    }
    fputc('}', out);
}

static void print_json(const struct table *t, FILE *out)
{
    fputc('[', out);
    for (int r = 0; r < t->count; r++) {
        fputs(r ? ",\n " : "\n ", out);
        print_json_row(t, t->rows[r], out);
    }
    fputs(t->count ? "\n]\n" : "]\n", out);
}

void table_print(const struct table *t, enum table_format format, FILE *out)
{
    switch (format) {
    case FORMAT_TABLE:
        print_table(t, out);
        break;
    case FORMAT_CSV:
        print_csv_row(t, NULL, out);
        for (int r = 0; r < t->count; r++)
            print_csv_row(t, t->rows[r], out);
        break;
    case FORMAT_JSON:
        print_json(t, out);
        break;
    }
}

/* memory.c - see memory.h. */
#include "memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_SIZE 4096
#define LINE_SIZE 4096
#define TEXT_SIZE 384
#define GIB       ((double)(1 << 30))

/* ---------------------------------------------------------------- what there is */

static int64_t smaller(int64_t a, int64_t b)
{
    return a > 0 && (b <= 0 || a < b) ? a : b;
}

static int64_t total_of_machine(const char *root)
{
    char path[PATH_SIZE], line[LINE_SIZE];
    int64_t kb = 0;
    snprintf(path, sizeof path, "%s/proc/meminfo", root);
    FILE *f = fopen(path, "re");
    while (f && !kb && fgets(line, sizeof line, f))
        if (sscanf(line, "MemTotal: %" SCNd64 " kB", &kb) != 1) kb = 0;
    if (f) fclose(f);
    return kb * 1024;
}

/* The number in a file; 0 when there is none: v2 says "max", v1 a number beyond any machine. */
static int64_t limit_in(const char *path)
{
    int64_t bytes = 0;
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%" SCNd64, &bytes) != 1) bytes = 0;
    if (f) fclose(f);
    return bytes > 0 && bytes < INT64_MAX / 2 ? bytes : 0;
}

/* The tightest limit of a group and those above it, up to where the groups are mounted.  In a
 * container the path may be the host's and lead nowhere; the mount itself is then our group. */
static int64_t limit_of_group(const char *mount, const char *group, const char *file)
{
    char dir[PATH_SIZE], path[PATH_SIZE + 64];
    int64_t limit = 0;
    if (snprintf(dir, sizeof dir, "%s%s", mount, group) >= (int)sizeof dir) return 0;
    for (size_t top = strlen(mount);;) {
        snprintf(path, sizeof path, "%s/%s", dir, file);
        limit = smaller(limit_in(path), limit);
        char *last = strrchr(dir, '/');
        if (strlen(dir) <= top || !last) return limit;
        *last = '\0';
    }
}

/* Lines of /proc/self/cgroup are "id:controllers:path"; v2's has no controllers. */
static int64_t limit_of_line(const char *root, char *line)
{
    char mount[PATH_SIZE];
    char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : 0;
    if (!group) return 0;
    *controllers++ = '\0';
    *group++ = '\0';
    group[strcspn(group, "\n")] = '\0';
    if (!*controllers) {
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup", root);
        return limit_of_group(mount, group, "memory.max");
    }
    if (strcmp(controllers, "memory")) return 0;
    snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/memory", root);
    return limit_of_group(mount, group, "memory.limit_in_bytes");
}

int64_t memory_limit(const char *root)
{
    char path[PATH_SIZE], line[LINE_SIZE];
    int64_t limit = total_of_machine(root);
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        limit = smaller(limit_of_line(root, line), limit);
    if (f) fclose(f);
    return limit;
}

/* ---------------------------------------------------------------- whether it is enough */

/* Of adapters, where the moments are elsewhere than the rest. */
static int64_t moments_of(const struct memory_bounds *b)
{
    return b->gpu && b->paged ? b->adapters / 2 : 0;
}

int memory_of_host(const struct memory_bounds *b, struct memory_part parts[MEMORY_PARTS_MAX])
{
    int n = 0;
    if (!b->gpu) {
        parts[n++] = (struct memory_part){"weights", b->weights * b->devices, false};
        parts[n++] = (struct memory_part){"scratch_mb", b->scratch * b->devices, true};
        parts[n++] = (struct memory_part){"kv_mb", b->kv * b->devices, true};
        parts[n++] = (struct memory_part){"adapters_mb", b->adapters, true};
        parts[n++] = (struct memory_part){"sampler_cache_mb", b->sampler_cache, true};
    } else if (b->paged) {
        parts[n++] = (struct memory_part){"adapters_mb", moments_of(b), true};
    }
    parts[n++] = (struct memory_part){"held_mb", b->held, true};
    return n;
}

int memory_of_gpu(const struct memory_bounds *b, int64_t used, int64_t reserved,
                  struct memory_part parts[MEMORY_PARTS_MAX])
{
    int64_t fixed = b->weights + reserved;
    const struct memory_part here[] = {
        {"weights and libraries", used > fixed ? used : fixed, false},
        {"scratch_mb", b->scratch, true},
        {"kv_mb", b->kv, true},
        {"adapters_mb", (b->adapters - moments_of(b)) / b->devices, true},
        {"sampler_cache_mb", b->sampler_cache / b->devices, true},
    };
    memcpy(parts, here, sizeof here);
    return sizeof here / sizeof *here;
}

int64_t memory_sum(const struct memory_part *parts, int count)
{
    int64_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += parts[i].bytes;
    return sum;
}

static const struct memory_part *largest_setting(const struct memory_part *parts, int count)
{
    const struct memory_part *largest = NULL;
    for (int i = 0; i < count; i++)
        if (parts[i].setting && (!largest || parts[i].bytes > largest->bytes)) largest = &parts[i];
    return largest;
}

int memory_check(const struct memory_part *parts, int count, int64_t limit, struct err *e)
{
    char text[TEXT_SIZE];
    int n = 0;
    int64_t fixed = 0;
    if (limit <= 0 || memory_sum(parts, count) <= limit) return 0;
    for (int i = 0; i < count && n < (int)sizeof text; i++) {
        n += snprintf(text + n, sizeof text - (size_t)n, "%s%s %.2f", i ? ", " : "", parts[i].name,
                      (double)parts[i].bytes / GIB);
        if (!parts[i].setting) fixed += parts[i].bytes;
    }
    const struct memory_part *lower = fixed < limit ? largest_setting(parts, count) : NULL;
    return err_set(
        e, ERR_USER, "the worker may need %.2f GiB of memory, and %.2f GiB are there: %s; %s%s",
        (double)memory_sum(parts, count) / GIB, (double)limit / GIB, text,
        lower ? "lower " : "this model needs a larger machine", lower ? lower->name : "");
}

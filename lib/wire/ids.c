/* ids.c - see ids.h. */
#include "wire/ids.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "seal/seal.h"
#include "wire/text.h"

#define TAG_DIGITS 16
/* What ":<kind>:<seq>:<tag>" can add to a parent, so that each job of a run has an id that fits. */
#define JOB_SUFFIX_MAX 64

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

int secret_read(struct secret *s, const char *path, struct err *e)
{
    char text[2 * SECRET_SIZE + 8] = {0};
    FILE *f = fopen(path, "re");
    if (!f) return err_set(e, ERR_USER, "cannot open the secret's file \"%s\": %m", path);
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    while (n && (text[n - 1] == '\n' || text[n - 1] == '\r'))
        n--;
    bool good = n == 2 * SECRET_SIZE;
    for (size_t i = 0; good && i < SECRET_SIZE; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        good = high >= 0 && low >= 0;
        s->key[i] = (uint8_t)((unsigned)high << 4 | (unsigned)low);
    }
    explicit_bzero(text, sizeof text);
    if (good) return 0;
    explicit_bzero(s, sizeof *s);
    return err_set(e, ERR_USER, "the secret's file \"%s\" does not hold %d hex digits", path,
                   2 * SECRET_SIZE);
}

void session_id_make(char out[ID_SIZE])
{
    uint8_t random[16];
    seal_random(random, sizeof random);
    out[0] = 's';
    seal_base32(random, sizeof random, out + 1);
}

static int child_id_make(char out[ID_SIZE], const char *session, const char *word, int64_t seq,
                         struct err *e)
{
    if (!text_is_id(session, ID_SIZE - JOB_SUFFIX_MAX) || strchr(session, ':'))
        return err_set(e, ERR_USER, "session id \"%.100s\" is not one of ours", session);
    if (seq < 0)
        return err_set(e, ERR_USER, "sequence number %" PRId64 ", expected 0 or more", seq);
    int n = snprintf(out, ID_SIZE, "%s:%s:%" PRId64, session, word, seq);
    if (n >= ID_SIZE - JOB_SUFFIX_MAX)
        return err_set(e, ERR_USER, "session id \"%.100s\" is too long", session);
    return 0;
}

int run_id_make(char out[ID_SIZE], const char *session, int64_t model_seq, struct err *e)
{
    return child_id_make(out, session, "train", model_seq, e);
}

int sampler_id_make(char out[ID_SIZE], const char *session, int64_t sampler_seq, struct err *e)
{
    return child_id_make(out, session, "sample", sampler_seq, e);
}

/* The text under the HMAC.  Neither part may hold a '|', so two different ids never share it. */
static int tag_make(char tag[TAG_DIGITS + 1], const struct secret *s, const char *tenant,
                    const char *parent, enum job_kind kind, int64_t seq, struct err *e)
{
    char text[TENANT_SIZE + ID_SIZE + 64];
    uint8_t mac[SEAL_SHA256_SIZE];
    if (!text_is_id(tenant, TENANT_SIZE))
        return err_set(e, ERR_USER, "tenant \"%.80s\" is not an account id", tenant);
    if (!text_is_id(parent, ID_SIZE - JOB_SUFFIX_MAX))
        return err_set(e, ERR_USER, "\"%.160s\" is not a run or sampler id", parent);
    if (seq < 0 || (unsigned)kind >= JOB_KIND_COUNT)
        return err_set(e, ERR_USER, "no job has kind %d and number %" PRId64, (int)kind, seq);
    int n =
        snprintf(text, sizeof text, "%s|%s|%s|%" PRId64, tenant, parent, job_kind_name(kind), seq);
    assert(n > 0 && (size_t)n < sizeof text);
    seal_hmac_sha256(s->key, sizeof s->key, text, (size_t)n, mac);
    seal_hex(mac, TAG_DIGITS / 2, tag);
    return 0;
}

int job_id_make(char out[ID_SIZE], const struct secret *s, const char *tenant, const char *parent,
                enum job_kind kind, int64_t seq, struct err *e)
{
    char tag[TAG_DIGITS + 1];
    if (tag_make(tag, s, tenant, parent, kind, seq, e) < 0) return -1;
    int n = snprintf(out, ID_SIZE, "%s:%s:%" PRId64 ":%s", parent, job_kind_name(kind), seq, tag);
    assert(n > 0 && n < ID_SIZE);
    return 0;
}

/* Cuts the last ":part" off text and returns the part, or NULL. */
static char *cut_last(char *text)
{
    char *colon = strrchr(text, ':');
    if (!colon) return NULL;
    *colon = '\0';
    return colon + 1;
}

int job_id_check(const char *id, const struct secret *s, const char *tenant,
                 struct job_id_parts *parts, struct err *e)
{
    static const char unknown[] = "unknown request id";
    char expected[TAG_DIGITS + 1];
    size_t size = strlen(id) + 1;
    if (size > ID_SIZE) return err_set(e, ERR_USER, unknown);
    memcpy(parts->parent, id, size);
    const char *tag = cut_last(parts->parent);
    const char *seq = cut_last(parts->parent);
    const char *kind = cut_last(parts->parent);
    if (!kind || strlen(tag) != TAG_DIGITS || !text_to_count(seq, &parts->seq))
        return err_set(e, ERR_USER, unknown);
    parts->kind = job_kind_of(kind);
    if (tag_make(expected, s, tenant, parts->parent, parts->kind, parts->seq, NULL) < 0 ||
        !seal_equal(tag, expected, TAG_DIGITS))
        return err_set(e, ERR_USER, unknown);
    return 0;
}

static uint64_t hash_head(const char *id)
{
    uint8_t hash[SEAL_SHA256_SIZE];
    uint64_t head = 0;
    seal_sha256(id, strlen(id), hash);
    for (int i = 0; i < 8; i++)
        head = head << 8 | hash[i];
    return head;
}

int partition_of(const char *id, int count)
{
    assert(count > 0);
    return (int)(hash_head(id) % (uint64_t)count);
}

uint64_t seed_of(const char *id)
{
    return hash_head(id);
}

int model_slug(char *out, size_t size, const char *model, struct err *e)
{
    size_t at = 0;
    for (const char *c = model; *c; c++) {
        bool plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
                     (*c >= '0' && *c <= '9') || strchr("._-", *c);
        if (!plain && *c != '/')
            return err_set(e, ERR_USER,
                           "model name \"%.100s\" may hold only letters, digits, \".\", \"_\", "
                           "\"-\" and \"/\"",
                           model);
        if (at + 3 > size) return err_set(e, ERR_USER, "model name \"%.100s\" is too long", model);
        out[at++] = plain ? *c : '-';
        if (!plain) out[at++] = '-';
    }
    if (!at) return err_set(e, ERR_USER, "the model has no name");
    out[at] = '\0';
    return 0;
}

const char *stream_name(enum stream s)
{
    return s == STREAM_TRAIN ? "train" : "sample";
}

/* Prefix, slug and suffix as one topic name. */
static int topic_make(char *out, const char *prefix, const char *model, const char *stream,
                      const char *what, struct err *e)
{
    char slug[TOPIC_SIZE];
    if (model_slug(slug, sizeof slug, model, e) < 0) return -1;
    int n =
        snprintf(out, TOPIC_SIZE, "%s%s.%s%s%s", prefix, slug, stream, *stream ? "." : "", what);
    if (n < 0 || n >= TOPIC_SIZE)
        return err_set(e, ERR_USER, "model name \"%.100s\" is too long for a topic", model);
    return 0;
}

int topic_jobs(char *out, const char *prefix, const char *model, enum stream s, struct err *e)
{
    return topic_make(out, prefix, model, stream_name(s), "jobs", e);
}

int topic_results(char *out, const char *prefix, const char *model, enum stream s, struct err *e)
{
    return topic_make(out, prefix, model, stream_name(s), "results", e);
}

int topic_batches(char *out, const char *prefix, const char *model, struct err *e)
{
    return topic_make(out, prefix, model, "", "batches", e);
}

int topic_dlq(char *out, const char *prefix, struct err *e)
{
    int n = snprintf(out, TOPIC_SIZE, "%sdlq", prefix);
    if (n < 0 || n >= TOPIC_SIZE)
        return err_set(e, ERR_USER, "topic prefix \"%.100s\" is too long", prefix);
    return 0;
}

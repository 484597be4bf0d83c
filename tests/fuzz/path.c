/* What stands in a request's first lines: target, range, token, request id, checkpoint address.  The input
 * is a text of which each reads all. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "api/token.h"
#include "fuzz/target.h"
#include "http/detail.h"
#include "http/path.h"
#include "http/range.h"
#include "wire/payload.h"

static void target(const char *text)
{
    static const char *const patterns[] = {"/api/v1/sessions/*/finish", "/*/*/*", "/"};
    struct path p;
    int stars[PATH_SEGMENTS_MAX];
    if (path_init(&p, text) == 0) {
        for (int i = 0; i < 3; i++)
            path_matches(&p, patterns[i], stars);
        path_query(&p, "limit");
    }
    path_clear(&p);
}

static void range(const char *text)
{
    static const uint64_t sizes[] = {0, 1, 1000, UINT64_MAX};
    for (int i = 0; i < 4; i++) {
        uint64_t first = 0, count = 0;
        if (range_read(text, sizes[i], &first, &count) == RANGE_PART)
            assert(count > 0 && first < sizes[i] && count <= sizes[i] - first);
    }
}

static void checkpoint(const char *text)
{
    struct err e = {0};
    struct checkpoint_ref ref = {0};
    char uri[ID_SIZE + 200];
    if (checkpoint_uri_parse(text, &ref, &e) < 0) {
        assert(e.text[0]);
        return;
    }
    assert(checkpoint_name_check(ref.name, &e) == 0 && !strchr(ref.name, '/'));
    if (checkpoint_uri_make(uri, sizeof uri, URI_TINKER, &ref, &e) == 0)
        assert(checkpoint_uri_parse(uri, &ref, &e) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static const struct secret secret = {{1, 2, 3}};
    struct err e = {0};
    struct job_id_parts parts;
    struct claims claims;
    size_t length;
    char slug[TOPIC_SIZE], *text = malloc(size + 1);
    if (!text) return 0;
    memcpy(text, bytes, size);
    text[size] = '\0';
    target(text);
    range(text);
    checkpoint(text);
    assert(job_id_check(text, &secret, "acct", &parts, &e) < 0);
    assert(token_read(text, &secret, 0, &claims) != TOKEN_GOOD);
    if (model_slug(slug, sizeof slug, text, &e) == 0) assert(!strchr(slug, '/'));
    char *json = detail_json(text, &length);
    assert(json && strlen(json) == length);
    free(json);
    free(text);
    return 0;
}

/* small.c - the payloads that are small JSON objects: create, optim_step, save, load, reject. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "wire/json.h"
#include "wire/payload.h"
#include "wire/text.h"

/* ---------------------------------------------------------------- checkpoint references */

static int decode_ref(struct checkpoint_ref *out, const json_t *j, struct err *e)
{
    static const char where[] = "checkpoint.";
    json_int_t seq = -1;
    if (!json_is_object(j))
        return err_set(e, ERR_USER, "checkpoint is %s, expected an object", wire_json_type(j));
    if (wire_json_text(j, where, "run", true, out->run, sizeof out->run, e) < 0 ||
        wire_json_int(j, where, "seq", true, -1, INT64_MAX, &seq, e) < 0 ||
        wire_json_text(j, where, "kind", true, out->kind, sizeof out->kind, e) < 0 ||
        wire_json_text(j, where, "name", seq < 0, out->name, sizeof out->name, e) < 0)
        return -1;
    if (!text_is_id(out->run, sizeof out->run))
        return err_set(e, ERR_USER, "checkpoint.run is \"%.100s\", expected the id of a run",
                       out->run);
    if (strcmp(out->kind, "training") && strcmp(out->kind, "sampler"))
        return err_set(e, ERR_USER, "checkpoint.kind is \"%s\", expected training or sampler",
                       out->kind);
    out->seq = seq;
    return out->name[0] ? checkpoint_name_check(out->name, e) : 0;
}

static json_t *encode_ref(const struct checkpoint_ref *ref)
{
    return json_pack("{s:s, s:I, s:s, s:s}", "run", ref->run, "seq", (json_int_t)ref->seq, "kind",
                     ref->kind, "name", ref->name);
}

/* ---------------------------------------------------------------- create */

static int decode_create(struct create_request *r, const json_t *j, struct err *e)
{
    json_int_t rank = 0, seed = 0;
    const json_t *ref = json_object_get(j, "checkpoint");
    if (wire_json_int(j, "", "rank", true, 1, RANK_MAX, &rank, e) < 0 ||
        wire_json_bool(j, "", "train_attn", true, &r->train_attn, e) < 0 ||
        wire_json_bool(j, "", "train_mlp", true, &r->train_mlp, e) < 0 ||
        wire_json_bool(j, "", "train_unembed", true, &r->train_unembed, e) < 0 ||
        wire_json_int(j, "", "seed", false, INT64_MIN, INT64_MAX, &seed, e) < 0 ||
        wire_json_bool(j, "", "optimizer", false, &r->with_optimizer, e) < 0 ||
        wire_json_text(j, "", "path", false, r->path, sizeof r->path, e) < 0)
        return -1;
    if (!r->train_attn && !r->train_mlp && !r->train_unembed)
        return err_set(e, ERR_USER, "train_attn, train_mlp and train_unembed are all false");
    r->rank = (int)rank;
    r->seed = (uint64_t)seed;
    r->has_seed = json_is_integer(json_object_get(j, "seed"));
    r->from_checkpoint = ref && !json_is_null(ref);
    return r->from_checkpoint ? decode_ref(&r->checkpoint, ref, e) : 0;
}

struct create_request *create_request_decode(const void *bytes, size_t size, struct err *e)
{
    json_t *j = wire_json_read(bytes, size, e);
    if (!j) return NULL;
    struct create_request *r = calloc(1, sizeof *r);
    if (!r)
        err_set(e, ERR_RETRY, "out of memory for a request");
    else if (decode_create(r, j, e) < 0) {
        free(r);
        r = NULL;
    }
    json_decref(j);
    return r;
}

/* json_object_set_new with NULL as value fails, and so does everything after it. */
static int set(json_t *j, const char *name, json_t *value)
{
    return json_object_set_new(j, name, value);
}

char *create_request_encode(const struct create_request *r, size_t *size, struct err *e)
{
    int bad = 0;
    json_t *j = json_pack("{s:i, s:b, s:b, s:b}", "rank", r->rank, "train_attn", (int)r->train_attn,
                          "train_mlp", (int)r->train_mlp, "train_unembed", (int)r->train_unembed);
    if (r->has_seed) bad |= set(j, "seed", json_integer((json_int_t)r->seed));
    if (r->from_checkpoint) {
        bad |= set(j, "checkpoint", encode_ref(&r->checkpoint));
        bad |= set(j, "optimizer", json_boolean(r->with_optimizer));
        bad |= set(j, "path", json_string(r->path));
    }
    if (bad) {
        json_decref(j);
        j = NULL;
    }
    return wire_json_write(j, size, e);
}

/* ---------------------------------------------------------------- optim_step */

static int check_adam(const struct optim_request *r, struct err *e)
{
    const struct {
        const char *name;
        double value, below;
    } rules[] = {
        {"learning_rate", r->learning_rate, INFINITY},
        {"beta1", r->beta1, 1},
        {"beta2", r->beta2, 1},
        {"eps", r->eps, INFINITY},
        {"weight_decay", r->weight_decay, INFINITY},
        {"grad_clip_norm", r->grad_clip_norm, INFINITY},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (!(rules[i].value >= 0 && rules[i].value < rules[i].below))
            return err_set(e, ERR_USER, "adam_params.%s is %g, expected from 0 up%s", rules[i].name,
                           rules[i].value, rules[i].below == 1 ? " to below 1" : "");
    return 0;
}

static int decode_optim(struct optim_request *out, const json_t *j, struct err *e)
{
    static const char where[] = "adam_params.";
    const json_t *adam = json_object_get(j, "adam_params");
    const json_t *other = json_object_get(j, "optimizer_params");
    if (other && !json_is_null(other)) {
        const char *type = json_string_value(json_object_get(other, "type"));
        return err_set(e, ERR_USER, "optimizer \"%.40s\" is not offered, expected adam_params",
                       type ? type : "");
    }
    if (!json_is_object(adam))
        return err_set(e, ERR_USER, "adam_params is %s, expected an object", wire_json_type(adam));
    *out = (struct optim_request){.learning_rate = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-12};
    if (wire_json_number(adam, where, "learning_rate", false, &out->learning_rate, e) < 0 ||
        wire_json_number(adam, where, "beta1", false, &out->beta1, e) < 0 ||
        wire_json_number(adam, where, "beta2", false, &out->beta2, e) < 0 ||
        wire_json_number(adam, where, "eps", false, &out->eps, e) < 0 ||
        wire_json_number(adam, where, "weight_decay", false, &out->weight_decay, e) < 0 ||
        wire_json_number(adam, where, "grad_clip_norm", false, &out->grad_clip_norm, e) < 0)
        return -1;
    return check_adam(out, e);
}

int optim_request_decode(const void *bytes, size_t size, struct optim_request *out, struct err *e)
{
    json_t *j = wire_json_read(bytes, size, e);
    if (!j) return -1;
    int result = decode_optim(out, j, e);
    json_decref(j);
    return result;
}

/* ---------------------------------------------------------------- save */

static int decode_save(struct save_request *out, const json_t *j, struct err *e)
{
    json_int_t ttl = 0;
    const json_t *metadata = json_object_get(j, "user_metadata");
    if (wire_json_text(j, "", "name", false, out->name, sizeof out->name, e) < 0 ||
        wire_json_text(j, "", "sampler", false, out->sampler, sizeof out->sampler, e) < 0 ||
        wire_json_text(j, "", "path", false, out->path, sizeof out->path, e) < 0 ||
        wire_json_bool(j, "", "external", false, &out->external, e) < 0 ||
        wire_json_bool(j, "", "overwrite", false, &out->overwrite, e) < 0 ||
        wire_json_int(j, "", "ttl_seconds", false, 0, INT32_MAX, &ttl, e) < 0)
        return -1;
    out->ttl_seconds = ttl;
    if (!out->name[0] == !out->sampler[0])
        return err_set(e, ERR_USER, "a save has either a name or a sampler");
    if (out->external && !out->name[0])
        return err_set(e, ERR_USER, "external is true in a save without a name");
    if (out->name[0] && checkpoint_name_check(out->name, e) < 0) return -1;
    if (out->sampler[0] && !text_is_id(out->sampler, sizeof out->sampler))
        return err_set(e, ERR_USER, "sampler is \"%.100s\", expected the id of a sampler",
                       out->sampler);
    if (!metadata || json_is_null(metadata)) return 0;
    if (!json_is_object(metadata))
        return err_set(e, ERR_USER, "user_metadata is %s, expected an object",
                       wire_json_type(metadata));
    out->metadata = json_dumps(metadata, JSON_COMPACT);
    return out->metadata ? 0 : err_set(e, ERR_RETRY, "out of memory for user_metadata");
}

int save_request_decode(const void *bytes, size_t size, struct save_request *out, struct err *e)
{
    *out = (struct save_request){0};
    json_t *j = wire_json_read(bytes, size, e);
    if (!j) return -1;
    int result = decode_save(out, j, e);
    if (result < 0) save_request_clear(out);
    json_decref(j);
    return result;
}

char *save_request_encode(const struct save_request *r, size_t *size, struct err *e)
{
    int bad = 0;
    json_t *j = json_object();
    if (r->name[0]) bad |= set(j, "name", json_string(r->name));
    if (r->sampler[0]) bad |= set(j, "sampler", json_string(r->sampler));
    if (r->path[0]) bad |= set(j, "path", json_string(r->path));
    if (r->external) bad |= set(j, "external", json_true());
    if (r->overwrite) bad |= set(j, "overwrite", json_true());
    if (r->ttl_seconds) bad |= set(j, "ttl_seconds", json_integer(r->ttl_seconds));
    if (r->metadata) {
        json_t *metadata = wire_json_read(r->metadata, strlen(r->metadata), e);
        if (!metadata) {
            json_decref(j);
            err_prefix(e, "user_metadata");
            return NULL;
        }
        bad |= set(j, "user_metadata", metadata);
    }
    if (bad) {
        json_decref(j);
        j = NULL;
    }
    return wire_json_write(j, size, e);
}

void save_request_clear(struct save_request *r)
{
    free(r->metadata);
    *r = (struct save_request){0};
}

/* ---------------------------------------------------------------- load */

int load_request_decode(const void *bytes, size_t size, struct load_request *out, struct err *e)
{
    *out = (struct load_request){0};
    json_t *j = wire_json_read(bytes, size, e);
    if (!j) return -1;
    int result = 0;
    if (decode_ref(&out->checkpoint, json_object_get(j, "checkpoint"), e) < 0 ||
        wire_json_bool(j, "", "optimizer", true, &out->with_optimizer, e) < 0 ||
        wire_json_text(j, "", "path", false, out->path, sizeof out->path, e) < 0)
        result = -1;
    json_decref(j);
    return result;
}

char *load_request_encode(const struct load_request *r, size_t *size, struct err *e)
{
    json_t *j = json_pack("{s:o, s:b, s:s}", "checkpoint", encode_ref(&r->checkpoint), "optimizer",
                          (int)r->with_optimizer, "path", r->path);
    return wire_json_write(j, size, e);
}

/* ---------------------------------------------------------------- reject */

int reject_decode(const void *bytes, size_t size, char **text, struct err *e)
{
    json_t *j = wire_json_read(bytes, size, e);
    if (!j) return -1;
    const json_t *error = json_object_get(j, "error");
    *text = NULL;
    if (json_is_string(error))
        *text = bytes_copy(json_string_value(error), json_string_length(error), e);
    else
        err_set(e, ERR_USER, "error is %s, expected a string", wire_json_type(error));
    json_decref(j);
    return *text ? 0 : -1;
}

char *reject_encode(const char *text, size_t *size, struct err *e)
{
    json_t *shown = json_string(text);
    if (!shown) shown = json_string("the error's text is not UTF-8");
    return wire_json_write(json_pack("{s:o}", "error", shown), size, e);
}

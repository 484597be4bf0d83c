/* client.c - see client.h.  libcurl carries the bytes; one easy handle means one connection. */
#include "client.h"

#include <curl/curl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/buf.h"
#include "base/clock.h"
#include "tinker.pb-c.h"

#define ANSWER_MAX (4u << 20)
#define TIMEOUT_S  60
#define POLLS_MAX  20
#define ID_MAX     256
#define JSON_TYPE  "application/json"
#define PROTO_TYPE "application/x-protobuf"

struct client {
    CURL *curl;
    char base_url[256], api_key[256];
    char session[ID_MAX], run[ID_MAX], model[ID_MAX];
    int64_t seq;
    struct buf answer;
    bool overflow;
};

struct client *client_create(const char *base_url, const char *api_key, struct err *e)
{
    struct client *c = calloc(1, sizeof *c);
    if (c) c->curl = curl_easy_init();
    if (!c || !c->curl) {
        free(c);
        err_set(e, ERR_RETRY, "no memory for a client");
        return NULL;
    }
    snprintf(c->base_url, sizeof c->base_url, "%s", base_url);
    snprintf(c->api_key, sizeof c->api_key, "X-API-Key: %s", api_key);
    size_t end = strlen(c->base_url);
    if (end && c->base_url[end - 1] == '/') c->base_url[end - 1] = '\0';
    buf_init(&c->answer, ANSWER_MAX);
    return c;
}

void client_free(struct client *c)
{
    if (!c) return;
    curl_easy_cleanup(c->curl);
    buf_clear(&c->answer);
    free(c);
}

const char *client_model(const struct client *c)
{
    return c->model;
}

const char *client_run(const struct client *c)
{
    return c->run;
}

/* ---------------------------------------------------------------- HTTP */

static size_t on_body(char *bytes, size_t one, size_t size, void *arg)
{
    struct client *c = arg;
    struct err e = {0};
    if (buf_append(&c->answer, bytes, size, &e) == 0) return size;
    c->overflow = true;
    return 0;
}

static struct curl_slist *headers_make(const struct client *c, const char *type, const char *accept)
{
    char line[128];
    struct curl_slist *list = curl_slist_append(NULL, c->api_key);
    snprintf(line, sizeof line, "Accept: %s", accept);
    list = curl_slist_append(list, line);
    snprintf(line, sizeof line, "Content-Type: %s", type);
    return curl_slist_append(list, line);
}

/* The answer is in c->answer.  Returns the status, or -1. */
static long exchange(struct client *c, const char *path, const char *type, const char *accept,
                     const void *body, size_t size, struct err *e)
{
    char url[512], why[CURL_ERROR_SIZE] = "";
    long status = -1;
    struct curl_slist *headers = headers_make(c, type, accept);
    snprintf(url, sizeof url, "%s%s", c->base_url, path);
    c->answer.size = 0;
    c->overflow = false;
    curl_easy_reset(c->curl); /* keeps the connection */
    curl_easy_setopt(c->curl, CURLOPT_URL, url);
    curl_easy_setopt(c->curl, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    curl_easy_setopt(c->curl, CURLOPT_PROXY, "");
    curl_easy_setopt(c->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c->curl, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(c->curl, CURLOPT_TIMEOUT, (long)TIMEOUT_S);
    curl_easy_setopt(c->curl, CURLOPT_ERRORBUFFER, why);
    curl_easy_setopt(c->curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c->curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c->curl, CURLOPT_WRITEDATA, c);
    if (body) {
        curl_easy_setopt(c->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)size);
        curl_easy_setopt(c->curl, CURLOPT_POSTFIELDS, body);
    }
    CURLcode code = curl_easy_perform(c->curl);
    if (code == CURLE_OK)
        curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &status);
    else
        err_set(e, ERR_RETRY, "%s: %s", path,
                c->overflow ? "the answer is too large"
                : *why      ? why
                            : curl_easy_strerror(code));
    curl_slist_free_all(headers);
    return status;
}

/* A call that must be answered with 200 and a JSON object.  NULL on failure. */
static json_t *call(struct client *c, const char *path, const char *type, const void *body,
                    size_t size, struct err *e)
{
    long status = exchange(c, path, type, JSON_TYPE, body, size, e);
    if (status < 0) return NULL;
    json_t *root = json_loadb(c->answer.data ? c->answer.data : "", c->answer.size, 0, NULL);
    if (status != 200 || !json_is_object(root)) {
        err_set(e, ERR_USER, "%s: status %ld: %.*s", path, status,
                (int)(c->answer.size < 300 ? c->answer.size : 300),
                c->answer.data ? c->answer.data : "");
        json_decref(root);
        return NULL;
    }
    return root;
}

static json_t *call_json(struct client *c, const char *path, json_t *take, struct err *e)
{
    char *body = take ? json_dumps(take, JSON_COMPACT) : NULL;
    json_decref(take);
    if (!body) {
        err_set(e, ERR_RETRY, "no memory for the body of %s", path);
        return NULL;
    }
    json_t *root = call(c, path, JSON_TYPE, body, strlen(body), e);
    free(body);
    return root;
}

/* Copies the text member name of root and gives root back. */
static int text_of(json_t *take, const char *name, char *out, size_t size, struct err *e)
{
    if (!take) return -1;
    const char *text = json_string_value(json_object_get(take, name));
    int rc = 0;
    if (!text || strlen(text) >= size)
        rc = err_set(e, ERR_USER, "the answer has no \"%s\" of fewer than %zu bytes", name, size);
    else
        snprintf(out, size, "%s", text);
    json_decref(take);
    return rc;
}

/* ---------------------------------------------------------------- futures */

/* A JSON answer is final unless it says try_again; one with "error" is a failure. */
static int json_answer(const struct client *c, bool *final, struct err *e)
{
    json_t *root = json_loadb(c->answer.data ? c->answer.data : "", c->answer.size, 0, NULL);
    const char *type = json_string_value(json_object_get(root, "type"));
    const json_t *error = json_object_get(root, "error");
    int rc = 0;
    *final = !type || strcmp(type, "try_again");
    if (!json_is_object(root))
        rc = err_set(e, ERR_USER, "the answer is no JSON object");
    else if (error)
        rc = err_set(e, ERR_USER, "the job failed: %s",
                     json_is_string(error) ? json_string_value(error) : "no text");
    json_decref(root);
    return rc;
}

static int poll_until_answered(struct client *c, const char *request_id, const char *accept,
                               struct err *e)
{
    char body[ID_MAX + 64];
    snprintf(body, sizeof body, "{\"request_id\":\"%s\"}", request_id);
    for (int i = 0; i < POLLS_MAX; i++) {
        long status =
            exchange(c, "/api/v1/retrieve_future", JSON_TYPE, accept, body, strlen(body), e);
        if (status < 0) return -1;
        if (status == 408) continue;
        if (status != 200)
            return err_set(e, ERR_USER, "retrieve_future: status %ld: %.*s", status,
                           (int)(c->answer.size < 300 ? c->answer.size : 300),
                           c->answer.data ? c->answer.data : "");
        bool final = true;
        if (c->answer.size && c->answer.data[0] == '{' && json_answer(c, &final, e) < 0) return -1;
        if (final) return 0;
    }
    return err_set(e, ERR_RETRY, "no answer to \"%s\" after %d polls", request_id, POLLS_MAX);
}

static int submit_and_wait(struct client *c, const char *path, const char *type, const char *accept,
                           const void *body, size_t size, struct took *took, struct err *e)
{
    char request_id[ID_MAX];
    int64_t began_us = clock_mono_us();
    if (text_of(call(c, path, type, body, size, e), "request_id", request_id, sizeof request_id,
                e) < 0)
        return -1;
    took->ack_us = clock_mono_us() - began_us;
    if (poll_until_answered(c, request_id, accept, e) < 0) return -1;
    took->answer_us = clock_mono_us() - began_us;
    return 0;
}

/* ---------------------------------------------------------------- opening */

static int find_model(struct client *c, struct err *e)
{
    const char *path = "/api/v1/get_server_capabilities";
    json_t *root = call(c, path, JSON_TYPE, NULL, 0, e), *model;
    size_t i;
    if (!root) return -1;
    json_array_foreach(json_object_get(root, "supported_models"), i, model)
    {
        const char *name = json_string_value(json_object_get(model, "model_name"));
        if (!name || json_is_false(json_object_get(model, "trainable"))) continue;
        snprintf(c->model, sizeof c->model, "%s", name);
        break;
    }
    json_decref(root);
    if (*c->model) return 0;
    return err_set(e, ERR_USER, "the server has no model that can be trained");
}

int client_open(struct client *c, const char *model, struct err *e)
{
    snprintf(c->model, sizeof c->model, "%s", model ? model : "");
    if (!*c->model && find_model(c, e) < 0) return -1;
    json_t *root = call_json(c, "/api/v1/create_session",
                             json_pack("{s:[s], s:{}, s:s, s:s}", "tags", "bench", "user_metadata",
                                       "sdk_version", "0.38.0", "type", "create_session"),
                             e);
    if (text_of(root, "session_id", c->session, sizeof c->session, e) < 0) return -1;

    char request_id[ID_MAX];
    root = call_json(c, "/api/v1/create_model",
                     json_pack("{s:s, s:i, s:s, s:{s:i, s:i, s:b, s:b, s:b}, s:{s:s}, s:s}",
                               "session_id", c->session, "model_seq_id", 0, "base_model", c->model,
                               "lora_config", "rank", 1, "seed", 1, "train_unembed", 0, "train_mlp",
                               0, "train_attn", 1, "optimizer_config", "type", "adamw", "type",
                               "create_model"),
                     e);
    if (text_of(root, "request_id", request_id, sizeof request_id, e) < 0) return -1;
    if (poll_until_answered(c, request_id, JSON_TYPE, e) < 0) return -1;
    snprintf(c->run, sizeof c->run, "%.200s:train:0", c->session);
    return 0;
}

void client_finish(struct client *c)
{
    char path[ID_MAX + 64];
    struct err e = {0};
    if (!*c->session) return;
    snprintf(path, sizeof path, "/api/v1/sessions/%s/finish", c->session);
    json_decref(
        call_json(c, path, json_pack("{s:{s:s}, s:n}", "reason", "type", "success", "detail"), &e));
}

/* ---------------------------------------------------------------- primitives */

static void step_encode(struct client *c, char *out, size_t size)
{
    snprintf(out, size,
             "{\"model_id\":\"%s\",\"seq_id\":%lld,\"type\":\"optim_step\",\"adam_params\":"
             "{\"learning_rate\":0.0001,\"beta1\":0.9,\"beta2\":0.95,\"eps\":1e-12,"
             "\"weight_decay\":0.0,\"grad_clip_norm\":0.0}}",
             c->run, (long long)++c->seq);
}

int client_optim_step(struct client *c, struct took *took, struct err *e)
{
    char body[512 + ID_MAX];
    step_encode(c, body, sizeof body);
    return submit_and_wait(c, "/api/v1/optim_step", JSON_TYPE, JSON_TYPE, body, strlen(body), took,
                           e);
}

int client_submit_step(struct client *c, struct err *e)
{
    char body[512 + ID_MAX];
    step_encode(c, body, sizeof body);
    json_t *root = call(c, "/api/v1/optim_step", JSON_TYPE, body, strlen(body), e);
    json_decref(root);
    return root ? 0 : -1;
}

/* One datum: token 1, target 1, weight 1. */
static size_t forward_encode(const struct client *c, uint8_t *out, size_t size)
{
    static int32_t token = 1;
    static int64_t target = 1, shape = 1;
    static float weight = 1.0f;
    TinkerPublic__EncodedTextChunk text = TINKER_PUBLIC__ENCODED_TEXT_CHUNK__INIT;
    text.tokens = (ProtobufCBinaryData){sizeof token, (uint8_t *)&token};
    TinkerPublic__Chunk chunk = TINKER_PUBLIC__CHUNK__INIT, *chunks[] = {&chunk};
    chunk.chunk_case = TINKER_PUBLIC__CHUNK__CHUNK_ENCODED_TEXT;
    chunk.encoded_text = &text;

    TinkerPublic__Tensor targets = TINKER_PUBLIC__TENSOR__INIT,
                         weights = TINKER_PUBLIC__TENSOR__INIT;
    targets.encoding_case = weights.encoding_case = TINKER_PUBLIC__TENSOR__ENCODING_DENSE;
    targets.dense = (ProtobufCBinaryData){sizeof target, (uint8_t *)&target};
    weights.dense = (ProtobufCBinaryData){sizeof weight, (uint8_t *)&weight};
    targets.dtype = TINKER_PUBLIC__DTYPE__DTYPE_INT64;
    weights.dtype = TINKER_PUBLIC__DTYPE__DTYPE_FLOAT32;
    targets.n_shape = weights.n_shape = 1;
    targets.shape = weights.shape = &shape;
    TinkerPublic__Datum__LossFnInputsEntry a = TINKER_PUBLIC__DATUM__LOSS_FN_INPUTS_ENTRY__INIT,
                                           b = a;
    TinkerPublic__Datum__LossFnInputsEntry *inputs[] = {&a, &b};
    a.key = "target_tokens";
    a.value = &targets;
    b.key = "weights";
    b.value = &weights;

    TinkerPublic__Datum datum = TINKER_PUBLIC__DATUM__INIT, *data[] = {&datum};
    datum.n_model_input = 1;
    datum.model_input = chunks;
    datum.n_loss_fn_inputs = 2;
    datum.loss_fn_inputs = inputs;
    TinkerPublic__ForwardBackwardRequest request = TINKER_PUBLIC__FORWARD_BACKWARD_REQUEST__INIT;
    request.model_id = (char *)c->run;
    request.seq_id = (int32_t)c->seq;
    request.n_data = 1;
    request.data = data;
    request.loss_fn = "cross_entropy";
    request.forward_only = 1;
    size_t need = tinker_public__forward_backward_request__get_packed_size(&request);
    if (need > size) return 0;
    return tinker_public__forward_backward_request__pack(&request, out);
}

int client_forward(struct client *c, struct took *took, struct err *e)
{
    uint8_t body[1024];
    c->seq++;
    size_t size = forward_encode(c, body, sizeof body);
    if (!size)
        return err_set(e, ERR_BUG, "a forward of one token takes more than %zu bytes", sizeof body);
    return submit_and_wait(c, "/api/v1/forward_backward", PROTO_TYPE, PROTO_TYPE, body, size, took,
                           e);
}

/* model_config.c - see model_config.h.
 *
 * What our arithmetic does not do (biases, sliding windows, scaled rotary positions, quantized
 * weights) is refused by name: a model that merely ran would give wrong numbers silently. */
#include "engine/model_config.h"

#include <math.h>
#include <string.h>
#include "engine/files.h"

#define PATH_SIZE 4096

static int get_int(const json_t *root, const char *name, int max, int *out, struct err *e)
{
    const json_t *v = json_object_get(root, name);
    if (!v) return err_set(e, ERR_USER, "config.json has no %s", name);
    if (!json_is_integer(v) || json_integer_value(v) < 1 || json_integer_value(v) > max)
        return err_set(e, ERR_USER, "config.json has a %s that is no whole number from 1 to %d",
                       name, max);
    *out = (int)json_integer_value(v);
    return 0;
}

static int get_positive(const json_t *root, const char *name, float *out, struct err *e)
{
    const json_t *v = json_object_get(root, name);
    double x = json_number_value(v);
    if (!json_is_number(v) || !(x > 0) || !isfinite((float)x))
        return err_set(e, ERR_USER, "config.json has no %s above 0", name);
    *out = (float)x;
    return 0;
}

/* Settings that change the arithmetic must be absent, null, or what we compute. */
static int check_unsupported(const json_t *root, struct err *e)
{
    static const char *const off[] = {"attention_bias", "use_sliding_window",
                                      "quantization_config"};
    for (size_t i = 0; i < sizeof off / sizeof *off; i++) {
        const json_t *v = json_object_get(root, off[i]);
        if (v && !json_is_null(v) && !json_is_false(v))
            return err_set(e, ERR_USER, "config.json sets %s, which is not supported", off[i]);
    }
    const json_t *act = json_object_get(root, "hidden_act");
    if (act && (!json_is_string(act) || strcmp(json_string_value(act), "silu")))
        return err_set(e, ERR_USER, "config.json has a hidden_act other than \"silu\"");
    size_t i;
    json_t *type;
    json_array_foreach(json_object_get(root, "layer_types"), i, type)
    {
        if (!json_is_string(type) || strcmp(json_string_value(type), "full_attention"))
            return err_set(e, ERR_USER,
                           "config.json has a layer type other than \"full_attention\"");
    }
    return 0;
}

static int check_architecture(const json_t *root, struct err *e)
{
    const char *type = json_string_value(json_object_get(root, "model_type"));
    if (!type || strcmp(type, "qwen3"))
        return err_set(e, ERR_USER, "config.json has model_type \"%.40s\", expected \"qwen3\"",
                       type ? type : "");
    const json_t *list = json_object_get(root, "architectures");
    const char *arch = json_string_value(json_array_get(list, 0));
    if (list && !json_is_null(list) && (!arch || strcmp(arch, "Qwen3ForCausalLM")))
        return err_set(e, ERR_USER,
                       "config.json has architecture \"%.40s\", expected \"Qwen3ForCausalLM\"",
                       arch ? arch : "");
    return 0;
}

/* rope_theta stands at the top in older files, in rope_parameters (or rope_scaling) in newer ones.
 */
static int read_rope(const json_t *root, float *theta, struct err *e)
{
    static const char *const boxes[] = {"rope_parameters", "rope_scaling"};
    const json_t *holder = root;
    for (size_t i = 0; i < sizeof boxes / sizeof *boxes; i++) {
        const json_t *box = json_object_get(root, boxes[i]);
        if (!box || json_is_null(box)) continue;
        const json_t *type = json_object_get(box, "rope_type");
        if (!type) type = json_object_get(box, "type");
        const char *name = json_string_value(type);
        if (!name || strcmp(name, "default"))
            return err_set(e, ERR_USER,
                           "config.json has %s of type \"%.40s\", expected \"default\"", boxes[i],
                           name ? name : "");
        if (json_object_get(box, "rope_theta")) holder = box;
    }
    return get_positive(holder, "rope_theta", theta, e);
}

static int add_eos(struct model_conf *mc, const json_t *v, const char *file, struct err *e)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= mc->vocab)
        return err_set(e, ERR_USER, "%s has an eos_token_id that is no token id below %d", file,
                       mc->vocab);
    int32_t id = (int32_t)json_integer_value(v);
    for (int i = 0; i < mc->eos_count; i++)
        if (mc->eos[i] == id) return 0;
    int max = (int)(sizeof mc->eos / sizeof *mc->eos);
    if (mc->eos_count == max)
        return err_set(e, ERR_USER, "%s names more than %d eos tokens", file, max);
    mc->eos[mc->eos_count++] = id;
    return 0;
}

static int read_eos(struct model_conf *mc, const json_t *root, const char *file, struct err *e)
{
    const json_t *v = json_object_get(root, "eos_token_id");
    if (!v || json_is_null(v)) return 0;
    if (!json_is_array(v)) return add_eos(mc, v, file, e);
    for (size_t i = 0; i < json_array_size(v); i++)
        if (add_eos(mc, json_array_get(v, i), file, e) < 0) return -1;
    return 0;
}

static int check_heads(const struct model_conf *mc, struct err *e)
{
    if (mc->heads % mc->kv_heads)
        return err_set(
            e, ERR_USER,
            "config.json has %d attention heads, expected a multiple of its %d key heads",
            mc->heads, mc->kv_heads);
    if (mc->head_dim % 2)
        return err_set(e, ERR_USER, "config.json has head_dim %d, expected an even number",
                       mc->head_dim);
    return 0;
}

static bool names_bf16(const json_t *dtype)
{
    return json_is_string(dtype) && !strcmp(json_string_value(dtype), "bfloat16");
}

static int read_config(struct model_conf *mc, const json_t *root, struct err *e)
{
    const json_t *tied = json_object_get(root, "tie_word_embeddings");
    if (check_architecture(root, e) < 0 || check_unsupported(root, e) < 0) return -1;
    if (get_int(root, "vocab_size", OPS_VOCAB_MAX, &mc->vocab, e) < 0 ||
        get_int(root, "hidden_size", 1 << 15, &mc->hidden, e) < 0 ||
        get_int(root, "num_hidden_layers", 256, &mc->layers, e) < 0 ||
        get_int(root, "num_attention_heads", 256, &mc->heads, e) < 0 ||
        get_int(root, "num_key_value_heads", 256, &mc->kv_heads, e) < 0 ||
        get_int(root, "head_dim", OPS_HEAD_DIM_MAX, &mc->head_dim, e) < 0 ||
        get_int(root, "intermediate_size", 1 << 18, &mc->intermediate, e) < 0 ||
        get_int(root, "max_position_embeddings", 1 << 20, &mc->context_max, e) < 0 ||
        get_positive(root, "rms_norm_eps", &mc->rms_eps, e) < 0 ||
        read_rope(root, &mc->rope_theta, e) < 0 || check_heads(mc, e) < 0)
        return -1;
    if (!json_is_boolean(tied))
        return err_set(e, ERR_USER, "config.json has no tie_word_embeddings of true or false");
    mc->tied = json_is_true(tied);
    mc->says_bf16 = names_bf16(json_object_get(root, "dtype")) ||
                    names_bf16(json_object_get(root, "torch_dtype"));
    return read_eos(mc, root, "config.json", e);
}

static int divide(int *n, int ranks, const char *what, struct err *e)
{
    if (*n % ranks)
        return err_set(e, ERR_USER, "ranks is %d, expected a divisor of the model's %d %s", ranks,
                       *n, what);
    *n /= ranks;
    return 0;
}

int model_config_part(const struct model_conf *whole, int ranks, struct model_conf *part,
                      struct err *e)
{
    *part = *whole;
    part->ranks = ranks;
    if (ranks < 1 || ranks > ENGINE_RANKS_MAX)
        return err_set(e, ERR_USER, "ranks is %d, expected 1 to %d", ranks, ENGINE_RANKS_MAX);
    if (divide(&part->kv_heads, ranks, "key heads", e) < 0 ||
        divide(&part->intermediate, ranks, "columns of the MLP", e) < 0 ||
        divide(&part->vocab, ranks, "ids of the vocabulary", e) < 0)
        return -1;
    part->heads /= ranks; /* a multiple of the key heads */
    return 0;
}

int model_config_read(const char *dir, struct model_conf *mc, struct err *e)
{
    char path[PATH_SIZE];
    json_t *generation = NULL;
    int rc = -1;
    *mc = (struct model_conf){.ranks = 1};
    if (file_path(path, sizeof path, dir, "config.json", e) < 0) return -1;
    json_t *root = file_json_read(path, FILE_CONFIG_MAX, e);
    if (!root || read_config(mc, root, e) < 0) goto out;
    if (file_path(path, sizeof path, dir, "generation_config.json", e) < 0) goto out;
    if (file_exists(path)) {
        generation = file_json_read(path, FILE_CONFIG_MAX, e);
        if (!generation || read_eos(mc, generation, "generation_config.json", e) < 0) goto out;
    }
    rc = 0;
out:
    json_decref(root);
    json_decref(generation);
    return rc;
}

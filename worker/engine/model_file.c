/* model_file.c - see model_file.h.
 *
 * First the configuration says which tensors there must be (the slots), then each file's tensors
 * are matched with them; what is missing, unknown, there twice or of another shape is named. */
#include "engine/model_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "engine/files.h"

#define PATH_SIZE     4096
#define INDEX_MAX     ((size_t)16 << 20)
#define SLOTS_A_LAYER 11

/* ------------------------------------------------------------------ slots */

static struct slot *slot_add(struct model_files *f, enum slot_kind kind, int layer,
                             const char *name, int64_t rows, int64_t cols)
{
    struct slot *s = &f->slots[f->slot_count++];
    *s = (struct slot){.kind = kind, .layer = layer, .rows = rows, .cols = cols};
    if (layer < 0)
        snprintf(s->name, sizeof s->name, "%s.weight", name);
    else
        snprintf(s->name, sizeof s->name, "model.layers.%d.%s.weight", layer, name);
    return s;
}

static void gain_slot(struct model_files *f, int layer, const char *name, int width, float **at)
{
    slot_add(f, SLOT_GAIN, layer, name, width, 0)->gain = at;
}

static void layer_slots(struct model_files *f, struct model_weights *mw, int layer)
{
    static const char *const names[] = {
        [SITE_Q] = "self_attn.q_proj",   [SITE_K] = "self_attn.k_proj",
        [SITE_V] = "self_attn.v_proj",   [SITE_O] = "self_attn.o_proj",
        [SITE_GATE] = "mlp.gate_proj",   [SITE_UP] = "mlp.up_proj",
        [SITE_DOWN] = "mlp.down_proj",
    };
    const struct model_conf *mc = &mw->whole;
    struct layer_weights *w = &mw->layers[layer];
    gain_slot(f, layer, "input_layernorm", mc->hidden, &w->input_norm);
    for (int s = 0; s < SITES_A_LAYER; s++) {
        int in, out;
        site_size(mc, (enum lora_site)s, &in, &out);
        struct slot *slot = slot_add(f, SLOT_MATRIX, layer, names[s], out, in);
        slot->cut = site_cut((enum lora_site)s);
        slot->ahead = &mw->packed[layer].ahead[s];
        slot->back = &mw->packed[layer].back[s];
    }
    gain_slot(f, layer, "self_attn.q_norm", mc->head_dim, &w->q_norm);
    gain_slot(f, layer, "self_attn.k_norm", mc->head_dim, &w->k_norm);
    gain_slot(f, layer, "post_attention_layernorm", mc->hidden, &w->post_norm);
}

int model_slots_make(struct model_files *f, struct model_weights *mw, struct err *e)
{
    const struct model_conf *mc = &mw->whole;
    f->slots = calloc((size_t)mc->layers * SLOTS_A_LAYER + 3, sizeof *f->slots);
    if (!f->slots) return err_set(e, ERR_RETRY, "out of memory");
    struct slot *head = slot_add(f, SLOT_TABLE, -1, "model.embed_tokens", mc->vocab, mc->hidden);
    for (int i = 0; i < mc->layers; i++)
        layer_slots(f, mw, i);
    gain_slot(f, -1, "model.norm", mc->hidden, &mw->final_norm);
    struct slot *last = slot_add(f, mc->tied ? SLOT_TIED_COPY : SLOT_MATRIX, -1, "lm_head",
                                 mc->vocab, mc->hidden);
    if (!mc->tied) head = last;
    head->cut = CUT_OUT;
    head->ahead = &mw->unembed;
    head->back = &mw->unembed_back;
    return 0;
}

struct slot *model_slot_of(struct model_files *f, const char *tensor)
{
    for (int i = 0; i < f->slot_count; i++)
        if (!strcmp(f->slots[i].name, tensor)) return &f->slots[i];
    return NULL;
}

static int check_all_found(const struct model_files *f, const char *dir, struct err *e)
{
    for (int i = 0; i < f->slot_count; i++)
        if (!f->slots[i].found && f->slots[i].kind != SLOT_TIED_COPY)
            return err_set(e, ERR_USER, "\"%s\" has no tensor \"%s\"", dir, f->slots[i].name);
    return 0;
}

/* ------------------------------------------------------------------ files */

static int match(struct model_files *f, const struct safetensors_tensor *t, struct err *e)
{
    struct slot *s = model_slot_of(f, t->name);
    if (!s) return err_set(e, ERR_USER, "unknown tensor \"%s\"", t->name);
    if (s->found) return err_set(e, ERR_USER, "tensor \"%s\" is there twice", t->name);
    s->found = t;
    return safetensors_check_shape(t, s->rows, s->cols, e);
}

/* index: the weight_map of model.safetensors.index.json; NULL: there is one file. */
static int open_file(struct model_files *f, const char *dir, const char *name, const json_t *index,
                     struct err *e)
{
    char path[PATH_SIZE];
    size_t size;
    if (file_path(path, sizeof path, dir, name, e) < 0) return -1;
    char *copy = f->paths[f->count] = strdup(path);
    struct safetensors *st = copy ? safetensors_open(path, e) : NULL;
    if (!copy) err_set(e, ERR_RETRY, "out of memory");
    f->files[f->count++] = st;
    if (!st) return -1;
    safetensors_bytes(st, &size);
    f->size += size;
    for (int i = 0; i < safetensors_count(st); i++) {
        const struct safetensors_tensor *t = safetensors_at(st, i);
        const char *listed = json_string_value(json_object_get(index, t->name));
        if (index && (!listed || strcmp(listed, name)))
            return err_set(e, ERR_USER,
                           "\"%s\": tensor \"%s\" is not where the index says (\"%.80s\")", path,
                           t->name, listed ? listed : "");
        if (match(f, t, e) < 0) return err_prefix(e, "\"%s\"", path);
    }
    return 0;
}

/* The index comes with the model: a shard's name must not lead out of the folder. */
static bool shard_name_ok(const char *name)
{
    size_t n = strlen(name), tail = strlen(".safetensors");
    return n > tail && n < 256 && *name != '.' && !strchr(name, '/') &&
           !strcmp(name + n - tail, ".safetensors");
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* names: sorted, each once; they point into the index. */
static int shard_names(const json_t *map, const char **names, int *count, struct err *e)
{
    const char *tensor;
    json_t *file;
    json_object_foreach((json_t *)map, tensor, file)
    {
        const char *name = json_string_value(file);
        if (!name || !shard_name_ok(name))
            return err_set(e, ERR_USER, "the index names file \"%.80s\" for tensor \"%.80s\"",
                           name ? name : "", tensor);
        int i = 0;
        while (i < *count && strcmp(names[i], name))
            i++;
        if (i == MODEL_SHARDS_MAX)
            return err_set(e, ERR_USER, "the index names more than %d files", i);
        names[i] = name;
        if (i == *count) (*count)++;
    }
    qsort(names, (size_t)*count, sizeof *names, compare_names);
    return 0;
}

/* What the index lists must be there.  Tensors that are there were all listed, or refused. */
static int check_listed(const struct model_files *f, const json_t *map, struct err *e)
{
    size_t there = 0;
    const char *name;
    json_t *file;
    for (int i = 0; i < f->count; i++)
        there += (size_t)safetensors_count(f->files[i]);
    if (json_object_size(map) == there) return 0;
    json_object_foreach((json_t *)map, name, file)
    {
        bool found = false;
        for (int i = 0; i < f->count && !found; i++)
            found = safetensors_find(f->files[i], name) != NULL;
        if (!found)
            return err_set(e, ERR_USER, "\"%.80s\" has no tensor \"%.80s\", which the index lists",
                           json_string_value(file), name);
    }
    return 0;
}

static int open_shards(struct model_files *f, const char *dir, const char *index_path,
                       struct err *e)
{
    const char *names[MODEL_SHARDS_MAX];
    int count = 0, rc = -1;
    json_t *root = file_json_read(index_path, INDEX_MAX, e);
    if (!root) return -1;
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map)) {
        err_set(e, ERR_USER, "\"%s\" has no weight_map", index_path);
        goto out;
    }
    if (shard_names(map, names, &count, e) < 0) goto out;
    for (int i = 0; i < count; i++)
        if (open_file(f, dir, names[i], map, e) < 0) goto out;
    rc = check_listed(f, map, e);
out:
    json_decref(root);
    return rc;
}

int model_files_open(struct model_files *f, struct model_weights *mw, const char *dir,
                     struct err *e)
{
    char single[PATH_SIZE], index[PATH_SIZE];
    *f = (struct model_files){0};
    if (file_path(single, sizeof single, dir, "model.safetensors", e) < 0 ||
        file_path(index, sizeof index, dir, "model.safetensors.index.json", e) < 0 ||
        model_slots_make(f, mw, e) < 0)
        return -1;
    int rc = file_exists(index) && !file_exists(single)
                 ? open_shards(f, dir, index, e)
                 : open_file(f, dir, "model.safetensors", NULL, e);
    return rc < 0 ? -1 : check_all_found(f, dir, e);
}

void model_files_clear(struct model_files *f)
{
    for (int i = 0; i < f->count; i++) {
        safetensors_close(f->files[i]);
        free(f->paths[i]);
    }
    free(f->slots);
}

/* adapter_file.c - a LoRA adapter as a folder that PEFT loads, and back.
 *
 *   adapter_config.json        rank, alpha 32, the projections that carry it
 *   adapter_model.safetensors  base_model.model.<site>.lora_A.weight [rank, in], lora_B.weight
 * [out, rank] optimizer.safetensors      step, and m.<site>.lora_A.weight ... v. ... grad. ... in
 * the same shapes
 *
 * The folder's hash is what `LC_ALL=C sha256sum * | sha256sum` prints inside it: each file's hash
 * beside its name, so that neither bytes nor names can be exchanged.  A folder is written beside
 * its place, synced, and renamed over nothing; it is there whole or not at all. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/failpoint.h"
#include "engine/files.h"
#include "engine/model.h"
#include "engine/safetensors.h"
#include "seal/seal.h"

#define PATH_SIZE 4096

/* In order of name, as the hash wants them. */
enum file { FILE_CONFIG, FILE_WEIGHTS, FILE_OPTIMIZER, FILES };

static const char *const file_names[FILES] = {"adapter_config.json", "adapter_model.safetensors",
                                              "optimizer.safetensors"};
static const char *const part_prefix[PARTS] = {"base_model.model.", "grad.", "m.", "v."};

/* PEFT's target_modules, in our groups. */
static const struct {
    const char *name;
    enum { GROUP_ATTN, GROUP_MLP, GROUP_UNEMBED, GROUPS } group;
} modules[] = {
    {"q_proj", GROUP_ATTN},   {"k_proj", GROUP_ATTN},     {"v_proj", GROUP_ATTN},
    {"o_proj", GROUP_ATTN},   {"gate_proj", GROUP_MLP},   {"up_proj", GROUP_MLP},
    {"down_proj", GROUP_MLP}, {"lm_head", GROUP_UNEMBED},
};
#define MODULES ((int)(sizeof modules / sizeof *modules))

static bool group_trained(const struct lora_conf *conf, int group)
{
    return group == GROUP_ATTN  ? conf->train_attn
           : group == GROUP_MLP ? conf->train_mlp
                                : conf->train_unembed;
}

/* ------------------------------------------------------------------ tensors */

/* The tensor of site i, its A (b 0) or B (b 1), as it stands in a file; without data, which may be
 * in pieces. */
static struct safetensors_tensor tensor_of(const struct adapter *ad, int site, enum part part,
                                           int b)
{
    struct safetensors_tensor out = {.dtype = DTYPE_F32, .rank = 2};
    char name[64];
    lora_site_name(ad, site, name, sizeof name);
    snprintf(out.name, sizeof out.name, "%s%s.lora_%c.weight", part_prefix[part], name,
             b ? 'B' : 'A');
    adapter_tensor_size(ad, site, b, &out.shape[0], &out.shape[1]);
    out.count = (size_t)(out.shape[0] * out.shape[1]);
    out.size = out.count * sizeof(float);
    return out;
}

/* Appends all tensors of a part; list has room. */
static int list_part(const struct adapter *ad, enum part part, struct safetensors_tensor *list)
{
    int n = 0;
    for (int i = 0; i < ad->site_count; i++)
        for (int b = 0; b < 2 && ad->sites[i].a; b++)
            list[n++] = tensor_of(ad, i, part, b);
    return n;
}

static struct safetensors_tensor *list_create(const struct adapter *ad, int parts, struct err *e)
{
    struct safetensors_tensor *list =
        calloc((size_t)ad->site_count * 2 * (size_t)parts + 1, sizeof *list);
    if (!list) err_set(e, ERR_RETRY, "out of memory");
    return list;
}

/* ------------------------------------------------------------------ saving */

static int write_config(const struct adapter *ad, const char *path, struct err *e)
{
    json_t *targets = json_array();
    for (int i = 0; i < MODULES; i++)
        if (group_trained(&ad->conf, modules[i].group))
            json_array_append_new(targets, json_string(modules[i].name));
    json_t *root =
        json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:s, s:b, s:b, s:o}", "peft_type", "LORA",
                  "task_type", "CAUSAL_LM", "base_model_name_or_path", ad->base_model, "r",
                  ad->conf.rank, "lora_alpha", (int)ENGINE_LORA_ALPHA, "lora_dropout", 0.0, "bias",
                  "none", "fan_in_fan_out", 0, "inference_mode", 1, "target_modules", targets);
    char *text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!text) return err_set(e, ERR_RETRY, "out of memory");
    int rc = file_write(path, text, strlen(text), e);
    free(text);
    return rc;
}

static int put_tensor(struct safetensors_writer *w, const struct adapter *ad, int site,
                      enum part part, int b, float *room, struct err *e)
{
    size_t count = tensor_of(ad, site, part, b).count;
    for (size_t at = 0, n; at < count; at += n) {
        n = adapter_piece(count, at);
        adapter_tensor_get(ad, site, part, b, at, room, n);
        if (safetensors_writer_put(w, room, n * sizeof *room, e) < 0) return -1;
    }
    return 0;
}

/* The bytes of what list_part() listed. */
static int put_part(struct safetensors_writer *w, const struct adapter *ad, enum part part,
                    struct err *e)
{
    float *room = adapter_room(e);
    int rc = room ? 0 : -1;
    for (int i = 0; i < ad->site_count && rc == 0; i++)
        for (int b = 0; b < 2 && ad->sites[i].a && rc == 0; b++)
            rc = put_tensor(w, ad, i, part, b, room, e);
    free(room);
    return rc;
}

static int write_weights(const struct adapter *ad, const char *path, struct err *e)
{
    struct safetensors_tensor *list = list_create(ad, 1, e);
    if (!list) return -1;
    int n = list_part(ad, PART_WEIGHTS, list);
    struct safetensors_writer *w = safetensors_writer_begin(path, list, n, e);
    free(list);
    if (!w) return -1;
    if (put_part(w, ad, PART_WEIGHTS, e) == 0) return safetensors_writer_finish(w, e);
    safetensors_writer_abort(w);
    return -1;
}

static int write_optimizer(const struct adapter *ad, const char *path, struct err *e)
{
    struct safetensors_tensor *list = list_create(ad, PARTS, e);
    if (!list) return -1;
    list[0] =
        (struct safetensors_tensor){.name = "step", .dtype = DTYPE_I64, .rank = 1, .shape = {1}};
    int n = 1;
    n += list_part(ad, PART_M, list + n);
    n += list_part(ad, PART_V, list + n);
    if (ad->has_gradient) n += list_part(ad, PART_GRADIENT, list + n);
    struct safetensors_writer *w = safetensors_writer_begin(path, list, n, e);
    free(list);
    if (!w) return -1;
    if (safetensors_writer_put(w, &ad->step, sizeof ad->step, e) == 0 &&
        put_part(w, ad, PART_M, e) == 0 && put_part(w, ad, PART_V, e) == 0 &&
        (!ad->has_gradient || put_part(w, ad, PART_GRADIENT, e) == 0))
        return safetensors_writer_finish(w, e);
    safetensors_writer_abort(w);
    return -1;
}

static int write_files(const struct adapter *ad, const char *dir, bool with_optimizer,
                       struct err *e)
{
    char path[PATH_SIZE];
    if (file_path(path, sizeof path, dir, file_names[FILE_CONFIG], e) < 0 ||
        write_config(ad, path, e) < 0)
        return -1;
    if (file_path(path, sizeof path, dir, file_names[FILE_WEIGHTS], e) < 0 ||
        write_weights(ad, path, e) < 0)
        return -1;
    if (failpoint("wk.mid_save", dir, e) < 0) return -1;
    if (!with_optimizer) return 0;
    if (file_path(path, sizeof path, dir, file_names[FILE_OPTIMIZER], e) < 0 ||
        write_optimizer(ad, path, e) < 0)
        return -1;
    return 0;
}

/* The hash over "<hash of file>  <name>\n" of each file. */
static int hash_folder(char hashes[FILES][SEAL_SHA256_HEX_SIZE], const bool *there, char out[65],
                       struct err *e)
{
    uint8_t digest[SEAL_SHA256_SIZE];
    struct seal_hash *h = seal_hash_begin(e);
    if (!h) return -1;
    for (int f = 0; f < FILES; f++) {
        char line[SEAL_SHA256_HEX_SIZE + 64];
        if (!there[f]) continue;
        int n = snprintf(line, sizeof line, "%s  %s\n", hashes[f], file_names[f]);
        seal_hash_add(h, line, (size_t)n);
    }
    seal_hash_end(h, digest);
    seal_hex(digest, sizeof digest, out);
    return 0;
}

static int measure(const char *dir, int64_t *size_bytes, char sha256[65], struct err *e)
{
    char hashes[FILES][SEAL_SHA256_HEX_SIZE], path[PATH_SIZE];
    bool there[FILES];
    struct stat st;
    *size_bytes = 0;
    for (int f = 0; f < FILES; f++) {
        if (file_path(path, sizeof path, dir, file_names[f], e) < 0) return -1;
        there[f] = stat(path, &st) == 0;
        if (!there[f]) continue;
        *size_bytes += st.st_size;
        if (seal_sha256_file(path, hashes[f], e) < 0) return -1;
    }
    return hash_folder(hashes, there, sha256, e);
}

/* A folder of an attempt that was cut short: nothing but plain files of ours. */
static int remove_folder(const char *dir, struct err *e)
{
    DIR *d = opendir(dir);
    if (!d) return errno == ENOENT ? 0 : err_set(e, ERR_RETRY, "could not open \"%s\"", dir);
    for (struct dirent *entry; (entry = readdir(d));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            unlinkat(dirfd(d), entry->d_name, 0);
    closedir(d);
    if (rmdir(dir) < 0)
        return err_set(e, ERR_RETRY, "could not remove \"%s\": %s", dir, strerror(errno));
    return 0;
}

static int sync_parent(const char *dir, struct err *e)
{
    char parent[PATH_SIZE];
    snprintf(parent, sizeof parent, "%s", dir);
    char *slash = strrchr(parent, '/');
    if (!slash) return file_sync_dir(".", e);
    slash[slash == parent] = '\0'; /* "/x" lies in "/" */
    return file_sync_dir(parent, e);
}

int adapter_save(const struct adapter *ad, const char *dir, bool with_optimizer,
                 int64_t *size_bytes, char sha256[65], struct err *e)
{
    char tmp[PATH_SIZE];
    if (with_optimizer && !ad->trainable)
        return err_set(e, ERR_USER, "this adapter has no optimizer state to save");
    if (strlen(dir) + sizeof ".tmp" > sizeof tmp)
        return err_set(e, ERR_USER, "path \"%.80s...\" is too long", dir);
    if (file_exists(dir)) return err_set(e, ERR_USER, "checkpoint \"%s\" exists already", dir);
    snprintf(tmp, sizeof tmp, "%s.tmp", dir);
    if (remove_folder(tmp, e) < 0) return -1;
    if (mkdir(tmp, 0755) < 0)
        return err_set(e, ERR_RETRY, "could not make \"%s\": %s", tmp, strerror(errno));
    if (write_files(ad, tmp, with_optimizer, e) < 0 || adapter_sync(ad, e) < 0 ||
        measure(tmp, size_bytes, sha256, e) < 0 ||
        file_sync_dir(tmp, e) < 0)
        goto fail;
    if (renameat2(AT_FDCWD, tmp, AT_FDCWD, dir, RENAME_NOREPLACE) < 0) {
        err_set(e, errno == EEXIST ? ERR_USER : ERR_RETRY, "could not rename \"%s\" to \"%s\": %s",
                tmp, dir, strerror(errno));
        goto fail;
    }
    return sync_parent(dir, e);
fail:
    remove_folder(tmp, NULL);
    return -1;
}

/* ------------------------------------------------------------------ loading */

/* The files' bytes, read once, hashed, and used from there: nobody can change them in between. */
struct folder {
    void *bytes[FILES];
    size_t size[FILES];
};

static void folder_clear(struct folder *f)
{
    for (int i = 0; i < FILES; i++)
        free(f->bytes[i]);
}

/* The most that a file can have for this model: all sites at the highest rank. */
static size_t file_max(const struct engine *en, int file)
{
    const struct lora_conf most = {ENGINE_RANK_MAX, true, true, true};
    return file == FILE_CONFIG
               ? FILE_CONFIG_MAX
               : adapter_bytes(en, &most, file == FILE_OPTIMIZER) + SAFETENSORS_HEADER_MAX;
}

static int folder_read(struct folder *f, const struct engine *en, const char *dir,
                       const char *expected_sha256, bool with_optimizer, struct err *e)
{
    char hashes[FILES][SEAL_SHA256_HEX_SIZE], path[PATH_SIZE], sha256[65];
    bool there[FILES];
    for (int i = 0; i < FILES; i++) {
        if (file_path(path, sizeof path, dir, file_names[i], e) < 0) return -1;
        there[i] = i != FILE_OPTIMIZER || file_exists(path);
        if (!there[i] && with_optimizer)
            return err_set(e, ERR_USER, "checkpoint \"%s\" has no optimizer state", dir);
        if (!there[i]) continue;
        if (i == FILE_OPTIMIZER && !with_optimizer) { /* only its hash is wanted, if that */
            if (expected_sha256 && seal_sha256_file(path, hashes[i], e) < 0) return -1;
            continue;
        }
        f->bytes[i] = file_read(path, file_max(en, i), &f->size[i], e);
        if (!f->bytes[i]) return -1;
        if (expected_sha256) seal_sha256_hex(f->bytes[i], f->size[i], hashes[i]);
    }
    if (!expected_sha256) return 0;
    if (hash_folder(hashes, there, sha256, e) < 0) return -1;
    if (strcmp(sha256, expected_sha256))
        return err_set(e, ERR_USER, "checkpoint \"%s\" has sha256 %s, expected %.64s", dir, sha256,
                       expected_sha256);
    return 0;
}

/* "q_proj" of "q_proj" and of "model.layers.0.self_attn.q_proj": -1 when it is none of ours. */
static int module_of(const char *name)
{
    for (int i = 0; i < MODULES; i++)
        if (!strcmp(name, modules[i].name)) return i;
    return -1;
}

static int read_targets(const json_t *root, struct lora_conf *conf, struct err *e)
{
    bool seen[sizeof modules / sizeof *modules] = {false};
    bool *const flags[GROUPS] = {&conf->train_attn, &conf->train_mlp, &conf->train_unembed};
    size_t i;
    json_t *v;
    json_array_foreach(json_object_get(root, "target_modules"), i, v)
    {
        const char *name = json_string_value(v);
        int m = name ? module_of(name) : -1;
        if (m < 0)
            return err_set(e, ERR_USER, "adapter_config.json targets unknown module \"%.40s\"",
                           name ? name : "");
        seen[m] = true;
        *flags[modules[m].group] = true;
    }
    for (int m = 0; m < MODULES; m++)
        if (*flags[modules[m].group] && !seen[m])
            return err_set(e, ERR_USER, "adapter_config.json does not target \"%s\" like its group",
                           modules[m].name);
    return 0;
}

/* Variants of LoRA that compute something else than we do. */
static int check_variants(const json_t *root, struct err *e)
{
    static const char *const off[] = {"use_rslora",
                                      "use_dora",
                                      "fan_in_fan_out",
                                      "rank_pattern",
                                      "alpha_pattern",
                                      "modules_to_save",
                                      "lora_bias",
                                      "layers_to_transform",
                                      "use_qalora",
                                      "use_bdlora",
                                      "alora_invocation_tokens",
                                      "trainable_token_indices",
                                      "target_parameters",
                                      "layer_replication"};
    for (size_t i = 0; i < sizeof off / sizeof *off; i++) {
        const json_t *v = json_object_get(root, off[i]);
        if (!v || json_is_null(v) || json_is_false(v)) continue;
        if ((json_is_object(v) || json_is_array(v)) && !json_object_size(v) && !json_array_size(v))
            continue;
        return err_set(e, ERR_USER, "adapter_config.json sets %s, which is not supported", off[i]);
    }
    const char *bias = json_string_value(json_object_get(root, "bias"));
    if (bias && strcmp(bias, "none"))
        return err_set(e, ERR_USER, "adapter_config.json has bias \"%.40s\", expected \"none\"",
                       bias);
    return 0;
}

static int read_config(const struct folder *f, struct lora_conf *conf, struct err *e)
{
    int rc = -1;
    *conf = (struct lora_conf){0};
    json_t *root = file_json(f->bytes[FILE_CONFIG], f->size[FILE_CONFIG], FILE_JSON_DEPTH_MAX,
                             file_names[FILE_CONFIG], e);
    if (!root) return -1;
    const char *type = json_string_value(json_object_get(root, "peft_type"));
    const json_t *rank = json_object_get(root, "r"), *alpha = json_object_get(root, "lora_alpha");
    if (!type || strcmp(type, "LORA")) {
        err_set(e, ERR_USER, "adapter_config.json has no peft_type \"LORA\"");
    } else if (!json_is_integer(rank) || json_integer_value(rank) < 1 ||
               json_integer_value(rank) > ENGINE_RANK_MAX) {
        err_set(e, ERR_USER, "adapter_config.json has no r from 1 to %d", ENGINE_RANK_MAX);
    } else if (json_number_value(alpha) != (double)ENGINE_LORA_ALPHA) {
        err_set(e, ERR_USER, "adapter_config.json has lora_alpha %g, expected %g",
                json_number_value(alpha), (double)ENGINE_LORA_ALPHA);
    } else if (check_variants(root, e) == 0 && read_targets(root, conf, e) == 0) {
        conf->rank = (int)json_integer_value(rank);
        rc = 0;
    }
    json_decref(root);
    return rc;
}

/* Every tensor of the part, each with its shape; *used counts them. */
static int read_part(struct adapter *ad, const struct safetensors *st, enum part part, float *room,
                     int *used, struct err *e)
{
    for (int i = 0; i < ad->site_count; i++) {
        for (int b = 0; b < 2 && ad->sites[i].a; b++) {
            struct safetensors_tensor want = tensor_of(ad, i, part, b);
            const struct safetensors_tensor *t = safetensors_find(st, want.name);
            if (!t) return err_set(e, ERR_USER, "there is no tensor \"%s\"", want.name);
            if (safetensors_check_shape(t, want.shape[0], want.shape[1], e) < 0 ||
                safetensors_check_values(t, false, e) < 0)
                return -1;
            for (size_t at = 0, n; at < want.count; at += n) {
                n = adapter_piece(want.count, at);
                safetensors_read(t, at, n, room);
                adapter_tensor_put(ad, i, part, b, at, room, n);
            }
            (*used)++;
        }
    }
    return 0;
}

static int check_all_used(const struct safetensors *st, int used, struct err *e)
{
    if (safetensors_count(st) == used) return 0;
    return err_set(e, ERR_USER, "there are %d tensors, expected %d", safetensors_count(st), used);
}

static int read_weights(struct adapter *ad, const struct folder *f, float *room, struct err *e)
{
    int used = 0;
    struct safetensors *st = safetensors_parse(f->bytes[FILE_WEIGHTS], f->size[FILE_WEIGHTS],
                                               file_names[FILE_WEIGHTS], e);
    if (!st) return -1;
    int rc = read_part(ad, st, PART_WEIGHTS, room, &used, e);
    if (rc == 0) rc = check_all_used(st, used, e);
    safetensors_close(st);
    return rc;
}

static int read_step(struct adapter *ad, const struct safetensors *st, struct err *e)
{
    const struct safetensors_tensor *t = safetensors_find(st, "step");
    if (!t || t->dtype != DTYPE_I64 || t->count != 1)
        return err_set(e, ERR_USER, "there is no tensor \"step\" of one I64");
    memcpy(&ad->step, t->data, sizeof ad->step);
    if (ad->step < 0) return err_set(e, ERR_USER, "step is %lld, below 0", (long long)ad->step);
    return 0;
}

static bool has_gradient(const struct safetensors *st)
{
    for (int i = 0; i < safetensors_count(st); i++)
        if (!strncmp(safetensors_at(st, i)->name, part_prefix[PART_GRADIENT],
                     strlen(part_prefix[PART_GRADIENT])))
            return true;
    return false;
}

static int read_optimizer(struct adapter *ad, const struct folder *f, float *room, struct err *e)
{
    int used = 1, rc = -1;
    struct safetensors *st = safetensors_parse(f->bytes[FILE_OPTIMIZER], f->size[FILE_OPTIMIZER],
                                               file_names[FILE_OPTIMIZER], e);
    if (!st) return -1;
    if (read_step(ad, st, e) < 0 || read_part(ad, st, PART_M, room, &used, e) < 0 ||
        read_part(ad, st, PART_V, room, &used, e) < 0)
        goto out;
    ad->has_gradient = has_gradient(st);
    if (ad->has_gradient && read_part(ad, st, PART_GRADIENT, room, &used, e) < 0) goto out;
    rc = check_all_used(st, used, e);
out:
    safetensors_close(st);
    return rc;
}

static int read_state(struct adapter *ad, const struct folder *f, bool with_optimizer,
                      struct err *e)
{
    float *room = adapter_room(e);
    int rc = room ? read_weights(ad, f, room, e) : -1;
    if (rc == 0 && with_optimizer) rc = read_optimizer(ad, f, room, e);
    free(room);
    return rc == 0 ? adapter_sync(ad, e) : -1;
}

struct adapter *adapter_load(struct engine *en, const char *dir, const char *expected_sha256,
                             bool trainable, bool with_optimizer, struct err *e)
{
    struct folder f = {0};
    struct lora_conf conf;
    struct adapter *ad = NULL;
    bool whole = false;
    if (with_optimizer && !trainable) {
        err_set(e, ERR_BUG, "an adapter with optimizer state must be trainable");
        return NULL;
    }
    if (folder_read(&f, en, dir, expected_sha256, with_optimizer, e) < 0) goto out;
    if (read_config(&f, &conf, e) < 0) goto out;
    ad = adapter_alloc(en, &conf, trainable, e);
    whole = ad && read_state(ad, &f, with_optimizer, e) == 0;
out:
    folder_clear(&f);
    if (whole) return ad;
    adapter_free(ad);
    if (e && e->kind == ERR_USER && !strstr(e->text, dir)) err_prefix(e, "checkpoint \"%s\"", dir);
    return NULL;
}

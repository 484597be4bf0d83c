/* plan.c - tinworks-engine plan: the memory of a model and its tenants, before any is taken; with
 * --device-gb what GPUs of that size have room for. */
#include "engine/plan.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include "commands.h"
#include "session.h"

#define LINES_MAX 32
#define GB        ((size_t)1000000000) /* as GPUs are sold */

struct settings {
    const char *model, *weights;
    int64_t rank, adapters, scratch_mb, kv_mb, ranks, replicas, device_gb, host_gb, scratch_share, kv_share;
    bool no_attn, no_mlp, no_unembed, json;
};

/* Printed either as a table or as one JSON object. */
struct line {
    const char *name, *about;
    size_t value;
    bool bytes;
};

static int settings_read(struct settings *s, int argc, char **argv, struct err *e)
{
    const struct conf_item items[] = {
        {"model", CONF_STR, &s->model, NULL, 0, 0, "folder with a Qwen3 model's config.json"},
        {"weights", CONF_STR, &s->weights, "auto", 0, 0,
         "how the base is kept: fp32, bf16, or auto: what config.json says"},
        {"rank", CONF_INT, &s->rank, "32", 1, ENGINE_RANK_MAX, "of a tenant's adapter"},
        {"no_attn", CONF_BOOL, &s->no_attn, "false", 0, 0, "tenants leave the attention alone"},
        {"no_mlp", CONF_BOOL, &s->no_mlp, "false", 0, 0, "tenants leave the MLP alone"},
        {"no_unembed", CONF_BOOL, &s->no_unembed, "false", 0, 0,
         "tenants leave the unembedding alone"},
        {"adapters", CONF_INT, &s->adapters, "1", 0, 1 << 20, "how many tenants"},
        {"scratch_mb", CONF_INT, &s->scratch_mb, "4096", 1, 1 << 24, "memory of one pass"},
        {"kv_mb", CONF_INT, &s->kv_mb, "1024", 1, 1 << 24, "memory of running samples"},
        {"ranks", CONF_INT, &s->ranks, "1", 1, ENGINE_RANKS_MAX,
         "devices that share every layer; sizes are of one of them"},
        {"replicas", CONF_INT, &s->replicas, "1", 1, ENGINE_RANKS_MAX,
         "times that all of it is there, to share batches and requests"},
        {"device_gb", CONF_INT, &s->device_gb, "0", 0, 1 << 16,
         "what a GPU of so many GB has room for; 0: a CPU"},
        {"scratch_share", CONF_INT, &s->scratch_share, "50", 1, 98,
         "with device_gb: percent for a pass of what the base leaves"},
        {"kv_share", CONF_INT, &s->kv_share, "25", 1, 98,
         "with device_gb: percent for running samples; tenants get the rest"},
        {"host_gb", CONF_INT, &s->host_gb, "1000", 0, 1 << 16,
         "with device_gb: memory of the host for tenants that are paged out"},
        {"json", CONF_BOOL, &s->json, "false", 0, 0, "one JSON object instead of a table"},
        {.name = NULL},
    };
    return flags_read(items, "the memory that a model and its tenants take", argc, argv, e);
}

static int put(struct line *lines, int n, const struct line *more, size_t count)
{
    for (size_t i = 0; i < count; i++)
        lines[n++] = more[i];
    return n;
}

/* What a base, a tenant and a token take, on one rank. */
static int lines_of_parts(const struct memory_plan *p, struct line *lines)
{
    const struct line all[] = {
        {"parameters", "of the base model", p->parameters, false},
        {"ranks", "devices that share every layer; sizes are of one", (size_t)p->ranks, false},
        {"replicas", "times that all of it is there", (size_t)p->replicas, false},
        {"weights_bytes", p->bf16 ? "gains and embedding of the base, in bf16" : "gains and embedding of the base, in fp32",
         p->weights, true},
        {"packed_bytes", "its matrices, prepared for products both ways", p->packed, true},
        {"rope_bytes", "tables of rotary angles", p->rope, true},
        {"adapter_bytes", "a tenant's A and B", p->adapter, true},
        {"gradient_bytes", "its gradient", p->gradient, true},
        {"optimizer_bytes", "its moments", p->optimizer, true},
        {"token_training_bytes", "activations of a token in training", p->token_training, true},
        {"token_forward_bytes", "and forward only", p->token_forward, true},
        {"logits_chunk_bytes", "logits, once a pass", p->logits_chunk, true},
        {"logits_chunk_rows", "tokens whose logits exist at a time", (size_t)p->logits_rows, false},
        {"longest_training_tokens", "longest sequence that scratch can train",
         (size_t)p->longest_training, false},
        {"kv_token_bytes", "keys and values of a sampled token", p->kv_token, true},
    };
    return put(lines, 0, all, sizeof all / sizeof *all);
}

static int lines_of(const struct memory_plan *p, int adapters, struct line *lines)
{
    const struct line all[] = {
        {"kv_tokens", "tokens that the KV memory holds", p->kv / p->kv_token, false},
        {"scratch_bytes", "memory of one pass, at most", p->scratch, true},
        {"kv_bytes", "memory of running samples, at most", p->kv, true},
        {"adapters", "tenants", (size_t)adapters, false},
        {"total_bytes", "base, tenants, scratch and KV, of all ranks and replicas",
         memory_plan_total(p, adapters), true},
    };
    return put(lines, lines_of_parts(p, lines), all, sizeof all / sizeof *all);
}

static int lines_of_device(const struct device_plan *p, struct line *lines)
{
    const struct memory_plan *m = &p->memory;
    const struct line all[] = {
        {"fits", "1: there is room for the base and some of the rest", p->fits, false},
        {"base_bytes", "the base on one device", m->weights + m->packed + m->rope, true},
        {"left_bytes", "what it leaves there", p->left, true},
        {"scratch_bytes", "for a pass", p->fits ? m->scratch : 0, true},
        {"pass_tokens", "of one training pass: a micro-batch", p->pass_tokens, false},
        {"kv_bytes", "for running samples", p->fits ? m->kv : 0, true},
        {"kv_tokens", "that their keys and values have room for", p->kv_tokens, false},
        {"tenants_bytes", "for tenants", p->fits ? p->tenants : 0, true},
        {"tenants_resident", "with gradient and moments on the device", p->tenants_resident, false},
        {"tenants_paged", "with the moments on the host", p->tenants_paged, false},
        {"tenants_on_host", "wholly on the host", p->tenants_on_host, false},
    };
    return put(lines, lines_of_parts(m, lines), all, sizeof all / sizeof *all);
}

static void print_table(const struct line *lines, int n)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    for (int i = 0; i < n; i++) {
        double x = (double)lines[i].value;
        int unit = 0;
        for (; lines[i].bytes && x >= 1024 && unit < 4; unit++)
            x /= 1024;
        char human[32] = "";
        if (unit) snprintf(human, sizeof human, "%.2f %s", x, units[unit]);
        printf("%-24s %16zu %12s  %s\n", lines[i].name, lines[i].value, human, lines[i].about);
    }
}

static int print_json(const struct line *lines, int n, struct err *e)
{
    json_t *root = json_object();
    for (int i = 0; i < n; i++)
        json_object_set_new(root, lines[i].name, json_integer((json_int_t)lines[i].value));
    char *text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    if (!text) return err_set(e, ERR_RETRY, "out of memory");
    puts(text);
    free(text);
    return 0;
}

int command_plan(int argc, char **argv, struct err *e)
{
    struct settings s = {0};
    struct memory_plan p;
    struct device_plan d;
    struct line lines[LINES_MAX];
    int n;
    if (settings_read(&s, argc, argv, e) < 0) return -1;
    const struct memory_plan_conf conf = {
        .model_dir = s.model,
        .weights = s.weights,
        .lora = {(int)s.rank, !s.no_attn, !s.no_mlp, !s.no_unembed},
        .scratch_bytes_max = (size_t)s.scratch_mb << 20,
        .kv_bytes_max = (size_t)s.kv_mb << 20,
        .ranks = (int)s.ranks,
        .replicas = (int)s.replicas,
    };
    const struct device_plan_conf device = {.memory = conf,
                                            .device_bytes = (size_t)s.device_gb * GB,
                                            .host_bytes = (size_t)s.host_gb * GB,
                                            .scratch_percent = (int)s.scratch_share,
                                            .kv_percent = (int)s.kv_share};
    if (s.device_gb) {
        if (device_plan_make(&device, &d, e) < 0) return -1;
        n = lines_of_device(&d, lines);
    } else {
        if (memory_plan_make(&conf, &p, e) < 0) return -1;
        n = lines_of(&p, (int)s.adapters, lines);
    }
    if (s.json) return print_json(lines, n, e);
    print_table(lines, n);
    return 0;
}

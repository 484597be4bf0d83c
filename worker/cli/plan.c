/* plan.c - tinworks-engine plan: the memory of a model and its tenants, before any is taken. */
#include "engine/plan.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include "commands.h"
#include "session.h"

#define LINES_MAX 20

struct settings {
    const char *model, *weights;
    int64_t rank, adapters, scratch_mb, kv_mb;
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
        {"json", CONF_BOOL, &s->json, "false", 0, 0, "one JSON object instead of a table"},
        {.name = NULL},
    };
    return flags_read(items, "the memory that a model and its tenants take", argc, argv, e);
}

static int lines_of(const struct memory_plan *p, int adapters, struct line *lines)
{
    const struct line all[] = {
        {"parameters", "of the base model", p->parameters, false},
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
        {"kv_tokens", "tokens that the KV memory holds", p->kv / p->kv_token, false},
        {"scratch_bytes", "memory of one pass, at most", p->scratch, true},
        {"kv_bytes", "memory of running samples, at most", p->kv, true},
        {"adapters", "tenants", (size_t)adapters, false},
        {"total_bytes", "base, tenants, scratch and KV", memory_plan_total(p, adapters), true},
    };
    int n = sizeof all / sizeof *all;
    for (int i = 0; i < n; i++)
        lines[i] = all[i];
    return n;
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
    struct line lines[LINES_MAX];
    if (settings_read(&s, argc, argv, e) < 0) return -1;
    const struct memory_plan_conf conf = {
        .model_dir = s.model,
        .weights = s.weights,
        .lora = {(int)s.rank, !s.no_attn, !s.no_mlp, !s.no_unembed},
        .scratch_bytes_max = (size_t)s.scratch_mb << 20,
        .kv_bytes_max = (size_t)s.kv_mb << 20,
    };
    if (memory_plan_make(&conf, &p, e) < 0) return -1;
    int n = lines_of(&p, (int)s.adapters, lines);
    if (s.json) return print_json(lines, n, e);
    print_table(lines, n);
    return 0;
}

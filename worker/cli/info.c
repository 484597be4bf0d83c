/* info.c - tinworks-engine info: what a model's folder holds, as the engine read it. */
#include <stdio.h>
#include "commands.h"
#include "session.h"

static void print(const struct engine *en)
{
    const struct engine_info *i = engine_info(en);
    const struct lora_conf lora = {
        .rank = 32, .train_attn = true, .train_mlp = true, .train_unembed = true};
    printf("model       %s\n", i->model_dir);
    printf("arch        %s\n", i->arch);
    printf("layers      %d\nhidden      %d\nheads       %d (%d for keys), of %d\n", i->layers,
           i->hidden, i->heads, i->kv_heads, i->head_dim);
    printf("mlp         %d\nvocabulary  %d%s\ncontext     %d\n", i->intermediate, i->vocab,
           i->tied ? ", tied" : "", i->context_max);
    printf("eos        ");
    for (int k = 0; k < i->eos_count; k++)
        printf(" %d", i->eos[k]);
    printf("\ntokenizer   %s\n", engine_has_tokenizer(en) ? "yes" : "no");
    printf("numerics    %s\nweights     %s, sha256:%s\n", i->numerics, i->weights,
           i->weights_sha256);
    printf("adapter     %zu bytes at rank %d on everything, with its optimizer\n",
           adapter_bytes(en, &lora, true), lora.rank);
}

int command_info(int argc, char **argv, struct err *e)
{
    struct session s = {0};
    const struct conf_item items[] = {SESSION_SETTINGS(&s), SESSION_RANKS(&s), {.name = NULL}};
    if (flags_read(items, "what a model's folder holds", argc, argv, e) < 0) return -1;
    struct engine *en = session_engine(&s, e);
    if (!en) return -1;
    print(en);
    engine_close(en);
    return 0;
}

/* train.c - tinworks-engine train: an adapter, trained with cross entropy on a file of sequences.
 */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>
#include "commands.h"
#include "corpus.h"
#include "progress.h"
#include "session.h"

#define BATCH_MAX 1024

struct settings {
    struct session session;
    const char *data, *out;
    int64_t steps, batch, rank, seed;
    const char *learning_rate, *weight_decay, *grad_clip_norm;
    bool no_attn, no_mlp, no_unembed;
};

static int settings_read(struct settings *s, int argc, char **argv, struct err *e)
{
    const struct conf_item items[] = {
        SESSION_SETTINGS(&s->session),
        SESSION_RANKS(&s->session),
        {"paged_moments", CONF_BOOL, &s->session.paged_moments, "false", 0, 0,
         "AdamW's moments in the host's memory instead of the GPU's"},
        {"data", CONF_STR, &s->data, NULL, 0, 0,
         "file of lines {\"tokens\": [...]}, perhaps with \"weights\": [...], one a token"},
        {"steps", CONF_INT, &s->steps, "20", 1, 1 << 30, "optimizer steps"},
        {"batch", CONF_INT, &s->batch, "4", 1, BATCH_MAX, "sequences a step"},
        {"out", CONF_STR, &s->out, "", 0, 0, "folder to save the adapter to, in PEFT's format"},
        {"adapter", CONF_STR, &s->session.adapter, "", 0, 0, "folder of an adapter to begin with"},
        {"rank", CONF_INT, &s->rank, "16", 1, ENGINE_RANK_MAX, "of a new adapter"},
        {"no_attn", CONF_BOOL, &s->no_attn, "false", 0, 0, "leave the attention alone"},
        {"no_mlp", CONF_BOOL, &s->no_mlp, "false", 0, 0, "leave the MLP alone"},
        {"no_unembed", CONF_BOOL, &s->no_unembed, "false", 0, 0, "leave the unembedding alone"},
        {"seed", CONF_INT, &s->seed, "0", 0, INT64_MAX, "of a new adapter"},
        {"learning_rate", CONF_STR, &s->learning_rate, "0.001", 0, 0, "of AdamW"},
        {"weight_decay", CONF_STR, &s->weight_decay, "0", 0, 0, "of AdamW"},
        {"grad_clip_norm", CONF_STR, &s->grad_clip_norm, "0", 0, 0,
         "most that the gradient's norm may be; 0 is off"},
        {.name = NULL},
    };
    return flags_read(items, "an adapter trained on a file of token ids", argc, argv, e);
}

/* Everything that can be wrong before a minute has been spent. */
static int check(const struct settings *s, struct adam_params *adam, struct err *e)
{
    *adam = (struct adam_params){.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-12};
    if (flag_number("learning_rate", s->learning_rate, &adam->learning_rate, e) < 0 ||
        flag_number("weight_decay", s->weight_decay, &adam->weight_decay, e) < 0 ||
        flag_number("grad_clip_norm", s->grad_clip_norm, &adam->grad_clip_norm, e) < 0 ||
        adam_params_check(adam, e) < 0)
        return -1;
    if (*s->out && access(s->out, F_OK) == 0)
        return err_set(e, ERR_USER, "out \"%s\" is there already", s->out);
    return 0;
}

/* One step on the batch that begins at `from`, wrapping around; *loss: a token's mean. */
static int step(struct engine *en, struct adapter *ad, const struct corpus *c, int batch,
                int64_t from, const struct adam_params *adam, int64_t *tokens, double *loss,
                double *norm, struct err *e)
{
    struct datum datums[BATCH_MAX];
    int n = batch < c->count ? batch : c->count;
    *tokens = 0;
    for (int i = 0; i < n; i++) {
        datums[i] = c->datums[(from + i) % c->count];
        *tokens += datums[i].n;
    }
    struct train_item item = {
        .adapter = ad, .loss = {.kind = LOSS_CROSS_ENTROPY}, .datums = datums, .datum_count = n};
    if (engine_train_check(en, &item, e) < 0 || engine_train(en, &item, 1, e) < 0 ||
        adapter_optim_step(en, ad, adam, norm, e) < 0)
        return -1;
    *loss = item.out_loss / (double)*tokens;
    return 0;
}

static int run(struct engine *en, struct adapter *ad, const struct corpus *c,
               const struct settings *s, const struct adam_params *adam, struct err *e)
{
    struct progress progress;
    double loss = 0, norm = 0;
    int64_t tokens;
    progress_begin(&progress, s->steps);
    for (int64_t i = 0; i < s->steps; i++) {
        if (step(en, ad, c, (int)s->batch, i * s->batch, adam, &tokens, &loss, &norm, e) < 0)
            return -1;
        progress_step(&progress, i + 1, tokens, loss, norm);
    }
    printf("%" PRId64 " steps, loss %.6f a token\n", s->steps, loss);
    return 0;
}

static int save(const struct adapter *ad, const char *dir, struct err *e)
{
    char sha256[65];
    int64_t size;
    if (!*dir) return 0;
    if (adapter_save(ad, dir, true, &size, sha256, e) < 0) return -1;
    printf("saved %s: %" PRId64 " bytes, sha256:%s\n", dir, size, sha256);
    return 0;
}

int command_train(int argc, char **argv, struct err *e)
{
    struct settings s = {0};
    struct adam_params adam;
    struct corpus corpus = {0};
    struct engine *en = NULL;
    struct adapter *ad = NULL;
    int rc = -1;
    if (settings_read(&s, argc, argv, e) < 0 || check(&s, &adam, e) < 0) return -1;
    if (corpus_read(&corpus, s.data, e) < 0) goto out;
    en = session_engine(&s.session, e);
    if (!en || session_adapter(en, &s.session, true, &ad, e) < 0) goto out;
    const struct lora_conf lora = {(int)s.rank, !s.no_attn, !s.no_mlp, !s.no_unembed};
    if (!ad) ad = adapter_create(en, &lora, (uint64_t)s.seed, e);
    if (!ad || run(en, ad, &corpus, &s, &adam, e) < 0) goto out;
    rc = save(ad, s.out, e);
out:
    adapter_free(ad);
    engine_close(en);
    corpus_clear(&corpus);
    return rc;
}

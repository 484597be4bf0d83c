/* The whole engine on the emulated device, with the moments on it and with the host: training,
 * checkpoints and digests show no difference. */
#include "engine/world.h"

#include "engine/inside.h"

static struct engine *open_on_device(const struct folder *f, bool paged)
{
    const struct engine_conf conf = {.model_dir = folder_at(f, "model"),
                                     .device = "cuda:0",
                                     .threads = 1,
                                     .scratch_bytes_max = (size_t)64 << 20,
                                     .kv_bytes_max = (size_t)4 << 20,
                                     .paged_moments = paged};
    return open_conf(&conf);
}

static void train_and_step(struct engine *en, struct adapter *ad, int steps)
{
    static const int lengths[] = {5, 9, 0};
    for (int i = 0; i < steps; i++) {
        struct train_item item =
            make_item(en, ad, LOSS_CROSS_ENTROPY, lengths, (uint64_t)adapter_step(ad) + 1);
        train(en, &item, 1);
        optim(en, ad, 1);
        item_clear(&item);
    }
}

static struct adapter *save_and_load(struct engine *en, struct adapter *ad, struct folder *f,
                                     const char *name, char sha256[65])
{
    char dir[400];
    int64_t bytes;
    struct err e = {0};
    snprintf(dir, sizeof dir, "%s/%s", f->path, name);
    if (adapter_save(ad, dir, true, &bytes, sha256, &e) < 0) fail_msg("%s", e.text);
    adapter_free(ad);
    ad = adapter_load(en, dir, sha256, true, true, &e);
    if (!ad) fail_msg("%s", e.text);
    return ad;
}

static void assert_alike(struct adapter *const ad[2])
{
    char digest[2][65];
    digest_of(ad[0], digest[0]);
    digest_of(ad[1], digest[1]);
    assert_string_equal(digest[0], digest[1]);
}

static void where_moments_lie_shows_in_no_bit(void **state)
{
    struct folder f = world_make(ODD_MODEL);
    struct engine *en[2];
    struct adapter *ad[2];
    char sha256[2][65];
    for (int i = 0; i < 2; i++) {
        en[i] = open_on_device(&f, i);
        ad[i] = new_adapter(en[i], 0);
        train_and_step(en[i], ad[i], 2);
    }
    assert_alike(ad);
    assert_true(ad[1]->paged && !ad[0]->paged);
    for (int i = 0; i < 2; i++)
        ad[i] = save_and_load(en[i], ad[i], &f, i ? "paged" : "resident", sha256[i]);
    assert_string_equal(sha256[0], sha256[1]);
    assert_alike(ad);
    for (int i = 0; i < 2; i++)
        train_and_step(en[i], ad[i], 1);
    assert_alike(ad);
    for (int i = 0; i < 2; i++) {
        adapter_free(ad[i]);
        engine_close(en[i]);
    }
    folder_remove(&f);
}

/* A paged tenant takes half of the device's memory, and that is what the device says. */
#ifdef CUDA_EMULATED /* a GPU gives memory in large pieces, and has other users */
static void the_device_is_spared_the_moments(void **state)
{
    struct folder f = world_make(ODD_MODEL);
    size_t taken[2], before, after, total;
    struct err e = {0};
    for (int i = 0; i < 2; i++) {
        struct engine *en = open_on_device(&f, i);
        adapter_free(new_adapter(en, 0)); /* what pages is there from now on */
        assert_int_equal(engine_device_memory(en, &before, &total, &e), 0);
        struct adapter *ad = new_adapter(en, 0);
        assert_int_equal(engine_device_memory(en, &after, &total, &e), 0);
        taken[i] = before - after;
        adapter_free(ad);
        engine_close(en);
    }
    assert_true(taken[1] > 0);
    assert_int_equal(taken[0], 2 * taken[1]);
    folder_remove(&f);
}
#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(where_moments_lie_shows_in_no_bit),
#ifdef CUDA_EMULATED
        cmocka_unit_test(the_device_is_spared_the_moments),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* settings.c - see settings.h.  Each command's --help shows the settings that it reads. */
#include "settings.h"

#include <stddef.h>
#include "base/conf.h"
#include "fold.h"

int settings_read(struct settings *s, int needs, const char *about, int argc, char **argv,
                  struct err *e)
{
    struct conf_item items[10];
    int n = 0, rest;
    *s = (struct settings){0};
    if (needs & NEEDS_POSTGRES)
        items[n++] = (struct conf_item){
            "postgres", CONF_STR, &s->postgres, NULL, 0, 0, "conninfo of the database"};
    if (needs & NEEDS_KAFKA) {
        items[n++] = (struct conf_item){
            "kafka_brokers", CONF_STR, &s->kafka_brokers, NULL, 0, 0, "host:port of the brokers"};
        items[n++] = (struct conf_item){
            "kafka_config",
            CONF_STR,
            &s->kafka_config,
            "",
            0,
            0,
            "properties file of a cluster that asks who is there; empty: none"};
        items[n++] = (struct conf_item){"topic_prefix",
                                        CONF_STR,
                                        &s->topic_prefix,
                                        "tw.",
                                        0,
                                        0,
                                        "what every topic starts with"};
        items[n++] = (struct conf_item){"kafka_replication",
                                        CONF_INT,
                                        &s->kafka_replication,
                                        "1",
                                        1,
                                        15,
                                        "copies of each record of the dlq, when it is made now"};
        items[n++] = (struct conf_item){
            "billing_batch_max",         CONF_INT, &s->batch_max, "10000", 1, FOLD_MAX,
            "results in one transaction"};
    }
    if (needs & NEEDS_SECRET)
        items[n++] = (struct conf_item){"secret_file",
                                        CONF_STR,
                                        &s->secret_file,
                                        NULL,
                                        0,
                                        0,
                                        "file with the server's secret, 64 hex digits"};
    items[n++] = (struct conf_item){"migrations_dir",
                                    CONF_STR,
                                    &s->migrations_dir,
                                    MIGRATIONS_DIR,
                                    0,
                                    0,
                                    "folder of the database's history (for migrate)"};
    items[n] = (struct conf_item){NULL, CONF_INT, NULL, NULL, 0, 0, NULL};
    if (conf_read(items, about, argc, argv, &rest, e) < 0) return -1;
    if (rest < argc)
        return err_set(e, ERR_USER, "unexpected word \"%.60s\", see --help", argv[rest]);
    return 0;
}

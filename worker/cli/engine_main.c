/* engine_main.c - tinworks-engine: the engine at a terminal, without any service.
 *
 *   tinworks-engine info     --model DIR
 *   tinworks-engine plan     --model DIR [--rank 32] [--adapters 8] [--json]
 *   tinworks-engine generate --model DIR --tokens 1,2,3 [--adapter DIR] [--samples 2] ...
 *   tinworks-engine score    --model DIR --tokens 1,2,3 [--adapter DIR]
 *   tinworks-engine train    --model DIR --data FILE --steps 50 [--out DIR] ...
 *   tinworks-engine compare  --model DIR --case FILE
 *
 * Tokens go in and come out: the engine decodes, but encoding is the client's.  Exit 0: done; 1: it
 * failed, and the last line says why; 2: there is no such command. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "commands.h"

static const struct command {
    const char *name, *about;
    int (*run)(int argc, char **argv, struct err *e);
} commands[] = {
    {"info", "what a model's folder holds", command_info},
    {"plan", "the memory that a model and its tenants take, from config.json alone", command_plan},
    {"generate", "samples that continue a prompt of token ids", command_generate},
    {"score", "log-probabilities of a prompt's own tokens", command_score},
    {"train", "an adapter trained on a file of token ids", command_train},
    {"compare", "the engine against numbers recorded from PyTorch", command_compare},
};

#define COMMANDS (int)(sizeof commands / sizeof *commands)

static void usage(FILE *to)
{
    fprintf(to, "usage: tinworks-engine COMMAND --model DIR ...\n\n");
    for (int i = 0; i < COMMANDS; i++)
        fprintf(to, "  %-9s %s\n", commands[i].name, commands[i].about);
    fprintf(to, "\ntinworks-engine COMMAND --help lists a command's flags.\n");
}

int main(int argc, char **argv)
{
    struct err e = {0};
    int c = 0;

    if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "help"))) {
        usage(stdout);
        return EXIT_SUCCESS;
    }
    while (c < COMMANDS && (argc < 2 || strcmp(argv[1], commands[c].name)))
        c++;
    if (c == COMMANDS) {
        if (argc > 1) fprintf(stderr, "tinworks-engine: no command \"%.80s\"\n", argv[1]);
        usage(stderr);
        return 2;
    }
    if (commands[c].run(argc - 1, argv + 1, &e) == 0) return EXIT_SUCCESS;
    fprintf(stderr, "tinworks-engine %s: %s\n", commands[c].name,
            e.kind ? e.text : "failed without a reason");
    return EXIT_FAILURE;
}

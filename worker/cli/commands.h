/* commands.h - the words of tinworks-engine, one function each.
 *
 * argv[0] is the command's name, then come its flags.  0, or -1 with a text for whoever typed it.
 */
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H

#include "base/err.h"

int command_info(int argc, char **argv, struct err *e) WARN_UNUSED;
int command_plan(int argc, char **argv, struct err *e) WARN_UNUSED;
int command_generate(int argc, char **argv, struct err *e) WARN_UNUSED;
int command_score(int argc, char **argv, struct err *e) WARN_UNUSED;
int command_train(int argc, char **argv, struct err *e) WARN_UNUSED;
int command_compare(int argc, char **argv, struct err *e) WARN_UNUSED;

#endif

/* target.h - one fuzz target: a decoder of bytes that come from outside.
 *
 * A target takes any bytes, frees all it makes and keeps nothing.  It may check what must hold
 * between an input and what was decoded from it, with assert().  With the preset `fuzz` the fuzzer
 * (libFuzzer) calls it; otherwise replay.c does, with the files of corpus/<target>/. */
#ifndef FUZZ_TARGET_H
#define FUZZ_TARGET_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

#endif

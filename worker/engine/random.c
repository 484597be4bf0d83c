/* random.c - random numbers by counter.
 *
 * Philox4x32-10 as in Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3"
 * (SC 2011), section 3.3: a number is a function of (seed, what it is for), so no company, order or
 * restart can change it. */
#include "engine/model.h"

#define PHILOX_ROUNDS 10

void philox4x32(const uint32_t key[2], const uint32_t counter[4], uint32_t out[4])
{
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t x0 = counter[0], x1 = counter[1], x2 = counter[2], x3 = counter[3];
    for (int i = 0; i < PHILOX_ROUNDS; i++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * x0, p1 = (uint64_t)0xCD9E8D57u * x2;
        x0 = (uint32_t)(p1 >> 32) ^ x1 ^ k0;
        x1 = (uint32_t)p1;
        x2 = (uint32_t)(p0 >> 32) ^ x3 ^ k1;
        x3 = (uint32_t)p0;
        k0 += 0x9E3779B9u; /* the golden ratio and sqrt 3 - 1: the paper's Weyl sequence */
        k1 += 0xBB67AE85u;
    }
    out[0] = x0;
    out[1] = x1;
    out[2] = x2;
    out[3] = x3;
}

static double uniform(uint64_t seed, uint32_t index, uint32_t position, uint32_t stream)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {position, index, stream, 0};
    uint32_t w[4];
    philox4x32(key, counter, w);
    uint64_t bits = (uint64_t)w[0] << 32 | w[1];
    return (double)(bits >> 11) * 0x1p-53;
}

double sample_uniform(uint64_t seed, uint32_t index, uint32_t position)
{
    return uniform(seed, index, position, 0);
}

double alt_uniform(uint64_t seed, uint32_t index, uint32_t position)
{
    return uniform(seed, index, position, 1);
}

/* FNV-1a, 64 bits. */
static uint64_t name_hash(const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return h;
}

/* 24 bits of each word, so that a value is exact in fp32 before it meets bound. */
void philox_fill(float *x, size_t count, uint64_t first, float bound, uint64_t seed,
                 const char *name)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint64_t tensor = name_hash(name);
    for (size_t i = 0; i < count; i += 4) {
        uint64_t block = (first + i) / 4;
        const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), (uint32_t)tensor,
                                     (uint32_t)(tensor >> 32)};
        uint32_t words[4];
        philox4x32(key, counter, words);
        for (size_t j = 0; j < 4 && i + j < count; j++)
            x[i + j] = ((float)(words[j] >> 8) * 0x1p-23f - 1.0f) * bound;
    }
}

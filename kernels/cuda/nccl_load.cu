/* nccl_load.cu - finds NCCL on this machine, where the loader looks for libraries. */
#include "kernels/cuda/nccl_calls.h"

#include <dlfcn.h>
#include <stdio.h>

#define LIBRARY "libnccl.so.2"

struct loaded {
    struct nccl_calls calls;
    char why_not[256];
};

static struct loaded load(void)
{
    struct loaded l = {};
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        snprintf(l.why_not, sizeof l.why_not, "%s", dlerror());
        return l;
    }
#define FIND(name)                                                                                 \
    l.calls.name = (decltype(l.calls.name))dlsym(library, "nccl" #name);                           \
    if (!l.calls.name) snprintf(l.why_not, sizeof l.why_not, LIBRARY " has no nccl" #name);
    NCCL_CALLS(FIND)
#undef FIND
    return l;
}

const struct nccl_calls *nccl_load(struct err *e)
{
    static const struct loaded once = load();
    if (!once.why_not[0]) return &once.calls;
    err_set(e, ERR_USER, "several CUDA devices were asked for, but NCCL cannot be loaded: %s",
            once.why_not);
    return NULL;
}

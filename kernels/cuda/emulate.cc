/* emulate.cc - see emulate.h: the fibers of a block, and the runtime's calls on ordinary memory. */
#include "kernels/cuda/emulate.h"

#include <deque>
#include <map>
#include <mutex>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <vector>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SWITCH_BEGIN(keep, stack, bytes) __sanitizer_start_switch_fiber(keep, stack, bytes)
#define SWITCH_END(keep, stack, bytes)   __sanitizer_finish_switch_fiber(keep, stack, bytes)
#define POISON(p, bytes)                 ASAN_POISON_MEMORY_REGION(p, bytes)
#define UNPOISON(p, bytes)               ASAN_UNPOISON_MEMORY_REGION(p, bytes)
#else
#define SWITCH_BEGIN(keep, stack, bytes) ((void)(keep), (void)(stack), (void)(bytes))
#define SWITCH_END(keep, stack, bytes)   ((void)(keep), (void)(stack), (void)(bytes))
#define POISON(p, bytes)                 ((void)(p), (void)(bytes))
#define UNPOISON(p, bytes)               ((void)(p), (void)(bytes))
#endif

#define THREADS_MAX 1024
#define MEMORY_MAX  ((size_t)64 << 30) /* of a device, unless the environment says less */
#define PATH_SIZE   4096
#define STACK_BYTES ((size_t)256 * 1024) /* of address space; pages come as they are used */

struct uint3 emulate_thread_index, emulate_block_index;
struct dim3 emulate_block_size, emulate_grid_size;

/* ------------------------------------------------------------------ contexts */

static void fiber_main(void);

/* swapcontext() asks the kernel for the signal mask each time, which is most of what a shuffle
 * would cost; a switch between functions has to keep no more than the callee's registers. */
#if defined(__x86_64__)
struct context {
    void **top; /* of the stack that does not run: six registers and where to go on */
};

extern "C" void emulate_swap(void ***keep, void **top);
asm(".pushsection .text\n"
    ".type emulate_swap, @function\n"
    "emulate_swap:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n"
    "    popq %rbp\n"
    "    ret\n"
    ".size emulate_swap, . - emulate_swap\n"
    ".popsection\n");

static void context_swap(struct context *from, struct context *to)
{
    emulate_swap(&from->top, to->top);
}

static void context_make(struct context *c, char *stack, size_t bytes)
{
    c->top = (void **)(stack + bytes) - 8; /* so that the stack is aligned as after a call */
    c->top[6] = (void *)fiber_main;
    c->top[7] = NULL;
}
#else
struct context {
    ucontext_t u;
};

static void context_swap(struct context *from, struct context *to)
{
    swapcontext(&from->u, &to->u);
}

static void context_make(struct context *c, char *stack, size_t bytes)
{
    getcontext(&c->u);
    c->u.uc_stack.ss_sp = stack;
    c->u.uc_stack.ss_size = bytes;
    c->u.uc_link = NULL;
    makecontext(&c->u, fiber_main, 0);
}
#endif

/* ------------------------------------------------------------------ fibers */

enum state { READY, AT_BLOCK, AT_WARP, DONE };

struct fiber {
    struct context context;
    char *stack;
    void *keep; /* the sanitizer's, while another fiber runs */
    struct uint3 index;
    enum state state;
    const char *file; /* where it waits */
    int line;
    unsigned mask;
    void *mine;
};

static struct {
    struct fiber fibers[THREADS_MAX];
    struct context caller;
    void *keep;
    const void *caller_stack;
    size_t caller_bytes;
    int threads, now, waiting; /* waiting: at __syncthreads */
    unsigned here[THREADS_MAX / 32]; /* lanes that wait for their warp */
    unsigned launches;
    char *shared; /* EMULATE_SHARED_MAX */
    const std::function<void(void)> *body;
} em;

static std::mutex launching; /* em, and what __shared__ stands for, are one launch's at a time */

static thread_local struct {
    int device;
    int fail_in; /* launches; 0: never */
    cudaError_t fail_with, fail_graph, last;
} own; /* of the host's thread */

static const char *const state_names[] = {"runs", "waits for the block", "waits for its warp",
                                          "has left"};

static void disagree(const char *what)
{
    fprintf(stderr, "emulate: %s in block (%u, %u, %u) of %d threads:\n", what,
            emulate_block_index.x, emulate_block_index.y, emulate_block_index.z, em.threads);
    for (int i = 0; i < em.threads; i++) {
        const struct fiber *f = &em.fibers[i], *before = i ? f - 1 : f;
        if (i && f->state == before->state && f->line == before->line && f->mask == before->mask)
            continue;
        fprintf(stderr, "  from thread %d: %s", i, state_names[f->state]);
        if (f->state == AT_BLOCK || f->state == AT_WARP) fprintf(stderr, " at %s:%d", f->file, f->line);
        if (f->state == AT_WARP) fprintf(stderr, ", mask %08x", f->mask);
        fprintf(stderr, "\n");
    }
    abort();
}

/* Back to the loop over the block's threads. */
static void leave(void)
{
    struct fiber *f = &em.fibers[em.now];
    SWITCH_BEGIN(&f->keep, em.caller_stack, em.caller_bytes);
    context_swap(&f->context, &em.caller);
    SWITCH_END(f->keep, &em.caller_stack, &em.caller_bytes);
}

static void enter(int i)
{
    struct fiber *f = &em.fibers[i];
    em.now = i;
    emulate_thread_index = f->index;
    SWITCH_BEGIN(&em.keep, f->stack, STACK_BYTES);
    context_swap(&em.caller, &f->context);
    SWITCH_END(em.keep, NULL, NULL);
}

/* A fiber is made once and runs one thread after another. */
static void fiber_main(void)
{
    SWITCH_END(NULL, &em.caller_stack, &em.caller_bytes);
    for (;;) {
        (*em.body)();
        em.fibers[em.now].state = DONE;
        leave();
    }
}

static void fiber_make(struct fiber *f)
{
    void *p = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (p == MAP_FAILED || mprotect(p, 4096, PROT_NONE) != 0) {
        perror("emulate: stack of a fiber");
        abort();
    }
    f->stack = (char *)p;
    context_make(&f->context, f->stack, STACK_BYTES);
}

/* ------------------------------------------------------------------ meeting */

void __syncthreads(const char *file, int line)
{
    struct fiber *f = &em.fibers[em.now];
    f->state = AT_BLOCK;
    f->file = file;
    f->line = line;
    if (++em.waiting < em.threads) {
        leave();
        return;
    }
    em.waiting = 0;
    for (int i = 0; i < em.threads; i++) {
        if (em.fibers[i].line != line || strcmp(em.fibers[i].file, file) != 0)
            disagree("threads wait at different barriers");
    }
    for (int i = 0; i < em.threads; i++)
        em.fibers[i].state = READY;
}

int emulate_lane(void)
{
    return em.now % 32;
}

void emulate_warp(unsigned mask, void *mine, emulate_together *fn, const char *file, int line)
{
    struct fiber *f = &em.fibers[em.now];
    int warp = em.now / 32, first = warp * 32;
    void *lanes[32] = {NULL};
    f->state = AT_WARP;
    f->file = file;
    f->line = line;
    f->mask = mask;
    f->mine = mine;
    em.here[warp] |= 1u << (em.now - first);
    if (!(mask >> (em.now - first) & 1)) disagree("a lane is not in its own mask");
    if ((em.here[warp] & mask) != mask) {
        leave(); /* until the last of them has come */
        return;
    }
    for (int i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        struct fiber *other = &em.fibers[first + i];
        if (other->line != line || other->mask != mask || strcmp(other->file, file) != 0)
            disagree("lanes of a mask wait at different places");
        lanes[i] = other->mine;
        other->state = READY;
    }
    em.here[warp] &= ~mask;
    fn(mask, lanes);
}

void emulate_no_lane(int lane, int from)
{
    fprintf(stderr, "emulate: lane %d asks lane %d, which is not in the mask\n", lane, from);
    disagree("a shuffle from nowhere");
}

/* ------------------------------------------------------------------ a device that is lost */

static bool lost[EMULATE_DEVICES];

static bool is_lost(int device)
{
    return __atomic_load_n(&lost[device], __ATOMIC_ACQUIRE);
}

/* Is this piece of work the one that EMULATE_LOSE means? */
static bool loses(void)
{
    static std::mutex counting;
    static const char *const path = getenv("EMULATE_LOSE");
    static long left; /* to be done; 0: the file was not there yet */
    char done[PATH_SIZE];
    if (!path) return false;
    std::lock_guard<std::mutex> lock(counting);
    FILE *f = left ? NULL : fopen(path, "re");
    if (f) {
        if (fscanf(f, "%ld", &left) != 1 || left < 1) left = 1;
        fclose(f);
    }
    if (!left || --left) return false;
    snprintf(done, sizeof done, "%s.lost", path);
    return rename(path, done) == 0;
}

/* Before each piece of work of the current device: may it be done?  If not, who waits is told. */
static bool works(void)
{
    if (is_lost(own.device)) return false;
    if (!loses()) return true;
    __atomic_store_n(&lost[own.device], true, __ATOMIC_RELEASE);
    emulate_state(own.device, cudaErrorIllegalAddress);
    return false;
}

/* ------------------------------------------------------------------ launching */

static void run_block(bool backwards)
{
    int left = em.threads;
    em.waiting = 0;
    memset(em.here, 0, sizeof em.here);
    for (int i = 0; i < em.threads; i++)
        em.fibers[i].state = READY;
    while (left > 0) {
        int ran = 0;
        for (int k = 0; k < em.threads; k++) {
            int i = backwards ? em.threads - 1 - k : k;
            if (em.fibers[i].state != READY) continue;
            enter(i);
            ran++;
            if (em.fibers[i].state == DONE) left--;
        }
        if (!ran) disagree("threads wait for others that do not come");
    }
}

static cudaError_t shape_error(dim3 grid, dim3 block, size_t shared)
{
    size_t threads = (size_t)block.x * block.y * block.z;
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        return cudaErrorInvalidConfiguration;
    if (threads < 1 || threads > THREADS_MAX || block.z > 64) return cudaErrorInvalidConfiguration;
    return shared > EMULATE_SHARED_MAX ? cudaErrorInvalidValue : cudaSuccess;
}

static void threads_set(dim3 block)
{
    em.threads = (int)(block.x * block.y * block.z);
    for (int i = 0; i < em.threads; i++) {
        unsigned u = (unsigned)i;
        if (!em.fibers[i].stack) fiber_make(&em.fibers[i]);
        em.fibers[i].index = {u % block.x, u / block.x % block.y, u / block.x / block.y};
    }
}

static cudaError_t run_grid(dim3 grid, dim3 block, size_t shared,
                            const std::function<void(void)> &body)
{
    if (own.fail_in > 0 && --own.fail_in == 0) return own.fail_with;
    if (!works()) return cudaSuccess;
    std::lock_guard<std::mutex> hold(launching);
    if (!em.shared) em.shared = (char *)aligned_alloc(1024, EMULATE_SHARED_MAX);
    if (!em.shared) abort();
    em.body = &body;
    em.launches++;
    emulate_grid_size = grid;
    emulate_block_size = block;
    threads_set(block);
    UNPOISON(em.shared, shared);
    POISON(em.shared + shared, EMULATE_SHARED_MAX - shared);
    emulate_device_begin();
    unsigned number = em.launches + (getenv("EMULATE_BACKWARDS") != NULL);
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                emulate_block_index = {x, y, z};
                memset(em.shared, 0xff, shared);
                run_block(number++ & 1);
            }
    emulate_device_end();
    return cudaSuccess;
}

void emulate_launch(dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                    const std::function<void(void)> &body)
{
    cudaError_t error = shape_error(grid, block, shared);
    if (!error)
        error = emulate_do(stream, [=]() { return run_grid(grid, block, shared, body); });
    if (error) own.last = error;
}

void *emulate_shared(void)
{
    return em.shared;
}

void emulate_fail_launch(int nth, cudaError_t error)
{
    own.fail_in = nth;
    own.fail_with = error;
}

void emulate_fail_graph(cudaError_t error)
{
    own.fail_graph = error;
}

/* ------------------------------------------------------------------ streams and graphs */

struct emulate_graph {
    std::vector<emulate_work> nodes;
};

struct emulate_event {
    int device;
    cudaStream_t stream; /* where it was recorded last; NULL: nowhere */
    uint64_t uploads;    /* of the stream, before it */
    size_t done;         /* of the stream, by then */
};

struct emulate_graph_exec {
    std::vector<emulate_work> nodes;
};

struct emulate_stream {
    int device;
    uint64_t uploads; /* from pinned memory, so far */
    bool late;
    std::deque<emulate_work> left; /* of a late one: not done yet */
    size_t done;
    struct emulate_graph *captured; /* NULL: it is not */
    bool invalid;                   /* what is not allowed was done meanwhile */
};

static thread_local struct emulate_stream *capturing; /* this thread's */

static cudaError_t states[EMULATE_DEVICES]; /* for tests, which set them while nothing runs */

void emulate_state(int device, cudaError_t state)
{
    __atomic_store_n(&states[device], state, __ATOMIC_RELEASE);
}

void emulate_unhang(int device)
{
    cudaError_t hangs = cudaErrorNotReady;
    __atomic_compare_exchange_n(&states[device], &hangs, cudaSuccess, false, __ATOMIC_ACQ_REL,
                                __ATOMIC_ACQUIRE);
}

static cudaError_t state_of(int device)
{
    return __atomic_load_n(&states[device], __ATOMIC_ACQUIRE);
}

static void no_wait_for_ever(int device)
{
    if (state_of(device) != cudaErrorNotReady) return;
    fprintf(stderr, "emulate: the host would wait for ever for device %d\n", device);
    abort();
}

int emulate_stream_device(cudaStream_t stream)
{
    return stream->device;
}

cudaError_t emulate_do(cudaStream_t stream, const emulate_work &work)
{
    if (stream->device != own.device) return cudaErrorInvalidResourceHandle;
    if (is_lost(own.device)) return cudaErrorIllegalAddress;
    if (stream->captured)
        stream->captured->nodes.push_back(work);
    else if (stream->late)
        stream->left.push_back(work);
    else
        return work();
    return cudaSuccess;
}

void emulate_late(cudaStream_t stream)
{
    stream->late = true;
}

static void do_until(cudaStream_t s, size_t done)
{
    while (s->done < done) {
        const emulate_work work = s->left.front();
        s->left.pop_front();
        s->done++;
        cudaError_t error = work();
        if (error) own.last = error;
    }
}

static void do_all(cudaStream_t s)
{
    do_until(s, s->done + s->left.size());
}

/* For what a thread that captures may not do. */
static cudaError_t not_captured(void)
{
    if (!capturing) return cudaSuccess;
    capturing->invalid = true;
    own.last = cudaErrorStreamCaptureUnsupported;
    return own.last;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode)
{
    cudaError_t error = not_captured();
    if (error) return error;
    stream->captured = new emulate_graph();
    stream->invalid = false;
    capturing = stream;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    *graph = NULL;
    if (!stream->captured) return cudaErrorInvalidValue;
    if (!stream->invalid)
        *graph = stream->captured;
    else
        delete stream->captured;
    stream->captured = NULL;
    capturing = NULL;
    return *graph ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    cudaError_t error = own.fail_graph;
    own.fail_graph = cudaSuccess;
    *exec = error ? NULL : new emulate_graph_exec{graph->nodes};
    return error;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete exec;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    cudaError_t error = not_captured();
    if (stream->device != own.device) return cudaErrorInvalidResourceHandle;
    if (is_lost(own.device)) return cudaErrorIllegalAddress;
    for (size_t i = 0; !error && i < exec->nodes.size(); i++)
        error = exec->nodes[i]();
    return error;
}

/* ------------------------------------------------------------------ memory of the device */

struct allocation {
    size_t bytes;
    int device;
};

/* By address.  While nothing runs on the device AddressSanitizer keeps the host out of all of
 * it, but for what emulate_guard() has taken over. */
static std::mutex memory_lock; /* downloads come from several threads */
static std::map<char *, struct allocation> memory;
static int on_device;

/* The same of pinned memory, which kernels are kept out of. */
struct pinned_memory {
    size_t bytes;
    bool pieces; /* emulate_guard() has taken it over */
};
static std::map<char *, struct pinned_memory> pinned;
static int kernels; /* that run */

/* Pinned memory that is on its way: everything is copied at once, but on a GPU it would not be, and
 * nobody may write over the source before he knows that it was read. */
struct upload {
    cudaStream_t stream;
    uint64_t number; /* in the stream */
    char *from;
    size_t bytes;
};
static std::vector<struct upload> uploads;

static void pinned_close(void)
{
    for (const auto &[p, a] : pinned)
        if (!a.pieces) POISON(p, a.bytes);
}

static void pinned_open(void)
{
    for (const auto &[p, a] : pinned)
        if (!a.pieces) UNPOISON(p, a.bytes);
    for (const struct upload &u : uploads)
        POISON(u.from, u.bytes);
}

static void memory_open(void)
{
    if (on_device++ > 0) return;
    for (const auto &[p, a] : memory)
        UNPOISON(p, a.bytes);
}

static void memory_close(void)
{
    if (--on_device > 0) return;
    for (const auto &[p, a] : memory)
        POISON(p, a.bytes);
}

void emulate_device_begin(void)
{
    std::lock_guard<std::mutex> lock(memory_lock);
    memory_open();
    if (kernels++ == 0) pinned_close();
}

void emulate_device_end(void)
{
    std::lock_guard<std::mutex> lock(memory_lock);
    memory_close();
    if (--kernels == 0) pinned_open();
}

/* The allocation that p lies in; list->end(): none. */
template <class A> static auto find(std::map<char *, A> *list, void *p)
{
    auto at = list->upper_bound((char *)p);
    return at != list->begin() && (char *)p < (--at)->first + at->second.bytes ? at : list->end();
}

void emulate_guard(void *p, size_t used, size_t room)
{
    std::lock_guard<std::mutex> lock(memory_lock);
    auto device = find(&memory, p);
    auto host = find(&pinned, p);
    if (device != memory.end()) memory.erase(device);
    if (host != pinned.end()) host->second.pieces = true;
    UNPOISON(p, used);
    POISON((char *)p + used, room - used);
}

int emulate_device_of(void *p)
{
    std::lock_guard<std::mutex> lock(memory_lock);
    auto at = memory.find((char *)p);
    return at == memory.end() ? -1 : at->second.device;
}

/* ------------------------------------------------------------------ pinned memory on its way */

static void upload_begins(cudaStream_t stream, char *from, size_t bytes)
{
    std::lock_guard<std::mutex> lock(memory_lock);
    if (stream->captured || find(&pinned, from) == pinned.end()) return;
    POISON(from, bytes);
    uploads.push_back({stream, ++stream->uploads, from, bytes});
}

/* The host has waited for the first `number` uploads of the stream. */
static void uploads_end(cudaStream_t stream, uint64_t number)
{
    std::lock_guard<std::mutex> lock(memory_lock);
    std::erase_if(uploads, [=](const struct upload &u) {
        if (u.stream != stream || u.number > number) return false;
        UNPOISON(u.from, u.bytes);
        return true;
    });
}

/* ------------------------------------------------------------------ the runtime's calls */

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = own.last;
    own.last = cudaSuccess;
    return error;
}

const char *cudaGetErrorString(cudaError_t error)
{
    switch (error) {
    case cudaSuccess:
        return "no error";
    case cudaErrorInvalidValue:
        return "invalid argument";
    case cudaErrorMemoryAllocation:
        return "out of memory";
    case cudaErrorInvalidConfiguration:
        return "invalid configuration argument";
    case cudaErrorInvalidDevice:
        return "invalid device ordinal";
    case cudaErrorInvalidResourceHandle:
        return "invalid resource handle";
    case cudaErrorNotReady:
        return "device not ready";
    default:
        return "an illegal memory access was encountered";
    }
}

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = EMULATE_DEVICES;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *prop, int index)
{
    if (index < 0 || index >= EMULATE_DEVICES) return cudaErrorInvalidDevice;
    *prop = {};
    snprintf(prop->name, sizeof prop->name, "emulated");
    prop->major = 8;
    prop->sharedMemPerBlockOptin = 163 * 1024;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int index)
{
    if (index < 0 || index >= EMULATE_DEVICES) return cudaErrorInvalidDevice;
    own.device = index;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *index)
{
    *index = own.device;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = 0;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 0;
    return cudaSuccess;
}

/* What a stream is asked for is done at once, unless it is late. */
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned)
{
    *stream = new emulate_stream();
    (*stream)->device = own.device;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    do_all(stream);
    delete stream;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    cudaError_t error = not_captured();
    no_wait_for_ever(stream->device);
    if (!error) error = state_of(stream->device);
    if (error) return error;
    do_all(stream);
    uploads_end(stream, stream->uploads);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    cudaError_t error = state_of(stream->device);
    return error ? error : cudaStreamSynchronize(stream);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    *event = new emulate_event();
    (*event)->device = own.device;
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    if (event->device != stream->device || event->device != own.device)
        return cudaErrorInvalidResourceHandle;
    event->stream = stream;
    event->uploads = stream->uploads;
    event->done = stream->done + stream->left.size();
    return not_captured(); /* a GPU would allow it */
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    cudaError_t error = not_captured();
    no_wait_for_ever(event->device);
    if (!error) error = state_of(event->device);
    if (error || !event->stream) return error;
    do_until(event->stream, event->done);
    uploads_end(event->stream, event->uploads);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    struct emulate_event now = *event;
    if (!now.stream) return cudaSuccess;
    return emulate_do(stream, [now]() {
        do_until(now.stream, now.done);
        return cudaSuccess;
    });
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    cudaError_t error = state_of(event->device);
    return error ? error : cudaEventSynchronize(event);
}

static size_t memory_max(void)
{
    static const char *const mb = getenv("EMULATE_MEMORY_MB");
    return mb ? (size_t)strtoull(mb, NULL, 10) << 20 : MEMORY_MAX;
}

/* What the current device has left; memory_lock is held. */
static size_t memory_left(void)
{
    size_t used = 0;
    for (const auto &[p, a] : memory)
        if (a.device == own.device) used += a.bytes;
    return used < memory_max() ? memory_max() - used : 0;
}

/* What is there is a NaN. */
static cudaError_t allocate(void **p, size_t bytes, size_t most)
{
    *p = NULL;
    if (not_captured()) return own.last;
    if (is_lost(own.device)) return cudaErrorIllegalAddress;
    if (bytes > most || posix_memalign(p, 256, bytes) != 0) {
        own.last = cudaErrorMemoryAllocation;
        return own.last;
    }
    memset(*p, 0xff, bytes);
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    std::lock_guard<std::mutex> lock(memory_lock);
    cudaError_t error = allocate(p, bytes, memory_left());
    if (error) return error;
    memory[(char *)*p] = {bytes, own.device};
    if (!on_device) POISON(*p, bytes);
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    if (not_captured()) return own.last;
    std::lock_guard<std::mutex> lock(memory_lock);
    auto at = memory.find((char *)p);
    if (at != memory.end()) {
        UNPOISON(p, at->second.bytes);
        memory.erase(at);
    }
    free(p);
    return is_lost(own.device) ? cudaErrorIllegalAddress : cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    cudaError_t error = allocate(p, bytes, MEMORY_MAX);
    std::lock_guard<std::mutex> lock(memory_lock);
    if (!error) pinned[(char *)*p] = {bytes, false};
    return error;
}

cudaError_t cudaFreeHost(void *p)
{
    if (not_captured()) return own.last;
    std::lock_guard<std::mutex> lock(memory_lock);
    auto at = pinned.find((char *)p);
    if (at != pinned.end()) {
        UNPOISON(p, at->second.bytes);
        pinned.erase(at);
    }
    free(p);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    std::lock_guard<std::mutex> lock(memory_lock);
    if (is_lost(own.device)) return cudaErrorIllegalAddress;
    *total_bytes = memory_max();
    *free_bytes = memory_left();
    return cudaSuccess;
}

static cudaError_t move(void *to, const void *from, size_t bytes)
{
    if (!works()) return cudaSuccess;
    std::lock_guard<std::mutex> lock(memory_lock);
    memory_open();
    if (kernels) pinned_open(); /* another device's */
    memmove(to, from, bytes);
    if (kernels) pinned_close();
    memory_close();
    return cudaSuccess;
}

static cudaError_t set(void *p, int byte, size_t bytes)
{
    if (!works()) return cudaSuccess;
    std::lock_guard<std::mutex> lock(memory_lock);
    memory_open();
    memset(p, byte, bytes);
    memory_close();
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    cudaError_t error = emulate_do(stream, [=]() { return move(to, from, bytes); });
    if (kind == cudaMemcpyHostToDevice) upload_begins(stream, (char *)from, bytes);
    return error;
}

cudaError_t cudaMemsetAsync(void *p, int byte, size_t bytes, cudaStream_t stream)
{
    return emulate_do(stream, [=]() { return set(p, byte, bytes); });
}

#include "emulate.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <ucontext.h>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 gridDim, blockDim;

namespace {

enum {
    STACK_BYTES = 32 << 10,
    STATIC_BYTES = 128 << 10,
    ALIGN = 128,
    MOST_WAITS = 20000,
    LOOSE_BLOCKS = 3,
    GUARD_BYTES = 4096,
    GARBAGE = 0x5a
};

struct warp {
    uint64_t values[2][32];
    unsigned n_here = 0, n_meetings = 0;
};

struct block {
    std::vector<uint8_t> dynamic, fixed;
    std::vector<warp> warps;
    unsigned n_here = 0, n_meetings = 0;
};

struct fiber {
    void *sp; /* where it stopped */
    uint3 thread, at;
    block *home;
    const unsigned *wait_for; /* runs again when this is no longer wait_value */
    unsigned wait_value;
    unsigned n_met; /* collectives of its warp so far */
    bool ended;
};

size_t n_reserved;
unsigned n_launches = 1;
/* Bytes asked for, and with those behind; there as long as anything may be freed. */
auto &guarded = *new std::map<void *, std::pair<size_t, size_t>>;
uint64_t n_progress;
fiber *running;
void *main_sp;
const std::function<void()> *kernel;

#if defined(__x86_64__)
/* Saves this stack pointer, goes on at another. */
extern "C" void emulate_switch(void **from, void *to);
asm(R"(
.text
.globl emulate_switch
emulate_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
#else
#error "the emulation switches stacks on x86-64 only"
#endif

void leave() {
    emulate_switch(&running->sp, main_sp);
}

void start() {
    (*kernel)();
    running->ended = true;
    leave();
    abort();
}

void *new_stack(uint8_t *stack) {
    uintptr_t top = ((uintptr_t)stack + STACK_BYTES) & ~(uintptr_t)15;
    void **p = (void **)top;
    *--p = nullptr; /* where start() would return to */
    *--p = (void *)start;
    for (int i = 0; i < 6; i++)
        *--p = nullptr;
    return p;
}

void wait_until_changed(const unsigned *what, unsigned value) {
    running->wait_for = what;
    running->wait_value = value;
    leave();
}

void run_all(std::vector<fiber> &fibers) {
    size_t left = fibers.size();
    uint64_t seen = n_progress, n_rounds = 0;
    while (left) {
        for (fiber &f : fibers) {
            if (f.ended || (f.wait_for && *f.wait_for == f.wait_value))
                continue;
            f.wait_for = nullptr;
            running = &f;
            threadIdx = f.thread;
            blockIdx = f.at;
            emulate_switch(&main_sp, f.sp);
            left -= f.ended;
            n_progress += f.ended;
        }
        n_rounds = n_progress == seen ? n_rounds + 1 : 0;
        seen = n_progress;
        if (n_rounds > MOST_WAITS) {
            fprintf(stderr, "emulation: deadlock, %zu threads wait\n", left);
            for (size_t i = 0; i < fibers.size(); i += 32)
                if (!fibers[i].ended)
                    fprintf(stderr, "  block %u warp %u %s\n", fibers[i].at.x,
                            fibers[i].thread.x / 32,
                            fibers[i].wait_for ? "meets" : "waits for words");
            abort();
        }
    }
}

/* These blocks of the grid, together. */
void run(dim3 grid, const unsigned *numbers, unsigned n_blocks, unsigned n_threads,
         size_t shared_bytes) {
    std::vector<block> blocks(n_blocks);
    std::vector<fiber> fibers((size_t)n_blocks * n_threads);
    static std::vector<std::unique_ptr<uint8_t[]>> stacks; /* kept from launch to launch */
    while (stacks.size() < fibers.size())
        stacks.emplace_back(new uint8_t[STACK_BYTES]);
    gridDim = grid;
    blockDim = dim3(n_threads);
    for (unsigned b = 0; b < n_blocks; b++) {
        /* what kernels do not write is garbage */
        blocks[b].dynamic.assign(shared_bytes + ALIGN, 0xa5);
        blocks[b].fixed.assign(STATIC_BYTES, 0xa5);
        blocks[b].warps.resize((n_threads + 31) / 32);
        for (unsigned t = 0; t < n_threads; t++) {
            fiber &f = fibers[(size_t)b * n_threads + t];
            f = {};
            f.thread = {t, 0, 0};
            f.at = {numbers[b] % grid.x, numbers[b] / grid.x, 0};
            f.home = &blocks[b];
            f.sp = new_stack(stacks[(size_t)b * n_threads + t].get());
        }
    }
    run_all(fibers);
}

/* ---- streams and graphs: one stream, which may be recording ---- */

typedef std::vector<std::function<void()>> recording;
recording *recorded;

void enqueue(std::function<void()> f) {
    if (recorded)
        recorded->push_back(std::move(f));
    else
        f();
}

} // namespace

void emulate_launch(cudaStream_t, dim3 grid, unsigned n_threads, size_t shared_bytes, bool is_joint,
                    std::function<void()> f) {
    enqueue([=] {
        const unsigned n_blocks = grid.x * grid.y, most = is_joint ? n_blocks : LOOSE_BLOCKS;
        std::vector<unsigned> order(n_blocks);
        std::iota(order.begin(), order.end(), 0u);
        if (!is_joint) /* on a GPU they come in any order */
            std::shuffle(order.begin(), order.end(), std::minstd_rand(n_launches++));
        kernel = &f;
        for (unsigned b = 0, n; b < n_blocks; b += n) {
            n = std::min(n_blocks - b, most);
            run(grid, &order[b], n, n_threads, shared_bytes);
        }
    });
}

void emulate_sync_block() {
    block &b = *running->home;
    const unsigned meeting = b.n_meetings;
    if (++b.n_here == blockDim.x) {
        b.n_here = 0;
        b.n_meetings++;
        n_progress++;
    } else
        wait_until_changed(&b.n_meetings, meeting);
}

const uint64_t *emulate_meet(uint64_t mine) {
    warp &w = running->home->warps[running->thread.x / 32];
    const unsigned meeting = running->n_met++;
    uint64_t *values = w.values[meeting & 1];
    values[running->thread.x & 31] = mine;
    if (meeting != w.n_meetings) {
        fprintf(stderr, "emulation: lanes of a warp are not at the same collective\n");
        abort();
    }
    if (++w.n_here == 32) {
        w.n_here = 0;
        w.n_meetings++;
        n_progress++;
    } else
        wait_until_changed(&w.n_meetings, meeting);
    return values;
}

void emulate_wait() {
    leave();
}
void emulate_progress() {
    n_progress++;
}
static uint8_t *aligned(std::vector<uint8_t> &v) {
    return (uint8_t *)(((uintptr_t)v.data() + ALIGN - 1) & ~(uintptr_t)(ALIGN - 1));
}
uint8_t *emulate_dynamic() {
    return aligned(running->home->dynamic);
}
uint8_t *emulate_static(size_t at) {
    return aligned(running->home->fixed) + at;
}
size_t emulate_reserve(size_t n_bytes) {
    const size_t at = n_reserved;
    n_reserved += (n_bytes + ALIGN - 1) / ALIGN * ALIGN;
    if (n_reserved + ALIGN > STATIC_BYTES)
        abort();
    return at;
}

/* ---- the parts of the runtime that the backend uses ---------------------------------------- */

extern "C" {

cudaError_t cudaGetDeviceCount(int *n) {
    const char *text = getenv("EMULATE_GPUS");
    *n = text ? atoi(text) : 1;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int) {
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int) {
    const char *sms = getenv("EMULATE_SMS");
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated GPU");
    p->major = 8;
    p->multiProcessorCount = sms ? atoi(sms) : 16;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr what, int) {
    struct cudaDeviceProp p;
    cudaGetDeviceProperties(&p, 0);
    *value = what == cudaDevAttrComputeCapabilityMajor ? p.major
             : what == cudaDevAttrMultiProcessorCount  ? p.multiProcessorCount
                                                       : 227 << 10;
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *) {
    memset(a, 0, sizeof *a);
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *, enum cudaFuncAttribute, int) {
    return cudaSuccess;
}
const char *cudaGetErrorString(cudaError_t e) {
    return e == cudaSuccess ? "no error" : "an emulated error";
}
cudaError_t cudaGetLastError(void) {
    return cudaSuccess;
}
cudaError_t cudaMalloc(void **p, size_t n) {
    const size_t all = (n + GUARD_BYTES + 255) / 256 * 256;
    *p = aligned_alloc(256, all);
    if (!*p)
        return cudaErrorMemoryAllocation;
    memset(*p, GARBAGE, all); /* what is not written is garbage */
    guarded[*p] = {n, all};
    return cudaSuccess;
}
/* What lies behind the memory must be as it was. */
cudaError_t cudaFree(void *p) {
    const auto found = guarded.find(p);
    if (p && found == guarded.end())
        return cudaErrorInvalidValue;
    for (size_t i = p ? found->second.first : 0; p && i < found->second.second; i++)
        if (((const uint8_t *)p)[i] != GARBAGE) {
            fprintf(stderr, "emulation: byte %zu of %zu was written\n", i, found->second.first);
            abort();
        }
    if (p)
        guarded.erase(found);
    free(p);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t n) {
    return cudaMalloc(p, n);
}
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned) {
    return cudaMalloc(p, n);
}
cudaError_t cudaHostGetDevicePointer(void **p, void *host, unsigned) {
    *p = host;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *p) {
    return cudaFree(p);
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *all) {
    const char *free_mb = getenv("EMULATE_FREE_MB");
    *free_bytes = *all = (size_t)(free_mb ? atoi(free_mb) : 16384) << 20;
    return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind) {
    memcpy(to, from, n);
    return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind,
                            cudaStream_t) {
    if (getenv("EMULATE_FAIL"))
        return cudaErrorUnknown;
    enqueue([=] { memcpy(to, from, n); });
    return cudaSuccess;
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind, cudaStream_t) {
    if (getenv("EMULATE_FAIL"))
        return cudaErrorUnknown;
    if (width > to_pitch || width > from_pitch)
        return cudaErrorInvalidPitchValue;
    enqueue([=] {
        for (size_t i = 0; i < height; i++)
            memcpy((uint8_t *)to + i * to_pitch, (const uint8_t *)from + i * from_pitch, width);
    });
    return cudaSuccess;
}
cudaError_t cudaMemset(void *p, int v, size_t n) {
    memset(p, v, n);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t) {
    enqueue([=] { memset(p, v, n); });
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) {
    *s = (cudaStream_t)malloc(1);
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) {
    free(s);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, enum cudaStreamCaptureMode) {
    recorded = new recording;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t *graph) {
    *graph = (cudaGraph_t)recorded;
    recorded = nullptr;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = (cudaGraphExec_t) new recording(*(recording *)graph);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete (recording *)graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete (recording *)exec;
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
    for (const auto &f : *(recording *)exec)
        f();
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) {
    *e = (cudaEvent_t)malloc(1);
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e) {
    free(e);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
    return cudaSuccess;
}
}

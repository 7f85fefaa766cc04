// A CUDA driver and an NVRTC on a CPU, for tests: the functions of `libcuda.so.1` and `libnvrtc.so.13` that the harness
// calls, with the device's kernels run by shim.h.
//
// One file is both libraries. NVRTC compiles a source with g++ against the shim, and its "machine code" is the shared
// object; PTX is a comment with the marker below and the source after it, compiled when it is loaded, as drivers do.
//
// Like a device, and unlike a function call: streams run on threads of their own and in order, a launch returns at once
// and its arguments are copied, events are times of the stream, graphs replay what was captured, memory starts undefined,
// and after a kernel's error every call fails until the process ends. The kernel's own checks are the shim's. What it
// takes is the host's time: nothing here says how fast anything is, and the device says so in its name.
//
// Environment:
//   ATTNBENCH_EMULATED_DEVICES        how many devices there are (1)
//   ATTNBENCH_EMULATED_MEMORY         bytes of each (16 MiB)
//   ATTNBENCH_EMULATED_SIDE_STREAM    ENTRY:MILLISECONDS: launches of this kernel go to another stream, so much later
//   CUDA_VISIBLE_DEVICES              as for the driver: numbers, GPU-... or MIG-...
//   CXX                               the compiler (g++)
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <fstream>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include "tensor_map.h"

typedef std::lock_guard<std::mutex> Lock;

#define API extern "C" __attribute__((visibility("default")))

namespace {

const char *PTX_MARKER = "// attnbench emulated PTX\n";

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_PTX = 218,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
};

u64 now_ns() {
    return u64(std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count());
}

const char *environment(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value ? value : otherwise;
}

// The error that nothing recovers from.
std::atomic<int> sticky{0};

// ---- Compiling ------------------------------------------------------------------------------------------------------

std::string read_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

void write_file(const std::string &path, const std::string &text) {
    std::ofstream(path, std::ios::binary) << text;
}

std::string temporary_folder() {
    std::string name = std::string(environment("TMPDIR", "/tmp")) + "/attnbench-emulated-XXXXXX";
    return mkdtemp(&name[0]) ? name : std::string();
}

// Compiles a translation unit; returns the shared object's bytes, or none and the compiler's words.
std::string compile(const std::string &name, const std::string &source, const std::map<std::string, std::string> &headers,
                    const std::vector<std::string> &options, std::string &log) {
    std::string folder = temporary_folder();
    std::string stem = name.substr(name.rfind('/') + 1);
    write_file(folder + "/" + stem, source);
    std::vector<std::string> files{stem, "out.so", "log"};
    for (auto &[header, text] : headers) {
        write_file(folder + "/" + header, text);
        files.push_back(header);
    }
    std::vector<std::string> words{environment("CXX", "g++"), "-std=c++17", "-O1", "-march=native", "-fPIC", "-shared",
                                   "-DATTN_HOST_SHIM", "-w", "-I", folder, "-I", CUDA_FOLDER};
    for (auto &option : options)
        if (option.rfind("-D", 0) == 0) words.push_back(option);
    words.insert(words.end(), {"-o", folder + "/out.so", "-x", "c++", folder + "/" + stem});
    pid_t child = fork();
    if (child == 0) {
        // Compiled by itself: the folder of a fake library is no place for the compiler to look.
        unsetenv("LD_LIBRARY_PATH");
        int file = open((folder + "/log").c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
        dup2(file, 1);
        dup2(file, 2);
        std::vector<char *> arguments;
        for (auto &word : words) arguments.push_back(&word[0]);
        arguments.push_back(nullptr);
        execvp(arguments[0], arguments.data());
        _exit(127);
    }
    int status = 0;
    waitpid(child, &status, 0);
    log = read_file(folder + "/log");
    std::string object = status == 0 ? read_file(folder + "/out.so") : std::string();
    if (status && log.empty()) log = "no compiler: " + words[0];
    for (auto &file : files) unlink((folder + "/" + file).c_str());
    rmdir(folder.c_str());
    return object;
}

// ---- Memory ---------------------------------------------------------------------------------------------------------

// `struct Allocation` of the shim.
struct ShimAllocation {
    u8 *base;
    u64 bytes;
    const char *name;
    u8 *is_defined;
    u32 is_writable;
};

constexpr size_t GUARD = 256;
constexpr u8 GUARD_BYTE = 0xa5, UNDEFINED_BYTE = 0xff;

struct Memory {
    size_t bytes;
    std::string name;
    // Null for memory of the host, which has no guards either.
    u8 *block;
    std::vector<u8> is_defined;
};

std::mutex memory_lock;
std::map<u8 *, Memory> memories;
size_t used_bytes = 0;

size_t total_bytes() { return strtoull(environment("ATTNBENCH_EMULATED_MEMORY", "16777216"), nullptr, 10); }

// The memory that holds this range whole; null where there is none.
Memory *holder(u64 address, size_t bytes, u8 *&base) {
    auto after = memories.upper_bound(reinterpret_cast<u8 *>(address));
    if (after == memories.begin()) return nullptr;
    auto found = std::prev(after);
    base = found->first;
    u64 offset = address - reinterpret_cast<u64>(base);
    return offset + bytes <= found->second.bytes ? &found->second : nullptr;
}

void define(u64 address, size_t bytes) {
    u8 *base;
    Memory *memory = holder(address, bytes, base);
    if (memory && !memory->is_defined.empty()) memset(&memory->is_defined[address - reinterpret_cast<u64>(base)], 1, bytes);
}

// ---- Streams --------------------------------------------------------------------------------------------------------

typedef std::function<void()> Work;

struct Stream {
    std::mutex lock;
    std::condition_variable changed;
    std::deque<Work> queue;
    bool is_busy = false;
    // What is being captured instead of run.
    std::vector<Work> *capture = nullptr;

    Stream() {
        std::thread([this] {
            for (;;) {
                std::unique_lock<std::mutex> guard(lock);
                changed.wait(guard, [this] { return !queue.empty(); });
                Work work = std::move(queue.front());
                queue.pop_front();
                is_busy = true;
                guard.unlock();
                work();
                guard.lock();
                is_busy = false;
                changed.notify_all();
            }
        }).detach();
    }
    void add(Work work) {
        Lock guard(lock);
        if (capture) return capture->push_back(std::move(work));
        queue.push_back(std::move(work));
        changed.notify_all();
    }
    void wait() {
        std::unique_lock<std::mutex> guard(lock);
        changed.wait(guard, [this] { return queue.empty() && !is_busy; });
    }
};

std::mutex streams_lock;
std::list<Stream *> streams;

Stream *new_stream() {
    Stream *stream = new Stream();
    Lock guard(streams_lock);
    streams.push_back(stream);
    return stream;
}
Stream *stream_of(void *handle) {
    static Stream *legacy = new_stream();
    return handle ? static_cast<Stream *>(handle) : legacy;
}
void wait_for_all() {
    std::list<Stream *> all;
    {
        Lock guard(streams_lock);
        all = streams;
    }
    for (Stream *stream : all) stream->wait();
}

struct Event {
    std::atomic<u64> at_ns{0};
};

// ---- Modules --------------------------------------------------------------------------------------------------------

struct Module {
    void *library;
};

struct Function {
    std::string name;
    std::vector<size_t> parameters;
    bool (*launch)(const char *, const u32 *, const u32 *, u32, void **, const ShimAllocation *, u32, char *, u64);
    int max_dynamic_shared = 48 << 10;
};

// Bytes of each parameter, from the shim's letters.
std::vector<size_t> parameter_bytes(const char *signature) {
    std::vector<size_t> bytes;
    for (const char *at = signature; *at; at = strchr(at, ';') + 1)
        bytes.push_back(*at == 'S' ? strtoull(at + 1, nullptr, 10) : *at == 'P' || *at == 'L' ? 8 : 4);
    return bytes;
}

void run_kernel(const Function *function, std::vector<u32> shape, std::vector<std::vector<u64>> values) {
    if (sticky) return;
    std::vector<ShimAllocation> allocations;
    {
        Lock guard(memory_lock);
        for (auto &[base, memory] : memories)
            allocations.push_back({base, memory.bytes, memory.name.c_str(),
                                   memory.is_defined.empty() ? nullptr : memory.is_defined.data(), 1});
    }
    std::vector<void *> pointers;
    for (auto &value : values) pointers.push_back(value.data());
    char error[2048] = "";
    if (!function->launch(function->name.c_str(), &shape[0], &shape[3], shape[6], pointers.data(), allocations.data(),
                          u32(allocations.size()), error, sizeof error)) {
        fprintf(stderr, "emulated device: %s\n", error);
        sticky = ILLEGAL_ADDRESS;
    }
}

// ---- Devices --------------------------------------------------------------------------------------------------------

// The devices that this process may see, as numbers of all of them.
std::vector<int> visible() {
    int count = atoi(environment("ATTNBENCH_EMULATED_DEVICES", "1"));
    const char *wanted = getenv("CUDA_VISIBLE_DEVICES");
    std::vector<int> devices;
    if (!wanted) {
        for (int device = 0; device < count; device++) devices.push_back(device);
        return devices;
    }
    std::stringstream list(wanted);
    for (std::string word; std::getline(list, word, ',');) {
        int device = -1;
        if (word.rfind("GPU-", 0) == 0 || word.rfind("MIG-", 0) == 0) {
            // The unique name of device n is all zeros but its last byte.
            device = int(strtol(word.substr(word.size() - 2).c_str(), nullptr, 16));
        } else if (!word.empty()) {
            device = atoi(word.c_str());
        }
        if (device < 0 || device >= count) break;
        devices.push_back(device);
    }
    return devices;
}

bool is_initialised = false;

} // namespace

#define CHECK                                                                                                           \
    if (!is_initialised) return NOT_INITIALIZED;                                                                        \
    if (sticky) return sticky;

API int cuInit(u32) {
    is_initialised = true;
    return visible().empty() ? 100 : SUCCESS;
}
API int cuDriverGetVersion(int *version) {
    *version = 13000;
    return SUCCESS;
}
API int cuDeviceGetCount(int *count) {
    CHECK
    *count = int(visible().size());
    return SUCCESS;
}
API int cuDeviceGet(int *device, int ordinal) {
    CHECK
    auto devices = visible();
    if (ordinal < 0 || size_t(ordinal) >= devices.size()) return INVALID_DEVICE;
    *device = devices[size_t(ordinal)];
    return SUCCESS;
}
API int cuDeviceGetName(char *name, int length, int) {
    snprintf(name, size_t(length), "attnbench emulated device");
    return SUCCESS;
}
API int cuDeviceGetUuid_v2(u8 *uuid, int device) {
    memset(uuid, 0, 16);
    uuid[15] = u8(device);
    return SUCCESS;
}
API int cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = total_bytes();
    return SUCCESS;
}
API int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
    case 16: *value = 2; break;             // multiprocessors
    case 32: *value = 0; break;             // ECC
    case 38: *value = 64 << 10; break;      // second-level cache
    case 39: *value = 2048; break;          // threads a multiprocessor
    case 75: *value = 9; break;             // compute capability
    case 76: *value = 0; break;
    case 97: *value = 227 << 10; break;     // shared memory a block
    default: return INVALID_VALUE;
    }
    return SUCCESS;
}
API int cuDevicePrimaryCtxRetain(void **context, int device) {
    CHECK
    *context = reinterpret_cast<void *>(u64(device) + 1);
    return SUCCESS;
}
API int cuCtxSetCurrent(void *) { return SUCCESS; }
API int cuCtxSynchronize() {
    wait_for_all();
    CHECK
    return SUCCESS;
}
API int cuCtxResetPersistingL2Cache() {
    CHECK
    return SUCCESS;
}

API int cuMemAlloc_v2(u64 *address, size_t bytes) {
    CHECK
    if (!bytes) return INVALID_VALUE;
    Lock guard(memory_lock);
    if (used_bytes + bytes > total_bytes()) return OUT_OF_MEMORY;
    size_t whole = (bytes + GUARD - 1) / GUARD * GUARD + 2 * GUARD;
    u8 *block = static_cast<u8 *>(aligned_alloc(GUARD, whole));
    memset(block, GUARD_BYTE, whole);
    memset(block + GUARD, UNDEFINED_BYTE, bytes);
    static int number = 0;
    std::string name = "allocation " + std::to_string(number++) + " of " + std::to_string(bytes) + " bytes";
    memories[block + GUARD] = {bytes, name, block, std::vector<u8>(bytes, 0)};
    used_bytes += bytes;
    *address = reinterpret_cast<u64>(block + GUARD);
    return SUCCESS;
}
API int cuMemFree_v2(u64 address) {
    wait_for_all();
    Lock guard(memory_lock);
    auto found = memories.find(reinterpret_cast<u8 *>(address));
    if (found == memories.end() || !found->second.block) return INVALID_VALUE;
    const Memory &memory = found->second;
    for (size_t i = 0; i < GUARD; i++)
        if (memory.block[i] != GUARD_BYTE || found->first[memory.bytes + i] != GUARD_BYTE) {
            fprintf(stderr, "emulated device: somebody wrote beside %s\n", memory.name.c_str());
            abort();
        }
    used_bytes -= memory.bytes;
    free(memory.block);
    memories.erase(found);
    return sticky;
}
API int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    CHECK
    Lock guard(memory_lock);
    *total = total_bytes();
    *free_bytes = *total - used_bytes;
    return SUCCESS;
}
API int cuMemHostAlloc(void **pointer, size_t bytes, u32) {
    CHECK
    *pointer = calloc(1, bytes);
    Lock guard(memory_lock);
    memories[static_cast<u8 *>(*pointer)] = {bytes, "memory of the host", nullptr, {}};
    return SUCCESS;
}
API int cuMemFreeHost(void *pointer) {
    wait_for_all();
    Lock guard(memory_lock);
    memories.erase(static_cast<u8 *>(pointer));
    free(pointer);
    return SUCCESS;
}
API int cuMemHostGetDevicePointer_v2(u64 *address, void *pointer, u32) {
    *address = reinterpret_cast<u64>(pointer);
    return SUCCESS;
}

namespace {
bool is_held(u64 address, size_t bytes) {
    Lock guard(memory_lock);
    u8 *base;
    return holder(address, bytes, base);
}
int fill(u64 address, const void *pattern, size_t width, size_t count, void *stream) {
    CHECK
    if (!is_held(address, width * count)) return INVALID_VALUE;
    std::string bytes(static_cast<const char *>(pattern), width);
    stream_of(stream)->add([=] {
        if (sticky) return;
        for (size_t i = 0; i < count; i++) memcpy(reinterpret_cast<u8 *>(address) + i * width, bytes.data(), width);
        Lock guard(memory_lock);
        define(address, width * count);
    });
    return SUCCESS;
}
} // namespace

API int cuMemcpyHtoDAsync_v2(u64 to, const void *from, size_t bytes, void *stream) {
    CHECK
    if (!is_held(to, bytes)) return INVALID_VALUE;
    // Pageable memory is copied before the call returns, as drivers do.
    auto copy = std::make_shared<std::string>(static_cast<const char *>(from), bytes);
    stream_of(stream)->add([=] {
        if (sticky) return;
        memcpy(reinterpret_cast<u8 *>(to), copy->data(), bytes);
        Lock guard(memory_lock);
        define(to, bytes);
    });
    return SUCCESS;
}
API int cuMemcpyDtoHAsync_v2(void *to, u64 from, size_t bytes, void *stream) {
    CHECK
    if (!is_held(from, bytes)) return INVALID_VALUE;
    stream_of(stream)->add([=] {
        if (!sticky) memcpy(to, reinterpret_cast<u8 *>(from), bytes);
    });
    return SUCCESS;
}
API int cuMemsetD8Async(u64 address, u8 value, size_t count, void *stream) { return fill(address, &value, 1, count, stream); }
API int cuMemsetD16Async(u64 address, uint16_t value, size_t count, void *stream) {
    return fill(address, &value, 2, count, stream);
}
API int cuMemsetD32Async(u64 address, u32 value, size_t count, void *stream) { return fill(address, &value, 4, count, stream); }

API int cuStreamCreate(void **stream, u32) {
    CHECK
    *stream = new_stream();
    return SUCCESS;
}
API int cuStreamSynchronize(void *stream) {
    stream_of(stream)->wait();
    CHECK
    return SUCCESS;
}
API int cuEventCreate(void **event, u32) {
    CHECK
    *event = new Event();
    return SUCCESS;
}
API int cuEventDestroy_v2(void *event) {
    wait_for_all();
    delete static_cast<Event *>(event);
    return SUCCESS;
}
API int cuEventRecord(void *event, void *stream) {
    CHECK
    Event *own = static_cast<Event *>(event);
    own->at_ns = 0;
    stream_of(stream)->add([own] { own->at_ns = now_ns(); });
    return SUCCESS;
}
API int cuEventElapsedTime(float *milliseconds, void *from, void *to) {
    CHECK
    u64 a = static_cast<Event *>(from)->at_ns, b = static_cast<Event *>(to)->at_ns;
    if (!a || !b) return NOT_READY;
    // An empty interval takes a device half a microsecond.
    *milliseconds = float(double(b - a) / 1e6 + 5e-4);
    return SUCCESS;
}

API int cuModuleLoadData(void **module, const void *image) {
    CHECK
    std::string object;
    if (!memcmp(image, ELFMAG, SELFMAG)) {
        const auto *header = static_cast<const Elf64_Ehdr *>(image);
        object.assign(static_cast<const char *>(image), header->e_shoff + size_t(header->e_shentsize) * header->e_shnum);
    } else if (!strncmp(static_cast<const char *>(image), PTX_MARKER, strlen(PTX_MARKER))) {
        std::string log;
        object = compile("image.cu", static_cast<const char *>(image), {}, {}, log);
        if (object.empty()) fprintf(stderr, "emulated device: %s\n", log.c_str());
    }
    if (object.empty()) return INVALID_PTX;
    std::string folder = temporary_folder(), path = folder + "/module.so";
    write_file(path, object);
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) fprintf(stderr, "emulated device: %s\n", dlerror());
    unlink(path.c_str());
    rmdir(folder.c_str());
    if (!library || !dlsym(library, "shim_launch")) return INVALID_IMAGE;
    *module = new Module{library};
    return SUCCESS;
}
API int cuModuleUnload(void *module) {
    wait_for_all();
    // The code stays: threads of streams keep what belongs to it.
    delete static_cast<Module *>(module);
    return SUCCESS;
}
API int cuModuleGetFunction(void **function, void *module, const char *name) {
    CHECK
    void *library = static_cast<Module *>(module)->library;
    auto signature = reinterpret_cast<const char *(*)(const char *)>(dlsym(library, "shim_signature"))(name);
    if (!signature) return NOT_FOUND;
    auto *own = new Function();
    own->name = name;
    own->parameters = parameter_bytes(signature);
    own->launch = reinterpret_cast<decltype(own->launch)>(dlsym(library, "shim_launch"));
    *function = own;
    return SUCCESS;
}
API int cuFuncGetAttribute(int *value, int, void *) {
    CHECK
    // Registers, spills and static shared memory: a host compiler has none of them.
    *value = 0;
    return SUCCESS;
}
API int cuFuncSetAttribute(void *function, int attribute, int value) {
    CHECK
    if (attribute != 8 || value > 227 << 10) return INVALID_VALUE;
    static_cast<Function *>(function)->max_dynamic_shared = value;
    return SUCCESS;
}
API int cuTensorMapEncodeTiled(TensorMap *map, int type, u32 rank, void *address, const u64 *size, const u64 *stride,
                               const u32 *box, const u32 *step, int interleave, int swizzle, int, int) {
    CHECK
    // CU_TENSOR_MAP_DATA_TYPE_UINT8, 16, 32, INT32, UINT64.
    const u32 bytes[] = {1, 2, 4, 4, 8};
    if (type < 0 || type > 4 || interleave || swizzle < 0 || reinterpret_cast<u64>(map) % 64) return INVALID_VALUE;
    for (u32 d = 0; d < rank && d < shim::MAX_RANK; d++)
        if (step[d] != 1 || size[d] > 1ull << 32) return INVALID_VALUE;
    return shim::encode(map, address, rank, bytes[type], size, stride, box, u32(swizzle)) ? INVALID_VALUE : SUCCESS;
}
API int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int, size_t) {
    CHECK
    *blocks = 1;
    return SUCCESS;
}
API int cuLaunchKernel(void *handle, u32 gx, u32 gy, u32 gz, u32 bx, u32 by, u32 bz, u32 shared_bytes, void *stream,
                       void **parameters, void **) {
    CHECK
    const auto *function = static_cast<const Function *>(handle);
    u64 threads = u64(bx) * by * bz;
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || !threads || threads > 1024) return INVALID_VALUE;
    if (shared_bytes > u32(function->max_dynamic_shared)) return INVALID_VALUE;
    std::vector<std::vector<u64>> values;
    for (size_t i = 0; i < function->parameters.size(); i++) {
        values.emplace_back((function->parameters[i] + 7) / 8);
        memcpy(values.back().data(), parameters[i], function->parameters[i]);
    }
    Work work = [=] { run_kernel(function, {gx, gy, gz, bx, by, bz, shared_bytes}, values); };
    std::string side = environment("ATTNBENCH_EMULATED_SIDE_STREAM", "");
    size_t colon = side.find(':');
    if (colon == function->name.size() && side.compare(0, colon, function->name) == 0) {
        static Stream *other = new_stream();
        u64 delay = strtoull(side.c_str() + colon + 1, nullptr, 10);
        stream_of(stream)->add([=] {
            other->add([=] {
                std::this_thread::sleep_for(std::chrono::milliseconds(delay));
                work();
            });
        });
        return SUCCESS;
    }
    stream_of(stream)->add(work);
    return SUCCESS;
}

API int cuStreamBeginCapture_v2(void *stream, int) {
    CHECK
    Stream *own = stream_of(stream);
    Lock guard(own->lock);
    own->capture = new std::vector<Work>();
    return SUCCESS;
}
API int cuStreamEndCapture(void *stream, void **graph) {
    CHECK
    Stream *own = stream_of(stream);
    Lock guard(own->lock);
    *graph = own->capture;
    own->capture = nullptr;
    return SUCCESS;
}
API int cuGraphInstantiateWithFlags(void **executable, void *graph, u64) {
    CHECK
    *executable = new std::vector<Work>(*static_cast<std::vector<Work> *>(graph));
    return SUCCESS;
}
API int cuGraphLaunch(void *executable, void *stream) {
    CHECK
    for (const Work &work : *static_cast<std::vector<Work> *>(executable)) stream_of(stream)->add(work);
    return SUCCESS;
}
API int cuGraphExecDestroy(void *executable) {
    wait_for_all();
    delete static_cast<std::vector<Work> *>(executable);
    return SUCCESS;
}
API int cuGraphDestroy(void *graph) {
    delete static_cast<std::vector<Work> *>(graph);
    return SUCCESS;
}

// ---- NVRTC ----------------------------------------------------------------------------------------------------------

namespace {
struct Program {
    std::string name, source, log, object;
    std::map<std::string, std::string> headers;
};
int hand_out(const std::string &bytes, char *to) {
    memcpy(to, bytes.data(), bytes.size());
    return 0;
}
} // namespace

API int nvrtcVersion(int *major, int *minor) {
    // A change of the shim is another compiler.
    u64 hash = 0xcbf29ce484222325ull;
    for (char c : read_file(std::string(CUDA_FOLDER) + "/shim/shim.h")) hash = (hash ^ u8(c)) * 0x100000001b3ull;
    *major = 99;
    *minor = int(hash >> 40);
    return 0;
}
API int nvrtcCreateProgram(void **program, const char *source, const char *name, int count, const char *const *headers,
                           const char *const *names) {
    auto *own = new Program{name, source, "", "", {}};
    for (int i = 0; i < count; i++) own->headers[names[i]] = headers[i];
    *program = own;
    return 0;
}
API int nvrtcCompileProgram(void *program, int count, const char *const *options) {
    auto *own = static_cast<Program *>(program);
    std::vector<std::string> all(options, options + count);
    own->object = compile(own->name, own->source, own->headers, all, own->log);
    return own->object.empty() ? 6 : 0;
}
API int nvrtcGetProgramLogSize(void *program, size_t *bytes) {
    *bytes = static_cast<Program *>(program)->log.size();
    return 0;
}
API int nvrtcGetProgramLog(void *program, char *log) { return hand_out(static_cast<Program *>(program)->log, log); }
API int nvrtcGetCUBINSize(void *program, size_t *bytes) {
    *bytes = static_cast<Program *>(program)->object.size();
    return 0;
}
API int nvrtcGetCUBIN(void *program, char *cubin) { return hand_out(static_cast<Program *>(program)->object, cubin); }
API int nvrtcDestroyProgram(void **program) {
    delete static_cast<Program *>(*program);
    *program = nullptr;
    return 0;
}
API const char *nvrtcGetErrorString(int error) { return error ? "NVRTC_ERROR_COMPILATION" : "NVRTC_SUCCESS"; }

// A CPU allocator for torch under which freed memory is used again.
//
// torch asks glibc for memory aligned to 64 bytes. To serve that, glibc takes a larger block and
// trims both ends, so that a block just freed is too small for the next request of the same size,
// and the heap of a training step grows to twice what it holds. Here the larger block is kept
// whole: it fits the next time.
#include <c10/core/CPUAllocator.h>

#include <cstdint>
#include <cstdlib>

namespace {

constexpr size_t ALIGNMENT = 64;

void release(void* data) {
    if (!data) return;
    c10::profiledCPUMemoryReporter().Delete(data);
    std::free(static_cast<void**>(data)[-1]);
}

struct Allocator final : c10::Allocator {
    c10::DataPtr allocate(size_t bytes) override {
        char* data = nullptr;
        if (bytes) {
            constexpr size_t more = sizeof(void*) + ALIGNMENT;
            void* got = bytes < PTRDIFF_MAX - more ? std::malloc(bytes + more) : nullptr;
            TORCH_CHECK(got, "DefaultCPUAllocator: can't allocate memory: you tried to allocate ",
                        bytes, " bytes.");
            char* block = static_cast<char*>(got);
            data = block + sizeof(void*);
            data += -reinterpret_cast<uintptr_t>(data) % ALIGNMENT;
            reinterpret_cast<void**>(data)[-1] = block;
            c10::profiledCPUMemoryReporter().New(data, bytes);
        }
        return {data, data, release, c10::Device(c10::DeviceType::CPU)};
    }
    c10::DeleterFnPtr raw_deleter() const override { return release; }
    void copy_data(void* to, const void* from, std::size_t bytes) const override {
        default_copy_data(to, from, bytes);
    }
};

Allocator allocator;

}  // namespace

extern "C" void allocator_use() { c10::SetCPUAllocator(&allocator, /*priority=*/1); }

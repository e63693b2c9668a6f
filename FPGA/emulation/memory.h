// The device's global memory: only what is touched takes room, and only what was allocated may be touched.
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <unordered_map>

#include "kernel.h"

namespace csengine::emulation {

class GlobalMemory final : public Memory {
  public:
    void allocate(uint64_t address, uint64_t size) { buffers_[address] = size; }
    void free(uint64_t address) { buffers_.erase(address); }
    void clear() {
        buffers_.clear();
        pages_.clear();
    }

    bool holds(uint64_t address, uint64_t size) const {
        auto after = buffers_.upper_bound(address);
        if (after == buffers_.begin()) return false;
        const auto& [start, length] = *--after;
        return address - start <= length && size <= length - (address - start);
    }

    bool read(uint64_t address, void* data, size_t size) override {
        if (!holds(address, size)) return false;
        for_each_page(address, size, [&](char* page, size_t done, size_t count) {
            std::memcpy(static_cast<char*>(data) + done, page, count);
        });
        return true;
    }

    bool write(uint64_t address, const void* data, size_t size, uint64_t strobe) override {
        if (!holds(address, size)) return false;
        const auto* bytes = static_cast<const char*>(data);
        for (size_t i = 0; i < size; ++i) {
            if (strobe >> i & 1) *at(address + i) = bytes[i];
        }
        return true;
    }

    bool copy_in(uint64_t address, const void* data, size_t size) {
        if (!holds(address, size)) return false;
        for_each_page(address, size, [&](char* page, size_t done, size_t count) {
            std::memcpy(page, static_cast<const char*>(data) + done, count);
        });
        return true;
    }

  private:
    static constexpr size_t kPage = 1 << 16;
    using Page = std::array<char, kPage>;

    char* at(uint64_t address) {
        auto& page = pages_[address / kPage];
        if (!page) page = std::make_unique<Page>(Page{});
        return page->data() + address % kPage;
    }

    template <class Function>
    void for_each_page(uint64_t address, size_t size, Function function) {
        for (size_t done = 0; done < size;) {
            const size_t count = std::min<size_t>(size - done, kPage - (address + done) % kPage);
            function(at(address + done), done, count);
            done += count;
        }
    }

    std::map<uint64_t, uint64_t> buffers_;  // address -> size
    std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
};

}  // namespace csengine::emulation

// The calls of XRT's software emulation: a header and a body in the encoding of Protocol Buffers (proto2), of which
// numbers and byte strings are enough. Strictly one answer per call.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>

namespace csengine::emulation {

enum class Call : uint32_t {
    Close = 1,
    LoadBitstream = 3,
    Allocate = 4,
    Free = 5,
    CopyToDevice = 6,
    CopyToHost = 7,
    WriteControl = 9,
    ReadControl = 11,
    SetupInstance = 28,
    WriteRegister = 51,
    ReadRegister = 52,
};

// Header of a call: tag 0x09, size of the body (8 bytes), tag 0x15, `Call` (4 bytes), little-endian.
constexpr size_t kCallHeader = 14;
// Header of an answer: tag 0x09, size of the body (8 bytes).
constexpr size_t kAnswerHeader = 9;

// The fields of a body by number. Byte strings point into the buffer that was parsed.
class Fields {
  public:
    // False if the body is malformed.
    bool parse(std::string_view body) {
        while (!body.empty()) {
            uint64_t tag = 0;
            if (!take_number(body, tag) || !take_field(body, static_cast<unsigned>(tag >> 3), tag & 7)) return false;
        }
        return true;
    }
    uint64_t number(unsigned field) const {
        const auto found = numbers_.find(field);
        return found == numbers_.end() ? 0 : found->second;
    }
    std::string_view bytes(unsigned field) const {
        const auto found = bytes_.find(field);
        return found == bytes_.end() ? std::string_view() : found->second;
    }

  private:
    static bool take_number(std::string_view& body, uint64_t& value) {
        value = 0;
        for (unsigned shift = 0; shift < 64 && !body.empty(); shift += 7) {
            const auto byte = static_cast<uint8_t>(body.front());
            body.remove_prefix(1);
            value |= uint64_t(byte & 0x7f) << shift;
            if (!(byte & 0x80)) return true;
        }
        return false;
    }

    template <class Word>
    bool take_word(std::string_view& body, unsigned field) {
        Word word;
        if (body.size() < sizeof word) return false;
        std::memcpy(&word, body.data(), sizeof word);
        body.remove_prefix(sizeof word);
        numbers_[field] = word;
        return true;
    }

    bool take_field(std::string_view& body, unsigned field, unsigned wire_type) {
        uint64_t size = 0;
        switch (wire_type) {
            case 0:
                return take_number(body, numbers_[field]);
            case 1:
                return take_word<uint64_t>(body, field);
            case 2:
                if (!take_number(body, size) || size > body.size()) return false;
                bytes_[field] = body.substr(0, size);
                body.remove_prefix(size);
                return true;
            case 5:
                return take_word<uint32_t>(body, field);
            default:
                return false;
        }
    }

    std::map<unsigned, uint64_t> numbers_;
    std::map<unsigned, std::string_view> bytes_;
};

// The body of an answer, field by field.
class Answer {
  public:
    Answer& number(unsigned field, uint64_t value) {
        put(field << 3);
        put(value);
        return *this;
    }
    Answer& bytes(unsigned field, std::string_view value) {
        put(field << 3 | 2);
        put(value.size());
        body_.append(value);
        return *this;
    }
    const std::string& body() const { return body_; }

  private:
    void put(uint64_t value) {
        for (; value >= 0x80; value >>= 7) body_ += static_cast<char>(value | 0x80);
        body_ += static_cast<char>(value);
    }
    std::string body_;
};

}  // namespace csengine::emulation

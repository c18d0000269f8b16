// Numbers for the tests: arrays in double for the references, and for the library memory that is
// exactly as large as it may touch.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

// [B, H, W, C]; also a norm [B, 3, 1, C] and statistics [B, strips, 2, C].
struct Map {
  int64_t batch, height, width, channels;
  std::vector<double> values;

  Map(int64_t batch, int64_t height, int64_t width, int64_t channels)
      : batch(batch),
        height(height),
        width(width),
        channels(channels),
        values(batch * height * width * channels) {}

  double& at(int64_t b, int64_t y, int64_t x, int64_t c) { return values[place(b, y, x, c)]; }
  double at(int64_t b, int64_t y, int64_t x, int64_t c) const { return values[place(b, y, x, c)]; }

 private:
  int64_t place(int64_t b, int64_t y, int64_t x, int64_t c) const {
    return ((b * height + y) * width + x) * channels + c;
  }
};

// Normal numbers that a float holds exactly, the same at every run.
std::vector<double> random_numbers(int64_t count, double mean = 0, double deviation = 1);
Map random_map(int64_t batch, int64_t height, int64_t width, int64_t channels, double mean = 0,
               double deviation = 1);

// A part of a batch.
struct Samples {
  int64_t first, last;
  int64_t count() const { return last - first; }
};

enum class Alignment { VECTORS, ELEMENTS };  // to 64 bytes; to one element and to nothing wider

// `count` elements on the heap with nothing behind them, every byte 0xFF: NaN for a float.
template <typename T>
class Memory {
 public:
  Memory() = default;
  explicit Memory(int64_t count, Alignment alignment = Alignment::VECTORS) : count_(count) {
    const int64_t shift = alignment == Alignment::VECTORS ? 0 : sizeof(T);
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, count * sizeof(T) + shift) != 0) throw std::bad_alloc();
    memory_.reset(static_cast<char*>(memory));
    data_ = reinterpret_cast<T*>(memory_.get() + shift);
    std::memset(memory_.get(), 0xFF, count * sizeof(T) + shift);
  }
  // Numbers one after another, converted; aligned to nothing.
  template <typename Number>
  explicit Memory(const std::vector<Number>& values) : Memory(values.size(), Alignment::ELEMENTS) {
    for (int64_t k = 0; k < count_; ++k) data_[k] = static_cast<T>(values[k]);
  }

  T* data() const { return data_; }
  int64_t count() const { return count_; }

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  std::unique_ptr<char, Free> memory_;
  T* data_ = nullptr;
  int64_t count_ = 0;
};

// The least stride of a map.
constexpr int64_t stride_of(int64_t channels) { return (channels + 15) / 16 * 16; }

// Samples of a map as the library reads them; NaN between the channels and the stride.
Memory<float> laid_out(const Map& map, Samples samples, int64_t stride);
// The channels of a map that the library wrote.
std::vector<double> taken(const Memory<float>& memory, int64_t channels, int64_t stride);
// The numbers of samples in torch's order, [B, C, P].
std::vector<double> torch_order(const Map& map, Samples samples);

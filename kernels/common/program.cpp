// The captured program: threads of its own that replay a list of instructions for every step.
//
//     each member:  for step i, i-1, ...:  for each instruction:  kernel(arguments, team); barrier
//
// The caller is member 0. The others sleep between two runs.
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../include/fastddpm.h"
#include "kernels.h"

namespace {

using fastddpm::Kernels;
using fastddpm::Meeting;
using fastddpm::Operation;
using fastddpm::Team;

constexpr int64_t ARGUMENT_BYTES[FASTDDPM_OPS] = {
    sizeof(fastddpm_conv3x3),    sizeof(fastddpm_convolution), sizeof(fastddpm_attention),
    sizeof(fastddpm_statistics), sizeof(fastddpm_norm),        sizeof(fastddpm_pointwise),
    sizeof(fastddpm_layout),     sizeof(fastddpm_step)};

constexpr int64_t HUGE_PAGE = 2 << 20;

struct Instruction {
  const Operation* operation;
  std::vector<char> arguments;
};

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};

double now() {
  using std::chrono::steady_clock;
  return std::chrono::duration<double>(steady_clock::now().time_since_epoch()).count();
}

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

namespace fastddpm {

void Meeting::barrier() {
  if (size_ == 1) {
    next_.store(0, std::memory_order_relaxed);
    return;
  }
  const uint32_t round = round_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    next_.store(0, std::memory_order_relaxed);
    round_.store(round + 1, std::memory_order_release);
    round_.notify_all();
    return;
  }
  // Some microseconds of spinning; then another process may need the core that we wait for.
  for (int spin = 0; spin < 4096; ++spin) {
    if (round_.load(std::memory_order_acquire) != round) return;
    relax();
  }
  while (round_.load(std::memory_order_acquire) == round) round_.wait(round);
}

}  // namespace fastddpm

struct fastddpm_program {
  fastddpm_program(const fastddpm_instruction* code, int64_t count, int32_t threads)
      : kernels_(fastddpm::kernels()), meeting_(threads), threads_(threads) {
    for (int64_t k = 0; k < count; ++k) {
      const char* arguments = static_cast<const char*>(code[k].arguments);
      Instruction instruction{kernels_.operations[code[k].op],
                              {arguments, arguments + ARGUMENT_BYTES[code[k].op]}};
      const int64_t bytes = instruction.operation->scratch(instruction.arguments.data(), threads);
      if (bytes > scratch_bytes_) scratch_bytes_ = bytes;
      code_.push_back(std::move(instruction));
    }
    allocate_scratch();
    try {
      for (int32_t member = 1; member < threads; ++member) {
        workers_.emplace_back([this, member] { work(member); });
      }
    } catch (...) {
      dismiss();
      throw;
    }
  }

  ~fastddpm_program() { dismiss(); }

  int64_t run(int64_t* index, int64_t steps, double seconds, double* times) {
    const double limit = now() + seconds;
    int64_t taken = 0;
    for (; taken < steps && (taken == 0 || now() < limit); ++taken) {
      step_ = *index;
      times_ = times;
      if (threads_ > 1) wake();
      replay(0);
      --*index;
    }
    return taken;
  }

  int64_t scratch_bytes() const { return scratch_bytes_; }

 private:
  void allocate_scratch() {
    const int64_t bytes = (scratch_bytes_ + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    scratch_.reset(
        static_cast<char*>(std::aligned_alloc(HUGE_PAGE, bytes > 0 ? bytes : HUGE_PAGE)));
    if (scratch_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
    madvise(scratch_.get(), bytes, MADV_HUGEPAGE);
#endif
    std::memset(scratch_.get(), 0, bytes);
  }

  // All instructions of one step, the part of one member.
  void replay(int32_t member) {
    const Team team = {member, threads_, scratch_.get(), step_, &meeting_};
    double* const times = member == 0 ? times_ : nullptr;
    for (size_t k = 0; k < code_.size(); ++k) {
      const double before = times == nullptr ? 0 : now();
      code_[k].operation->run(code_[k].arguments.data(), team);
      team.barrier();
      if (times != nullptr) times[k] += now() - before;
    }
  }

  void wake() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      order_.fetch_add(1, std::memory_order_release);
    }
    called_.notify_all();
  }

  void work(int32_t member) {
    uint64_t done = 0;
    for (;;) {
      // Another step most often comes at once.
      for (int spin = 0; spin < 4096 && order_.load(std::memory_order_acquire) == done; ++spin) {
        relax();
      }
      if (order_.load(std::memory_order_acquire) == done) {
        std::unique_lock<std::mutex> lock(mutex_);
        called_.wait(lock, [&] { return order_.load(std::memory_order_acquire) != done; });
      }
      ++done;
      if (dismissed_.load(std::memory_order_acquire)) return;
      replay(member);
    }
  }

  void dismiss() {
    dismissed_.store(true, std::memory_order_release);
    wake();
    for (std::thread& worker : workers_) worker.join();
  }

  const Kernels& kernels_;
  std::vector<Instruction> code_;
  Meeting meeting_;
  const int32_t threads_;
  int64_t scratch_bytes_ = 0;
  std::unique_ptr<char, Free> scratch_;
  int64_t step_ = 0;
  double* times_ = nullptr;
  std::mutex mutex_;
  std::condition_variable called_;
  std::atomic<uint64_t> order_{0};
  std::atomic<bool> dismissed_{false};
  std::vector<std::thread> workers_;
};

extern "C" {

fastddpm_program* fastddpm_program_create(const fastddpm_instruction* code, int64_t count,
                                          int32_t threads, int32_t* status) {
  bool valid = status != nullptr && count >= 0 && threads >= 1 && (code != nullptr || count == 0);
  for (int64_t k = 0; valid && k < count; ++k) {
    valid = code[k].op >= 0 && code[k].op < FASTDDPM_OPS && code[k].arguments != nullptr;
  }
  if (!valid) {
    if (status != nullptr) *status = FASTDDPM_INVALID_ARGUMENT;
    return nullptr;
  }
  try {
    fastddpm_program* program = new fastddpm_program(code, count, threads);
    *status = FASTDDPM_OK;
    return program;
  } catch (const std::bad_alloc&) {
  } catch (const std::system_error&) {
  }
  *status = FASTDDPM_NO_MEMORY;
  return nullptr;
}

void fastddpm_program_destroy(fastddpm_program* program) { delete program; }

int64_t fastddpm_program_scratch_bytes(const fastddpm_program* program) {
  return program->scratch_bytes();
}

int64_t fastddpm_program_run(fastddpm_program* program, int64_t* index, int64_t steps,
                             double seconds) {
  return program->run(index, steps, seconds, nullptr);
}

void fastddpm_program_profile(fastddpm_program* program, int64_t* index, double* seconds) {
  program->run(index, 1, 0, seconds);
}

int64_t fastddpm_packed_conv3x3_bytes(int64_t out_channels, int64_t in_channels, int64_t packing) {
  if (out_channels < 1 || in_channels < 1 || packing < 0 ||
      packing > FASTDDPM_PACKING_TRANSFORMED) {
    return -1;
  }
  return fastddpm::kernels().conv3x3_packing->bytes(out_channels, in_channels, 3, packing);
}

int64_t fastddpm_packed_convolution_bytes(int64_t out_channels, int64_t in_channels, int64_t kernel,
                                          int64_t packing) {
  if (out_channels < 1 || in_channels < 1 || (kernel != 1 && kernel != 3) || packing < 0 ||
      packing > FASTDDPM_PACKING_FLOAT16) {
    return -1;
  }
  return fastddpm::kernels().convolution_packing->bytes(out_channels, in_channels, kernel, packing);
}

int32_t fastddpm_pack_conv3x3(void* packed, const float* weight, int64_t out_channels,
                              int64_t in_channels, int64_t packing) {
  if (packed == nullptr || weight == nullptr ||
      fastddpm_packed_conv3x3_bytes(out_channels, in_channels, packing) < 0) {
    return FASTDDPM_INVALID_ARGUMENT;
  }
  fastddpm::kernels().conv3x3_packing->pack(packed, weight, out_channels, in_channels, 3, packing);
  return FASTDDPM_OK;
}

int32_t fastddpm_pack_convolution(void* packed, const float* weight, int64_t out_channels,
                                  int64_t in_channels, int64_t kernel, int64_t packing) {
  if (packed == nullptr || weight == nullptr ||
      fastddpm_packed_convolution_bytes(out_channels, in_channels, kernel, packing) < 0) {
    return FASTDDPM_INVALID_ARGUMENT;
  }
  fastddpm::kernels().convolution_packing->pack(packed, weight, out_channels, in_channels, kernel,
                                                packing);
  return FASTDDPM_OK;
}

}  // extern "C"

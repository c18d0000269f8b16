// The captured program: a list of instructions that a crew of threads replays for every step.
//
//     each member:  for step i, i-1, ...:  for each instruction:  kernel(arguments, team); barrier
//
// The caller is member 0. Between two steps the others wait at a barrier, asleep before long.
#include <unistd.h>

#include <cfenv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
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
    sizeof(fastddpm_layout),     sizeof(fastddpm_step),        sizeof(fastddpm_call)};

// The caller's own thread is member 0.
void run_call(const fastddpm_call& a, const Team& team) {
  if (team.member == 0) reinterpret_cast<fastddpm_function>(a.function)(a.context, team.step);
}

constexpr Operation CALL =
    fastddpm::operation<fastddpm_call, run_call, fastddpm::no_scratch<fastddpm_call>>();

const Operation* operation_of(const Kernels& kernels, int64_t op) {
  return op == FASTDDPM_OP_CALL ? &CALL : kernels.operations[op];
}

// Scratch comes in huge pages, or exactly where a sanitizer is to see what lies beyond it.
#if defined(FASTDDPM_SANITIZED)
constexpr int64_t PAGE = 64;
#else
constexpr int64_t PAGE = 2 << 20;
#endif

struct Instruction {
  const Operation* operation;
  std::vector<char> arguments;
};

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};
using Scratch = std::unique_ptr<char, Free>;

Scratch allocate_scratch(int64_t bytes) {
  const int64_t pages = bytes > 0 ? (bytes + PAGE - 1) / PAGE : 1;
  Scratch scratch(static_cast<char*>(std::aligned_alloc(PAGE, pages * PAGE)));
  if (scratch == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  madvise(scratch.get(), pages * PAGE, MADV_HUGEPAGE);
#endif
  // Touches every page, and a kernel that reads what it has not written gets NaN.
  std::memset(scratch.get(), 0xFF, pages * PAGE);
  return scratch;
}

double now() {
  using std::chrono::steady_clock;
  return std::chrono::duration<double>(steady_clock::now().time_since_epoch()).count();
}

// Every member rounds alike and keeps subnormals, whatever the caller's own thread is set to.
class DefaultArithmetic {
 public:
  DefaultArithmetic() {
    std::fegetenv(&callers_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultArithmetic() { std::fesetenv(&callers_); }
  DefaultArithmetic(const DefaultArithmetic&) = delete;
  DefaultArithmetic& operator=(const DefaultArithmetic&) = delete;

 private:
  std::fenv_t callers_;
};

// One step of a program, as its members see it.
struct Replay {
  const std::vector<Instruction>& code;
  char* scratch;
  int32_t threads;
  int64_t step = 0;
  double* times = nullptr;  // of each instruction, added up by member 0; or null

  void run(int32_t member, Meeting& meeting) const {
    const Team team = {member, threads, scratch, step, &meeting};
    double* const own = member == 0 ? times : nullptr;
    for (size_t k = 0; k < code.size(); ++k) {
      const double before = own == nullptr ? 0 : now();
      code[k].operation->run(code[k].arguments.data(), team);
      team.barrier();
      if (own != nullptr) own[k] += now() - before;
    }
  }
};

// The threads beside the caller's. They live as long as the crew, and wait in the meeting.
class Crew {
 public:
  explicit Crew(const Replay& replay) : replay_(replay), meeting_(replay.threads) {
    workers_.reserve(replay.threads - 1);
    try {
      for (int32_t member = 1; member < replay.threads; ++member) {
        workers_.emplace_back([this, member] { work(member); });
      }
    } catch (...) {
      dismiss();
      throw;
    }
  }

  ~Crew() { dismiss(); }

  // One step, the caller's part; the others have done theirs when it returns.
  void run() {
    meeting_.barrier();
    replay_.run(0, meeting_);
  }

  // fork() leaves its child this object and none of the threads.
  bool lost() const { return getpid() != process_; }

 private:
  void work(int32_t member) {
    const DefaultArithmetic arithmetic;
    for (;;) {
      meeting_.barrier();
      if (dismissed_.load(std::memory_order_relaxed)) return;
      replay_.run(member, meeting_);
    }
  }

  // The caller arrives for itself and for those who never came to be.
  void dismiss() {
    dismissed_.store(true, std::memory_order_relaxed);
    for (auto member = static_cast<int32_t>(workers_.size()); member < replay_.threads; ++member) {
      meeting_.arrive();
    }
    for (std::thread& worker : workers_) worker.join();
  }

  const Replay& replay_;
  Meeting meeting_;
  const pid_t process_ = getpid();
  std::atomic<bool> dismissed_{false};
  std::vector<std::thread> workers_;
};

}  // namespace

struct fastddpm_program {
  fastddpm_program(const fastddpm_instruction* code, int64_t count, int32_t threads) {
    const Kernels& kernels = fastddpm::kernels();
    for (int64_t k = 0; k < count; ++k) {
      const char* arguments = static_cast<const char*>(code[k].arguments);
      Instruction instruction{operation_of(kernels, code[k].op),
                              {arguments, arguments + ARGUMENT_BYTES[code[k].op]}};
      const int64_t bytes = instruction.operation->scratch(instruction.arguments.data(), threads);
      if (bytes > scratch_bytes_) scratch_bytes_ = bytes;
      code_.push_back(std::move(instruction));
    }
    scratch_ = allocate_scratch(scratch_bytes_);
    replay_.scratch = scratch_.get();
    replay_.threads = threads;
    crew_ = std::make_unique<Crew>(replay_);
  }

  ~fastddpm_program() { forget_lost_crew(); }

  // Throws if this is a forked child and there are no new threads to be had.
  int64_t run(int64_t* index, int64_t steps, double seconds, double* times) {
    if (forget_lost_crew()) crew_ = std::make_unique<Crew>(replay_);
    const DefaultArithmetic arithmetic;
    const double limit = now() + seconds;
    int64_t taken = 0;
    for (; taken < steps && (taken == 0 || now() < limit); ++taken) {
      replay_.step = *index;
      replay_.times = times;
      crew_->run();
      --*index;
    }
    return taken;
  }

  int64_t scratch_bytes() const { return scratch_bytes_; }

 private:
  // Nobody is there to be joined: the object is left behind. Whether there is no crew now.
  bool forget_lost_crew() {
    if (crew_ != nullptr && crew_->lost()) static_cast<void>(crew_.release());
    return crew_ == nullptr;
  }

  std::vector<Instruction> code_;
  int64_t scratch_bytes_ = 0;
  Scratch scratch_;
  Replay replay_{code_, nullptr, 0};
  std::unique_ptr<Crew> crew_;
};

namespace {

bool is_valid(const fastddpm_instruction& instruction) {
  if (instruction.op < 0 || instruction.op >= FASTDDPM_OPS) return false;
  if (instruction.arguments == nullptr) return false;
  // Attention writes no statistics: its kernel would leave a reader what lay there before.
  return instruction.op != FASTDDPM_OP_ATTENTION ||
         static_cast<const fastddpm_attention*>(instruction.arguments)->y.statistics == nullptr;
}

int64_t run(fastddpm_program* program, int64_t* index, int64_t steps, double seconds,
            double* times) {
  try {
    return program->run(index, steps, seconds, times);
  } catch (const std::bad_alloc&) {
  } catch (const std::system_error&) {
  }
  return -1;
}

}  // namespace

extern "C" {

fastddpm_program* fastddpm_program_create(const fastddpm_instruction* code, int64_t count,
                                          int32_t threads, int32_t* status) {
  bool valid = status != nullptr && code != nullptr && count >= 1 && threads >= 1;
  for (int64_t k = 0; valid && k < count; ++k) {
    valid = is_valid(code[k]);
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
  return run(program, index, steps, seconds, nullptr);
}

int64_t fastddpm_program_profile(fastddpm_program* program, int64_t* index, double* seconds) {
  return run(program, index, 1, 0, seconds);
}

}  // extern "C"

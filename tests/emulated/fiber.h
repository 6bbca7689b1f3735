// A thread of execution with a stack of its own, which runs when it is resumed and until it
// suspends itself.
#pragma once

#include <cstddef>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulated {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Has the next Resume call `main`, which must not return: it ends in a Suspend for good.
  void Prepare(void (*main)());
  void Resume();
  void Suspend();

 private:
  static constexpr size_t kGuardBytes = 4096, kStackBytes = 128 << 10;

  char* memory_;
#ifdef __x86_64__
  void *inside_ = nullptr, *outside_ = nullptr;  // stack pointers, of whoever does not run
#else
  ucontext_t inside_, outside_;
#endif
};

}  // namespace emulated

#include "fiber.h"

#include <sys/mman.h>

#include <new>

namespace emulated {

Fiber::Fiber() {
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kGuardBytes, PROT_NONE);
  memory_ = static_cast<char*>(memory);
}

Fiber::~Fiber() { munmap(memory_, kGuardBytes + kStackBytes); }

#ifdef __x86_64__

// swapcontext would do, but it asks the kernel for the signal mask at every switch.
extern "C" void emulated_switch(void** save, void* load);
asm(R"(
.text
.hidden emulated_switch
.globl emulated_switch
.type emulated_switch, @function
emulated_switch:
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
.size emulated_switch, .-emulated_switch
)");

void Fiber::Prepare(void (*main)()) {
  constexpr int kRegisters = 6;
  void** top = reinterpret_cast<void**>(memory_ + kGuardBytes + kStackBytes);
  *--top = nullptr;  // where main would return to; the stack is aligned as by a call
  *--top = reinterpret_cast<void*>(main);
  for (int i = 0; i < kRegisters; ++i) *--top = nullptr;
  inside_ = top;
}

void Fiber::Resume() { emulated_switch(&outside_, inside_); }
void Fiber::Suspend() { emulated_switch(&inside_, outside_); }

#else

void Fiber::Prepare(void (*main)()) {
  getcontext(&inside_);
  inside_.uc_stack.ss_sp = memory_ + kGuardBytes;
  inside_.uc_stack.ss_size = kStackBytes;
  inside_.uc_link = nullptr;
  makecontext(&inside_, main, 0);
}

void Fiber::Resume() { swapcontext(&outside_, &inside_); }
void Fiber::Suspend() { swapcontext(&inside_, &outside_); }

#endif

}  // namespace emulated

// A thread of the operating system that blocks run on, one after the other. It works only while
// somebody is in RunSlice.
#pragma once

#include <memory>
#include <semaphore>
#include <thread>

#include "machine.h"

namespace emulated {

class Slot {
 public:
  Slot();

  // Block `number` of a grid, at its start.
  Block& Begin(Grid& grid, unsigned number);

  // Runs threads until none can go on, or all that can have looked in vain, or it is somebody
  // else's turn. Returns whether they did more than to look.
  bool RunSlice();

 private:
  Thread& BeginThread(int number);
  [[noreturn]] void Serve();
  void Slice();
  bool Step();
  void Copy();
  void End();

  Block block_;
  std::vector<std::unique_ptr<Thread>> threads_;
  bool fruitful_ = false;
  std::binary_semaphore slice_{0}, served_{0};
  std::thread host_;
};

}  // namespace emulated

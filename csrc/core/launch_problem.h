// Why a kernel could not be launched, where the CUDA runtime does not know.
#pragma once

#include <string>

namespace eet {

// Set by a launcher, reported and cleared by LaunchStatus on the same thread. Empty: no problem.
inline std::string& LaunchProblem() {
  static thread_local std::string problem;
  return problem;
}

}  // namespace eet

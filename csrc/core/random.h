// Counter-based random numbers: pure functions of a key and a counter, equal on host and device.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "core/types.h"

namespace eet {

struct RandomPair {
  uint32_t first, second;
};

// Threefry-2x32 with 20 rounds (Salmon et al., 2011), which is also JAX's default generator.
EET_HOST_DEVICE RandomPair Threefry(RandomPair key, RandomPair counter) {
  constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t schedule[3] = {key.first, key.second, key.first ^ key.second ^ 0x1bd11bdau};
  uint32_t x = counter.first + schedule[0], y = counter.second + schedule[1];
  for (int group = 0; group < 5; ++group) {
    for (int i = 0; i < 4; ++i) {
      const int rotation = kRotations[group % 2][i];
      x += y;
      y = x ^ (y << rotation | y >> (32 - rotation));
    }
    x += schedule[(group + 1) % 3];
    y += schedule[(group + 2) % 3] + uint32_t(group) + 1;
  }
  return {x, y};
}

// A standard Gumbel number from 32 random bits: -log(e) of an exponentially distributed e. The
// upper tail, which decides draws of improbable tokens, has the full resolution of the bits.
EET_HOST_DEVICE float Gumbel(uint32_t bits) {
  const float uniform = (float(bits) + 0.5f) * 0x1p-32f;
  const float below_one = uniform < 1.0f ? uniform : 0x1.fffffep-1f;
  return -logf(-log1pf(-below_one));
}

// No less than Gumbel(bits), and cheap: with u the uniform number, -log1p(-u) >= u >= 2^-(zeros +
// 1).
inline float GumbelBound(uint32_t bits) {
  return 0.6932f * float(std::countl_zero(bits) + 1);  // log(2), rounded up
}

}  // namespace eet

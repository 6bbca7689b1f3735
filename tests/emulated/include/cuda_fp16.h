// float16, and pairs of it.
#pragma once

using __half = _Float16;

struct __half2 {
  __half x, y;
};

inline __half2 __hmul2(__half2 a, __half2 b) {
  return {__half(float(a.x) * float(b.x)), __half(float(a.y) * float(b.y))};
}

// Rotation and cache append on the GPU. One warp per head of a token, two adjacent elements a lane.
#include "core/reduce.cuh"
#include "ops/rotary_append.h"

namespace eet {

constexpr int kWarps = 4;

// y = rotate(norm(x)) of one head, by one warp.
template <typename T>
__device__ void TransformHead(const RotaryAppendArgs<T>& args, const T* x, const T* scale,
                              const float* pairs, T* y) {
  const int lane = threadIdx.x % kWarpSize;
  float inv_rms = 1.0f;
  if (scale) {
    float sum = 0;
    for (int i = lane; i < args.head_dim; i += kWarpSize) sum += float(x[i]) * float(x[i]);
    inv_rms = rsqrtf(WarpReduce<Sum>(sum) / float(args.head_dim) + args.eps);
  }
  for (int i = 2 * lane; i < args.head_dim; i += 2 * kWarpSize) {
    float x0 = float(x[i]), x1 = float(x[i + 1]);
    if (scale) {
      // Rounded to T, as a norm of its own would be.
      x0 = float(T(x0 * inv_rms * float(scale[i])));
      x1 = float(T(x1 * inv_rms * float(scale[i + 1])));
    }
    if (i < args.rotary_dim) {
      const float cosine = pairs[i], sine = pairs[i + 1], rotated = x0 * cosine - x1 * sine;
      x1 = x1 * cosine + x0 * sine;
      x0 = rotated;
    }
    y[i] = T(x0);
    y[i + 1] = T(x1);
  }
}

template <typename T>
__global__ void __launch_bounds__(kWarps* kWarpSize) RotaryAppendKernel(RotaryAppendArgs<T> args) {
  const int64_t slices = args.kv_heads * (args.group + 2);
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarpSize;
  if (index >= args.tokens * slices) return;
  const int64_t token = index / slices, head = index % slices / (args.group + 2);
  const int64_t part = index % (args.group + 2);
  const T* x = args.qkv + index * args.head_dim;
  const float* pairs = args.rotary_table + token * args.rotary_dim;
  if (part < args.group) {
    T* q = args.q + ((token * args.kv_heads + head) * args.group + part) * args.head_dim;
    TransformHead(args, x, args.q_norm, pairs, q);
    return;
  }
  const int64_t slot = CacheSlot(args, token);
  if (slot < 0) return;
  const int64_t offset = (slot + head * args.page_size) * args.head_dim;
  if (part == args.group) {
    TransformHead(args, x, args.k_norm, pairs, args.k + offset);
    return;
  }
  for (int i = threadIdx.x % kWarpSize; i < args.head_dim; i += kWarpSize) {
    args.v[offset + i] = x[i];
  }
}

template <typename T>
void RotaryAppend(Stream stream, const RotaryAppendArgs<T>& args) {
  const int64_t slices = args.tokens * args.kv_heads * (args.group + 2);
  if (slices == 0) return;
  const int64_t blocks = (slices + kWarps - 1) / kWarps;
  RotaryAppendKernel<<<blocks, kWarps * kWarpSize, 0, stream>>>(args);
}

template void RotaryAppend(Stream, const RotaryAppendArgs<float>&);
template void RotaryAppend(Stream, const RotaryAppendArgs<bfloat16>&);
template void RotaryAppend(Stream, const RotaryAppendArgs<float16>&);

}  // namespace eet

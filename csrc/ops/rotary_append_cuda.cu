// Rotation and cache append on the GPU. One warp per head of a token, two adjacent elements a lane.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "core/round.h"
#include "ops/rotary_append.h"

namespace eet {

constexpr int kWarps = 4;

// Adjacent elements of a head that a lane works on at once, so that their loads are in flight
// together.
template <typename T>
struct HeadPart {
  static constexpr int kPairs = 4, kStep = 2 * kWarpSize;

  float2 values[kPairs];

  __device__ HeadPart(const T* x, int first, int end) {
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      const int i = first + n * kStep;
      values[n] = i < end ? float2{float(x[i]), float(x[i + 1])} : float2{};
    }
  }

  __device__ void Store(T* y, int first, int end) const {
#pragma unroll
    for (int n = 0; n < kPairs; ++n) {
      const int i = first + n * kStep;
      if (i >= end) return;
      y[i] = T(values[n].x);
      y[i + 1] = T(values[n].y);
    }
  }
};

template <typename T>
__device__ float InverseRms(const RotaryAppendArgs<T>& args, const T* x) {
  float sum = 0;
  for (int i = threadIdx.x % kWarpSize; i < args.head_dim; i += kWarpSize) {
    sum += float(x[i]) * float(x[i]);
  }
  return rsqrtf(WarpReduce<Sum>(sum) / float(args.head_dim) + args.eps);
}

// y = rotate(norm(x)) of one head, by one warp.
template <typename T>
__device__ void TransformHead(const RotaryAppendArgs<T>& args, const T* x, const T* scale,
                              const float* pairs, T* y) {
  using Part = HeadPart<T>;
  const int head_dim = int(args.head_dim), rotary_dim = int(args.rotary_dim);
  const float inv_rms = scale ? InverseRms(args, x) : 1.0f;
  for (int first = threadIdx.x % kWarpSize * 2; first < head_dim;
       first += Part::kPairs * Part::kStep) {
    Part part(x, first, head_dim);
    const HeadPart<float> rotation(pairs, first, rotary_dim);
#pragma unroll
    for (int n = 0; n < Part::kPairs; ++n) {
      const int i = first + n * Part::kStep;
      float2& value = part.values[n];
      if (scale && i < head_dim) {
        // Rounded to T, as a norm of its own would be.
        value.x = float(T(value.x * inv_rms * float(scale[i])));
        value.y = float(T(value.y * inv_rms * float(scale[i + 1])));
      }
      if (i < rotary_dim) {
        const auto [cosine, sine] = rotation.values[n];
        value = {value.x * cosine - value.y * sine, value.y * cosine + value.x * sine};
      }
    }
    part.Store(y, first, head_dim);
  }
}

template <typename T>
__device__ void CopyHead(const RotaryAppendArgs<T>& args, const T* x, T* y) {
  using Part = HeadPart<T>;
  const int head_dim = int(args.head_dim);
  for (int first = threadIdx.x % kWarpSize * 2; first < head_dim;
       first += Part::kPairs * Part::kStep) {
    Part(x, first, head_dim).Store(y, first, head_dim);
  }
}

template <typename T>
__global__ void __launch_bounds__(kWarps* kWarpSize) RotaryAppendKernel(RotaryAppendArgs<T> args) {
  LaunchDependents();
  WaitForDependencies();
  const unsigned slices = unsigned(args.kv_heads * (args.group + 2));
  const unsigned index = blockIdx.x * kWarps + threadIdx.x / kWarpSize;
  if (index >= args.tokens * slices) return;
  const unsigned token = index / slices, head = index % slices / unsigned(args.group + 2);
  const unsigned part = index % unsigned(args.group + 2);
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
  CopyHead(args, x, args.v + offset);
}

template <typename T>
void RotaryAppend(Stream stream, const RotaryAppendArgs<T>& args) {
  const int64_t slices = args.tokens * args.kv_heads * (args.group + 2);
  if (slices == 0) return;
  const int64_t blocks = CeilDiv(slices, kWarps);
  LaunchWithPdl(RotaryAppendKernel<T>, {.grid = dim3(blocks), .block = dim3(kWarps * kWarpSize)},
                stream, args);
}

template void RotaryAppend(Stream, const RotaryAppendArgs<float>&);
template void RotaryAppend(Stream, const RotaryAppendArgs<bfloat16>&);
template void RotaryAppend(Stream, const RotaryAppendArgs<float16>&);

}  // namespace eet

// QKV product, rotation and append on Hopper: linear's kernels with outputs of their own.
#include "core/vector.cuh"
#include "ops/linear_decode_sm90_launch.cuh"
#include "ops/linear_prefill_sm90_kernel.cuh"
#include "ops/qkv_append.h"
#include "ops/qkv_append_fours.cuh"
#include "ops/qkv_append_heads.cuh"

namespace eet {

template <typename T>
static bool IsAligned(const LinearArgs<T>& product, const RotaryAppendArgs<T>& append) {
  return product.in % Vector<T>::kSize == 0 && IsAligned16(product.x) &&
         IsAligned16(product.kernel) && IsAligned16(product.bias) && IsAligned16(append.q_norm) &&
         IsAligned16(append.k_norm) && IsAligned16(append.rotary_table) && IsAligned16(append.q) &&
         IsAligned16(append.k) && IsAligned16(append.v);
}

// Many rows, in tiles that hold whole heads.
template <int kDim, typename T>
static void LaunchHeads(Stream stream, const LinearArgs<T>& product,
                        const RotaryAppendArgs<T>& append) {
  const LinearSizes sizes{.rows = product.rows,
                          .in = product.in,
                          .out = product.out,
                          .weights_are_ready = product.weights_are_ready};
  WithLinearShape<T, kDim>(sizes, [&]<class Shape>(Shape) {
    LaunchLinearPrefillSm90<Shape, QkvHeads<Shape, kDim>>(
        stream, product.x, product.kernel, sizes,
        {.bias = product.bias, .out = product.out, .append = append});
  });
}

template <typename T>
static bool AppendMany(Stream stream, const LinearArgs<T>& product,
                       const RotaryAppendArgs<T>& append) {
  switch (append.head_dim) {
    case 64:
      LaunchHeads<64>(stream, product, append);
      return true;
    case 128:
      LaunchHeads<128>(stream, product, append);
      return true;
    case 256:
      LaunchHeads<256>(stream, product, append);
      return true;
  }
  return false;
}

template <typename T>
static bool AppendFew(Stream stream, const LinearArgs<T>& product,
                      const RotaryAppendArgs<T>& append) {
  if (append.q_norm || append.k_norm || append.head_dim % 4 != 0) return false;
  LaunchLinearDecodeSm90<QkvFours<T>>(stream, product.x, product.kernel,
                                      {.rows = product.rows,
                                       .in = product.in,
                                       .out = product.out,
                                       .weights_are_ready = product.weights_are_ready,
                                       .normed = product.normed},
                                      {.bias = product.bias, .append = append});
  return true;
}

template <typename T>
bool QkvAppend(Stream stream, const LinearArgs<T>& product, const RotaryAppendArgs<T>& append) {
  if constexpr (sizeof(T) == 2) {
    if (ComputeMajor() != 9 || product.in == 0 || !IsAligned(product, append)) return false;
    return product.path == LinearPath::kPrefill ? AppendMany(stream, product, append)
                                                : AppendFew(stream, product, append);
  }
  return false;
}

template bool QkvAppend(Stream, const LinearArgs<float>&, const RotaryAppendArgs<float>&);
template bool QkvAppend(Stream, const LinearArgs<bfloat16>&, const RotaryAppendArgs<bfloat16>&);
template bool QkvAppend(Stream, const LinearArgs<float16>&, const RotaryAppendArgs<float16>&);

}  // namespace eet

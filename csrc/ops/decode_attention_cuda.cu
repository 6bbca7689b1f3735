// Decode attention on the GPU: a kernel over the splits of all rows, and one that merges them. The
// output of a row that has one split is the first kernel's.
#include <algorithm>
#include <type_traits>

#include "ops/decode_attention_fma.cuh"
#include "ops/decode_attention_merge.cuh"
#include "ops/decode_attention_mma.cuh"
#include "ops/decode_attention_stream_sm90.cuh"

namespace eet {

// As many blocks as the GPU holds, and no more than there may be items: lengths are not known here.
template <class Keys, typename T>
static void LaunchMma(Stream stream, const DecodeAttentionArgs<T>& args,
                      const typename Keys::Source& source) {
  using Shape = StreamShape<Keys::kDim>;
  constexpr size_t kSharedBytes = Shape::kWarps * sizeof(typename Keys::Memory);
  const auto kernel = DecodeMmaKernel<Keys>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  LaunchShape shape{.block = dim3(Shape::kThreads), .shared_bytes = kSharedBytes};
  const ItemSizes sizes(args);
  const int64_t items = args.tokens * sizes.items * MaxSplits(args.max_pages * args.page_size);
  shape.grid = dim3(unsigned(std::min<int64_t>(items, ResidentBlocks(kernel, shape))));
  LaunchWithPdl(kernel, shape, stream, args, sizes, source);
}

// kDim: head_dim rounded up to a size that there is a kernel for.
template <typename T, int kDim>
static void LaunchSplits(Stream stream, const DecodeAttentionArgs<T>& args) {
  if constexpr (std::is_same_v<T, float>) {
    LaunchWithPdl(DecodeFmaKernel<kDim>,
                  {.grid = FmaGrid(args), .block = dim3(kDecodeFmaWarps * kWarpSize)}, stream, args,
                  ItemSizes(args));
    return;
  } else if constexpr (kDim % kChunkColumns == 0) {
    if (TmaSupports<kDim>(args)) {
      CacheMaps maps;
      if (MakeCacheMaps<kDim>(&maps, args)) LaunchMma<TmaKeys<T, kDim>>(stream, args, maps);
      return;
    }
  }
  if constexpr (sizeof(T) == 2) LaunchMma<CpAsyncKeys<T, kDim>>(stream, args, {});
}

template <typename T>
static void LaunchForHeads(Stream stream, const DecodeAttentionArgs<T>& args) {
  if (args.head_dim <= 64) {
    LaunchSplits<T, 64>(stream, args);
  } else if (args.head_dim <= 96) {
    LaunchSplits<T, 96>(stream, args);
  } else if (args.head_dim <= 128) {
    LaunchSplits<T, 128>(stream, args);
  } else {
    LaunchSplits<T, 256>(stream, args);
  }
}

template <typename T>
void DecodeAttention(Stream stream, const DecodeAttentionArgs<T>& args) {
  if (args.tokens == 0 || args.heads == 0) return;
  LaunchForHeads(stream, args);
  LaunchMerge(stream, args);
}

template void DecodeAttention(Stream, const DecodeAttentionArgs<float>&);
template void DecodeAttention(Stream, const DecodeAttentionArgs<bfloat16>&);
template void DecodeAttention(Stream, const DecodeAttentionArgs<float16>&);

}  // namespace eet

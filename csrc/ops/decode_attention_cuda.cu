// Decode attention on the GPU: a kernel over the parts of all rows, and where rows may have many
// parts one that merges them.
#include <algorithm>
#include <type_traits>

#include "ops/decode_attention_fma.cuh"
#include "ops/decode_attention_merge.cuh"
#include "ops/decode_attention_mma.cuh"
#include "ops/decode_attention_stream_sm90.cuh"

namespace eet {

// As many blocks as the GPU holds, and no more than there may be items: lengths are not known here.
template <class Stream, typename T>
static void LaunchStream(cudaStream_t stream, const DecodeAttentionArgs<T>& args,
                         const typename Stream::Source& source) {
  using Shape = StreamShape<Stream::kDim>;
  constexpr size_t kSharedBytes = Shape::kWarps * sizeof(typename Stream::Memory);
  const auto kernel = DecodeMmaKernel<Stream>;
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  LaunchShape shape{.block = dim3(Shape::kThreads), .shared_bytes = kSharedBytes};
  const ItemSizes sizes(args);
  const int64_t items = args.tokens * sizes.items * MaxSplits(args.max_pages * args.page_size);
  shape.grid = dim3(unsigned(std::min<int64_t>(items, ResidentBlocks(kernel, shape))));
  LaunchEarly(kernel, shape, stream, args, sizes, source);
  if (!HasFewParts<Stream::kSplits>(args)) LaunchMerge<Stream::kSplits>(stream, args);
}

template <int kSplits, int kDim, typename T>
static void LaunchMma(cudaStream_t stream, const DecodeAttentionArgs<T>& args) {
  if constexpr (kDim % kChunkColumns == 0) {
    if (CopyEngineTakes<kDim>(args)) {
      CacheMaps maps;
      if (!MakeCacheMaps<kDim>(&maps, args)) return;
      return LaunchStream<OrderedKeys<T, kDim, kSplits>>(stream, args, maps);
    }
  }
  LaunchStream<CopiedKeys<T, kDim, kSplits>>(stream, args, {});
}

// kDim: head_dim rounded up to a size that there is a kernel for.
template <typename T, int kDim>
static void LaunchSplits(Stream stream, const DecodeAttentionArgs<T>& args) {
  if constexpr (std::is_same_v<T, float>) {
    LaunchEarly(DecodeFmaKernel<kDim>,
                {.grid = FmaGrid(args), .block = dim3(kDecodeFmaWarps * kWarpSize)}, stream, args,
                ItemSizes(args));
    LaunchMerge<1>(stream, args);
  } else if (args.tokens * ItemSizes(args).items < Multiprocessors()) {
    LaunchMma<1, kDim>(stream, args);
  } else {  // without splits each multiprocessor has work
    LaunchMma<kRunSplits, kDim>(stream, args);
  }
}

template <typename T>
void DecodeAttention(Stream stream, const DecodeAttentionArgs<T>& args) {
  if (args.tokens == 0 || args.heads == 0) return;
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

template void DecodeAttention(Stream, const DecodeAttentionArgs<float>&);
template void DecodeAttention(Stream, const DecodeAttentionArgs<bfloat16>&);
template void DecodeAttention(Stream, const DecodeAttentionArgs<float16>&);

}  // namespace eet

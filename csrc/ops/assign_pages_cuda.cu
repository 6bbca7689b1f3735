// Pages are assigned by one block: free ones are the zeros of a bitmap in shared memory. In most
// steps of a decode loop no row needs a page, and the table is only read.
#include "core/launch.cuh"
#include "core/reduce.cuh"
#include "core/round.h"
#include "ops/assign_pages.h"

namespace eet {

constexpr int kThreads = 1024, kBits = 32;

// The sum of the values of the threads before this one, and of all. By all threads.
struct BlockSum {
  int before, total;
};

__device__ BlockSum SumOverBlock(int value) {
  __shared__ int sums[kThreads / kWarpSize];
  const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
  const auto through_lane = [&](int sum) {
#pragma unroll
    for (int step = 1; step < kWarpSize; step *= 2) {
      const int other = __shfl_up_sync(kFullMask, sum, step);
      if (lane >= step) sum += other;
    }
    return sum;
  };
  const int in_warp = through_lane(value);
  __syncthreads();  // earlier sums may still be read
  if (lane == kWarpSize - 1) sums[warp] = in_warp;
  __syncthreads();
  const int of_warps = through_lane(sums[lane]);
  const int warps_before = __shfl_sync(kFullMask, of_warps, max(warp - 1, 0));
  return {.before = in_warp - value + (warp > 0 ? warps_before : 0),
          .total = __shfl_sync(kFullMask, of_warps, kWarpSize - 1)};
}
static_assert(kThreads / kWarpSize == kWarpSize);

// The pages that nobody has, numbered in their order.
class FreePages {
 public:
  __device__ FreePages(const AssignPagesArgs& args, uint32_t* taken)
      : taken_(taken), share_(CeilDiv(int(CeilDiv(args.pages, kBits)), kThreads)) {
    for (int i = threadIdx.x; i < share_ * kThreads; i += kThreads) taken_[i] = NeverFree(i, args);
    __syncthreads();
    const uint32_t entries = args.batch * args.max_pages;
    for (uint32_t i = threadIdx.x; i < entries; i += kThreads) {
      const uint32_t page = uint32_t(args.page_table[i]);
      if (page < args.pages) atomicOr(&taken_[page / kBits], 1u << page % kBits);
    }
    __syncthreads();
    int count = 0;
    for (int i = 0; i < share_; ++i) count += __popc(Free(threadIdx.x * share_ + i));
    const BlockSum sum = SumOverBlock(count);
    First()[threadIdx.x] = sum.before;
    count_ = sum.total;
    __syncthreads();
  }

  __device__ int count() const { return count_; }

  // Page number `index`, or 0 if there are not so many.
  __device__ int operator[](int index) const {
    if (index >= count_) return 0;
    int thread = 0;  // whose share has it
    for (int step = kThreads / 2; step > 0; step /= 2) {
      if (First()[thread + step] <= index) thread += step;
    }
    int word = thread * share_, left = index - First()[thread];
    for (int here; left >= (here = __popc(Free(word))); ++word) left -= here;
    uint32_t bits = Free(word);
    for (; left > 0; --left) bits &= bits - 1;
    return word * kBits + __ffs(bits) - 1;
  }

 private:
  // Page 0, which stands for none, and numbers beyond the last.
  static __device__ uint32_t NeverFree(int word, const AssignPagesArgs& args) {
    const int64_t left = args.pages - int64_t{word} * kBits;
    const uint32_t beyond = left >= kBits ? 0u : left <= 0 ? ~0u : ~0u << left;
    return beyond | (word == 0 ? 1u : 0u);
  }

  __device__ uint32_t Free(int word) const { return ~taken_[word]; }

  // The number of the first free page in a thread's share.
  static __device__ int* First() {
    __shared__ int first[kThreads];
    return first;
  }

  uint32_t* const taken_;  // a bit of each page
  const int share_;        // words of a thread
  int count_ = 0;
};

// Entries of the table that want a page, numbered in the order of the table.
class WantedPages {
 public:
  __device__ explicit WantedPages(const AssignPagesArgs& args)
      : args_(args), entries_(uint32_t(args.batch * args.max_pages)) {}

  __device__ uint32_t Row(uint32_t entry) const { return entry / uint32_t(args_.max_pages); }

  __device__ bool Any() const {
    bool any = false;
    for (uint32_t i = threadIdx.x; i < entries_; i += kThreads) any |= Wants(i);
    return SumOverBlock(any).total > 0;
  }

  // Calls visit(entry, its number) for each of them. By all threads.
  template <typename F>
  __device__ void Each(const F& visit) const {
    int before = 0;
    for (uint32_t start = 0; start < entries_; start += kThreads) {
      const uint32_t i = start + threadIdx.x;
      const bool wants = Wants(i);
      const BlockSum sum = SumOverBlock(wants);
      if (wants) visit(i, before + sum.before);
      before += sum.total;
    }
  }

 private:
  __device__ bool Wants(uint32_t i) const {
    if (i >= entries_ || args_.page_table[i] != 0) return false;
    const uint32_t row = Row(i), column = i - row * uint32_t(args_.max_pages);
    return column * args_.page_size < args_.lengths[row];
  }

  const AssignPagesArgs& args_;
  const uint32_t entries_;
};

__global__ void __launch_bounds__(kThreads) AssignPagesKernel(AssignPagesArgs args) {
  extern __shared__ __align__(16) char memory[];
  for (int64_t row = threadIdx.x; row < args.batch; row += kThreads) args.found[row] = true;
  const WantedPages wanted(args);
  if (!wanted.Any()) return;
  const FreePages free(args, reinterpret_cast<uint32_t*>(memory));
  wanted.Each([&](uint32_t entry, int number) {
    if (number >= free.count()) args.found[wanted.Row(entry)] = false;
  });
  __syncthreads();
  wanted.Each([&](uint32_t entry, int number) {
    const bool gets = !args.whole_rows || args.found[wanted.Row(entry)];
    if (gets) args.page_table[entry] = free[number];
  });
}

void AssignPages(Stream stream, const AssignPagesArgs& args) {
  if (args.batch == 0) return;
  const size_t bytes = RoundUp(CeilDiv(args.pages, kBits), kThreads) * sizeof(uint32_t);
  static_assert(kMostAssignedPages / 8 <= 128 << 10, "shared memory of sm_80");
  cudaFuncSetAttribute(AssignPagesKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  LaunchKernel(AssignPagesKernel, {.grid = dim3(1), .block = dim3(kThreads), .shared_bytes = bytes},
               stream, args);
}

}  // namespace eet

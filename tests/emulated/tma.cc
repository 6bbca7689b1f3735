// Copies of boxes, and how tensor maps are made.
#include <cstring>

#include "core/tma.cuh"

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank,
                                void* tensor, const cuuint64_t* sizes, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* steps,
                                CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  constexpr int kElementBytes = 2;
  *map = {};
  map->tensor = static_cast<const char*>(tensor);
  map->rank = int(rank);
  map->span = swizzle == CU_TENSOR_MAP_SWIZZLE_NONE ? 0 : 16 << swizzle;
  // What the driver's manual asks for.
  bool valid = rank >= 3 && rank <= 4 && reinterpret_cast<uintptr_t>(tensor) % 16 == 0;
  for (cuuint32_t i = 0; i < rank; ++i) {
    const cuuint64_t stride = i == 0 ? kElementBytes : strides[i - 1];
    valid &= sizes[i] > 0 && sizes[i] <= cuuint64_t{1} << 32 && box[i] > 0 && box[i] <= 256;
    valid &= steps[i] == 1 && (i == 0 || (stride % 16 == 0 && stride < cuuint64_t{1} << 40));
    map->sizes[i] = int64_t(sizes[i]);
    map->strides[i] = int64_t(stride);
    map->box[i] = int(box[i]);
  }
  // Fewer bytes than the span would do, but where they go then is not written anywhere.
  valid &= map->box[0] * kElementBytes == map->span;
  return valid ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

namespace eet {

namespace {

struct Box {
  CUtensorMap map;
  int first[4];

  // Where a row of the box lies in the tensor, nullptr where that has nothing.
  char* Row(int row) const {
    int64_t offset = 0;
    for (int i = 1; i < map.rank; row /= map.box[i++]) {
      const int64_t at = first[i] + row % map.box[i];
      if (at < 0 || at >= map.sizes[i]) return nullptr;
      offset += at * map.strides[i];
    }
    return const_cast<char*>(map.tensor) + offset;
  }

  // The columns of the tensor that the box has.
  int64_t begin() const { return std::max(first[0], 0); }
  int64_t end() const { return std::min(int64_t{first[0]} + map.box[0], map.sizes[0]); }

  int rows() const { return map.box[1] * map.box[2] * (map.rank > 3 ? map.box[3] : 1); }
  int bytes() const { return rows() * map.span; }

  // A row of the box, with zeros where the tensor has nothing.
  void Load(int row, char* to) const {
    std::memset(to, 0, size_t(map.span));
    const char* from = Row(row);
    if (!from || begin() >= end()) return;
    std::memcpy(to + (begin() - first[0]) * 2, from + begin() * 2, size_t(end() - begin()) * 2);
  }

  void Store(char* memory, uint32_t address) const {
    char loaded[128];
    for (int row = 0; row < rows(); ++row, address += map.span) {
      Load(row, loaded);
      for (int i = 0; i < map.span; i += 16) {
        std::memcpy(memory + emulated::Swizzled(address + i, map.span), loaded + i, 16);
      }
    }
  }
};

// Calls store(memory of the block) at some time, then counts its bytes at the block's barrier.
template <typename F>
void Order(emulated::Block& block, uint32_t barrier, int bytes, const F& store) {
  emulated::Check(!block.Ended(), "a copy to a block that has ended");
  auto* counter = reinterpret_cast<Barrier*>(emulated::At(block, barrier, sizeof(Barrier)));
  block.copies.push_back([=, &block] {
    store(block.memory);
    counter->Count(block, bytes);
  });
}

}  // namespace

void BulkCopy(void* shared, const void* global, int bytes, Barrier& barrier) {
  const uint32_t address = SharedAddress(shared);
  emulated::Check((address | reinterpret_cast<uintptr_t>(global) | bytes) % 16 == 0,
                  "a copy of bytes is not one of multiples of 16");
  emulated::Block& block = *emulated::current->block;
  emulated::At(block, address, bytes);
  Order(block, barrier.Address(), bytes,
        [=](char* memory) { std::memcpy(memory + address, global, size_t(bytes)); });
}

void BulkCopyTo(int rank, void* there, const void* here, int bytes, Barrier& barrier) {
  const uint32_t to = SharedAddress(there), from = SharedAddress(here);
  emulated::Check((to | from | bytes) % 16 == 0, "a copy of bytes is not one of multiples of 16");
  emulated::Block& source = *emulated::current->block;
  emulated::Block& block = *source.grid->live.at(rank);
  emulated::At(source, from, bytes);
  emulated::At(block, to, bytes);
  Order(block, barrier.Address(), bytes, [=, &source](char* memory) {
    emulated::Check(!source.Ended(), "a copy from a block that has ended");
    std::memcpy(memory + to, source.memory + from, size_t(bytes));
  });
}

void StoreAt(int rank, float& variable, float value, Barrier& barrier) {
  const uint32_t address = SharedAddress(&variable);
  emulated::Check(emulated::current->block->grid->cluster_blocks > 1,
                  "a store to a block of the cluster, and there is none");
  emulated::Block& block = *emulated::current->block->grid->live.at(rank);
  emulated::At(block, address, sizeof(value));
  Order(block, barrier.Address(), sizeof(value),
        [=](char* memory) { std::memcpy(memory + address, &value, sizeof(value)); });
}

void TmaStore(const CUtensorMap& map, uint32_t shared, int x, int y, int z, int w) {
  const Box box{map, {x, y, z, w}};
  emulated::Check(shared % 128 == 0, "a box comes from an address that is not a multiple of 128");
  const char* memory = emulated::current->block->memory;
  emulated::At(*emulated::current->block, shared, box.bytes());
  for (int row = 0; row < box.rows(); ++row) {
    char* to = box.Row(row);
    for (int64_t col = box.begin(); to && col < box.end(); ++col) {
      const uint32_t from = shared + row * map.span + uint32_t(col - x) * 2;
      std::memcpy(to + col * 2, memory + emulated::Swizzled(from, map.span), 2);
    }
  }
}

void LoadBox(uint32_t shared, const CUtensorMap& map, const int (&first)[4], Barrier& barrier,
              unsigned ranks) {
  Box box{map, {first[0], first[1], first[2], first[3]}};
  emulated::Check(shared % 128 == 0, "a box goes to an address that is not a multiple of 128");
  const uint32_t barrier_address = barrier.Address();
  const auto& live = emulated::current->block->grid->live;
  for (size_t rank = 0; rank < live.size(); ++rank) {
    if (!(ranks >> rank & 1)) continue;
    emulated::Block& block = *live[rank];
    emulated::At(block, shared, box.bytes());
    Order(block, barrier_address, box.bytes(), [=](char* memory) { box.Store(memory, shared); });
  }
}

}  // namespace eet

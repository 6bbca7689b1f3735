// core/cluster.cuh, emulated: the other blocks of a cluster begin when one asks for its own place.
#pragma once

#include <cuda_runtime.h>

#define EET_CLUSTER

namespace eet {

template <int kBlocks>
struct ClusterOf {
  static constexpr int kSize = kBlocks;

  static int Item() { return int(blockIdx.x) / kBlocks; }

  static int Rank() {
    emulated::Cluster(kBlocks);
    return int(blockIdx.x) % kBlocks;
  }

  static void Sync(emulated::Where where = emulated::Where::current()) {
    Arrive();
    Wait(where);
  }

  static void Arrive() {
    emulated::Cluster(kBlocks);
    emulated::ArriveAtCluster();
  }

  static void Wait(emulated::Where where = emulated::Where::current()) {
    emulated::WaitForCluster(where);
  }

  static void Await(emulated::Where where = emulated::Where::current()) { Sync(where); }

  template <typename T>
  static const T& Shared(const T& variable, int rank) {
    const emulated::Block& block = *emulated::Cluster(kBlocks).at(rank);
    emulated::Check(!block.Ended(), "a look into a block that has ended");
    const char* mine = emulated::current->block->anchor;
    const char* address = reinterpret_cast<const char*>(&variable) + (block.anchor - mine);
    return *reinterpret_cast<const T*>(address);
  }
};

constexpr int kClusterBlocks = 8;

using Cluster = ClusterOf<kClusterBlocks>;

}  // namespace eet

// Gives free pages, those that the page table does not name, to the entries that rows want:
// page_table[row, p] for p < lengths[row] / page_size, rounded up, where it is 0. Entries in the
// order of the table want pages in the order of their numbers, and stay 0 where none is left.
#pragma once

#include <cstdint>

#include "core/stream.h"

namespace eet {

struct AssignPagesArgs {
  int32_t* page_table;     // [batch, max_pages], 0: no page; in place
  const int32_t* lengths;  // [batch], tokens that rows shall have room for
  bool* found;             // [batch], whether there was a page for all that the row wants
  int64_t batch, max_pages, page_size;
  int64_t pages;    // of the cache, page 0 included; at most kMostAssignedPages
  bool whole_rows;  // a row for which there are not enough gets none
};

constexpr int64_t kMostAssignedPages = 1 << 20;

void AssignPages(Stream stream, const AssignPagesArgs& args);

}  // namespace eet

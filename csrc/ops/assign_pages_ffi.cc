// Handler of eet_assign_pages, for CUDA alone: elsewhere the op is composed of others.
#ifdef EET_CUDA

#include "core/ffi.h"
#include "ops/assign_pages.h"

namespace eet {

static ffi::Error AssignPagesHandler(Stream stream, ffi::AnyBuffer page_table,
                                     ffi::AnyBuffer lengths, ffi::Result<ffi::AnyBuffer> found,
                                     ffi::Result<ffi::AnyBuffer> page_table_out, int64_t pages,
                                     int64_t page_size, bool whole_rows) {
  if (ffi::Error error = CheckInPlace("page_table", page_table, page_table_out); error.failure()) {
    return error;
  }
  AssignPages(stream, {.page_table = Data<int32_t>(page_table_out),
                       .lengths = Data<int32_t>(lengths),
                       .found = Data<bool>(found),
                       .batch = page_table.dimensions()[0],
                       .max_pages = page_table.dimensions()[1],
                       .page_size = page_size,
                       .pages = pages,
                       .whole_rows = whole_rows});
  return LaunchStatus();
}

EET_HANDLER(eet_assign_pages, AssignPagesHandler,
            ffi::Ffi::Bind()
                .Ctx<StreamContext>()
                .Arg<ffi::AnyBuffer>()  // page_table
                .Arg<ffi::AnyBuffer>()  // lengths
                .Ret<ffi::AnyBuffer>()  // found
                .Ret<ffi::AnyBuffer>()  // page_table
                .Attr<int64_t>("pages")
                .Attr<int64_t>("page_size")
                .Attr<bool>("whole_rows"));

}  // namespace eet

#endif

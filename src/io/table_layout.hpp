// How the numbers of a dataset lie in an HDF5 file. Worth a thought for tables of many MiB on a parallel file
// system: there a chunk as large as a stripe, and aligned to it, is written to one server alone.
#pragma once

#include <cstdint>

namespace sl {

struct TableLayout {
  int64_t chunk_kib = 1024;   // of a chunk with its checksum: what is written, read and checked at a time
  int64_t alignment_kib = 0;  // chunks more than half as large begin at multiples of it; 0: without gaps
};

}  // namespace sl

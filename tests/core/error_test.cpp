#include "core/error.hpp"

#include <gtest/gtest.h>

#include <cerrno>
#include <string>

namespace sl::test {
namespace {

TEST(ErrorTest, InputErrorIsOneLineOfWhereWhatAndRemedy) {
  const InputError error("'rate' is not an option", "run.cfg, line 3", "did you mean 'learning-rate'?");
  EXPECT_STREQ(error.what(), "run.cfg, line 3: 'rate' is not an option; did you mean 'learning-rate'?");
}

TEST(ErrorTest, BugErrorNamesThePlace) {
  try {
    require(1 + 1 == 3, "arithmetic holds");
    FAIL() << "accepted";
  } catch (const BugError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("arithmetic holds"), std::string::npos) << text;
    EXPECT_NE(text.find("error_test.cpp:"), std::string::npos) << text;
  }
  EXPECT_NO_THROW(require(true, "nothing"));
}

TEST(ErrorTest, SystemAndLibraryErrorsCarryTheReason) {
  const SystemError full("write", "/data/run/initial.h5", ENOSPC);
  EXPECT_STREQ(full.what(), "/data/run/initial.h5: write failed: No space left on device");
  const LibraryError library("HDF5", "H5Fopen(path)", "not an HDF5 file");
  const std::string text = library.what();
  EXPECT_NE(text.find("HDF5 error: not an HDF5 file in H5Fopen(path)"), std::string::npos) << text;
}

}  // namespace
}  // namespace sl::test

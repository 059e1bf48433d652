# One interface target carries the flags of every part of the program.
add_library(sl_flags INTERFACE)
target_include_directories(sl_flags INTERFACE ${PROJECT_SOURCE_DIR} ${PROJECT_SOURCE_DIR}/src)
target_compile_options(sl_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Werror
    # g++ 12 takes "x" + std::string for an overlapping copy (GCC bug 105651)
    $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict>
    # where clang, which checks only, does not vectorise is no fault
    $<$<CXX_COMPILER_ID:Clang>:-Wno-pass-failed>>
  $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr -lineinfo -Werror=all-warnings -Xcompiler=-Wall>)
target_compile_definitions(sl_flags INTERFACE
  SELFLENGTHEN_VERSION="${PROJECT_VERSION}"
  SELFLENGTHEN_PARALLEL_HDF5=$<BOOL:${SELFLENGTHEN_PARALLEL_HDF5}>
  SELFLENGTHEN_CUDA=$<BOOL:${SELFLENGTHEN_CUDA}>)
target_link_libraries(sl_flags INTERFACE Threads::Threads)
if(SELFLENGTHEN_NATIVE)
  target_compile_options(sl_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
endif()
if(SELFLENGTHEN_SANITIZE)
  target_compile_options(sl_flags INTERFACE -fsanitize=${SELFLENGTHEN_SANITIZE} -fno-omit-frame-pointer
    -fno-sanitize-recover=all)
  target_link_options(sl_flags INTERFACE -fsanitize=${SELFLENGTHEN_SANITIZE})
endif()
if(SELFLENGTHEN_FUZZ)  # coverage in all parts; main() comes with the targets
  target_compile_options(sl_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()

if(SELFLENGTHEN_CUDA)
  set(SELFLENGTHEN_OTHER_SIDE "_none\\.cpp$")
else()
  set(SELFLENGTHEN_OTHER_SIDE "_cuda\\.cpp$")
endif()

# sl_part(NAME folder deps...): one static library per folder of the tree; its sources are all .cpp files there.
# Of NAME_cuda.cpp and NAME_none.cpp the one of the side that this build has is taken.
# Dependencies run one way (STYLE: core <- kernels <- dist; core, dist, io, text <- model <- rollout, train <- lengthen <- cli).
function(sl_part name)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/${name}/*.cpp)
  list(FILTER sources EXCLUDE REGEX "${SELFLENGTHEN_OTHER_SIDE}")
  if(sources)
    add_library(sl_${name} STATIC ${sources})
    target_link_libraries(sl_${name} PUBLIC sl_flags ${ARGN})
    set_target_properties(sl_${name} PROPERTIES UNITY_BUILD ${SELFLENGTHEN_UNITY} UNITY_BUILD_BATCH_SIZE 10)
  else()
    add_library(sl_${name} INTERFACE)
    target_link_libraries(sl_${name} INTERFACE sl_flags ${ARGN})
  endif()
endfunction()

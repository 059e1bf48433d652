#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test: release build, checks of the sources, sanitizers, serial HDF5,
# the job script on a Slurm; where nvcc is, the CUDA side is compiled too. Tests of it run where there is a GPU
# (doc/performance.md).
# Ends with ctest's summary of the whole release suite.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/mpi_env.sh
bash tools/install_packages.sh --with-checks
model=$(bash tools/fetch_model.sh | tail -n 1)
export SELFLENGTHEN_TEST_MODEL="$model"
export OMP_NUM_THREADS=1  # two tests at a time
# Two programs that start at once fall over each other making and removing this folder (Open MPI 4.1).
mkdir -p "${TMPDIR:-/tmp}/ompi.$(uname -n | cut -d . -f 1).$(id -u)/kept"

echo "== checks of the sources"
bash tools/check_sources.sh

echo "== release build"
cmake --preset release
cmake --build --preset release

echo "== serial HDF5: the parts that differ"
cmake --preset serial-hdf5
cmake --build --preset serial-hdf5 --target selflengthen io_tests io_mpi
ctest --test-dir build/serial-hdf5 -R '^io' --output-on-failure -j 2

echo "== address and undefined-behaviour sanitizers"
cmake --preset asan
cmake --build --preset asan --target selflengthen text_tests io_tests rollout_tests kernels_tests
ASAN_OPTIONS=detect_leaks=0 ctest --test-dir build/asan -R '^(text|io|rollout|kernels)\.' --output-on-failure -j 2

echo "== thread sanitizer: threads beside the working one, parallel loops, the engine"
cmake --preset tsan
cmake --build --preset tsan --target selflengthen dist_tests io_tests kernels_tests rollout_tests train_tests train_mpi run_tests
OMP_NUM_THREADS=2 TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp" ctest --test-dir build/tsan --output-on-failure -j 2 \
  -R '^(dist|rollout)\.|^io\.(Checkpoint|Journal)|^kernels\..*/cpu|^train\.Trainer|^train_mpi\.ranks2|^run\.Stalled\.AThread' \
  -E 'Large|Long'

echo "== readers of files, fed with damaged ones"
bash tools/fuzz.sh 20

if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
  echo "== the CUDA side compiles and links"
  cmake --preset cuda -B build/cuda-check -DSELFLENGTHEN_UNITY=ON
  cmake --build build/cuda-check --target selflengthen
fi

echo "== the job script on a Slurm of two nodes"
bash tests/slurm/jobs.sh build/release/bin/selflengthen

echo "== all tests, release build"
ctest --test-dir build/release --output-on-failure -j 2

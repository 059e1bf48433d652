#!/usr/bin/env bash
# Feeds the readers of files with damaged ones (tests/fuzz, libFuzzer with the address and undefined-behaviour
# sanitizers): tools/fuzz.sh [SECONDS of each target, 60] [TARGET...], as many targets at a time as there are cores.
# Every target starts from tests/fuzz/corpus/TARGET; what it finds on the way is kept in build/fuzz/corpus. An input
# that a reader neither takes nor refuses by name, or that takes over 5 s or 1 GiB, is left in build/fuzz/findings,
# and the exit code is 1. `build/fuzz/bin/TARGET_fuzz FILE` runs one input again.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
cmake --preset fuzz >/dev/null
cmake --build --preset fuzz
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
  for source in tests/fuzz/*_fuzz.cpp; do targets+=("$(basename "$source" _fuzz.cpp)"); done
fi

# Files that the readers want, in memory where there is such a file system; what a crash leaves goes with the folder.
if [ -w /dev/shm ]; then SELFLENGTHEN_FUZZ_FOLDER=$(mktemp -d -p /dev/shm); else SELFLENGTHEN_FUZZ_FOLDER=$(mktemp -d); fi
export SELFLENGTHEN_FUZZ_FOLDER
trap 'rm -rf "$SELFLENGTHEN_FUZZ_FOLDER"' EXIT

fuzz() {
  local seconds=$1 target=$2 build=build/fuzz log=build/fuzz/$2.log dictionary=()
  mkdir -p "$build/corpus/$target" "$build/findings"
  # JSON's words and those of the format
  cat tests/fuzz/json.dict $(ls "tests/fuzz/$target.dict" 2>/dev/null || true) >"$build/$target.dict"
  # HDF5 and MPI keep what they allocate.
  if ASAN_OPTIONS=quarantine_size_mb=16:detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
    "$build/bin/${target}_fuzz" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 -max_len=8192 \
    -seed=1 -dict="$build/$target.dict" -artifact_prefix="$build/findings/$target-" -print_final_stats=1 \
    "$build/corpus/$target" "tests/fuzz/corpus/$target" >"$log" 2>&1; then
    awk -v target="$target" '/number_of_executed_units/ {n = $2} /average_exec_per_sec/ {s = $2} / cov: / {c = $4}
      END {printf "%-12s %9d inputs, %6d a second, coverage %d\n", target, n, s, c}' "$log"
  else
    tail -n 60 "$log"
    echo "fuzz: $target has a finding ($log)" >&2
    return 1
  fi
}
export -f fuzz
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I{} bash -c 'fuzz "$0" "$1"' "$seconds" {}

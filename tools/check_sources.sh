#!/usr/bin/env bash
# Checks of the sources that need no build: formatting, the direction of includes, and that each header compiles alone.
# With --tidy also clang-tidy, against build/release/compile_commands.json.
set -euo pipefail
cd "$(dirname "$0")/.."
failed=0

files=$(git ls-files '*.cpp' '*.hpp' '*.cu' '*.cuh')
if ! clang-format --dry-run -Werror $files; then
  echo "check_sources: run clang-format -i on the files above" >&2
  failed=1
fi

python3 tools/check_includes.py || failed=1

if [ "${1:-}" = "--tidy" ]; then
  sources=$(git ls-files 'src/*.cpp' 'kernels/*.cpp')
  echo "$sources" | xargs -P 2 -n 4 clang-tidy --quiet -p build/release --extra-arg=-Wno-unknown-warning-option 2>/dev/null || failed=1
fi
exit $failed

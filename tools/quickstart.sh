#!/usr/bin/env bash
# From a bare Debian 12 to a table of grown texts: installs packages, builds, fetches SmolLM2-135M-Instruct, and runs
# two macro-iterations of Self-Lengthen on two ranks. Run it again to continue a run that was interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/mpi_env.sh
out=${1:-runs/quickstart}

echo "== packages"
bash tools/install_packages.sh
echo "== build"
cmake --preset release -DSELFLENGTHEN_TESTS=OFF -DSELFLENGTHEN_UNITY=ON
cmake --build --preset release
echo "== model"
bash tools/fetch_model.sh
echo "== run: everything goes to $out"
mpirun -n 2 build/release/bin/selflengthen run --config input/quickstart.cfg --out "$out"

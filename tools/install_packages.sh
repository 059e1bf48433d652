#!/usr/bin/env bash
# Installs what the program builds with, from Debian's packages: nothing when all is there already.
set -euo pipefail
packages=(
  cmake ninja-build g++ git pkg-config python3 python3-pip ca-certificates
  libopenmpi-dev openmpi-bin libhdf5-openmpi-dev hdf5-tools
  nlohmann-json3-dev libfmt-dev libspdlog-dev
  libpcre2-dev libutf8proc-dev zlib1g-dev libopenblas-openmp-dev libgtest-dev libgmock-dev
)
if [ "${1:-}" = "--with-checks" ]; then
  packages+=(clang-format clang-tidy clang libclang-rt-14-dev libomp-14-dev libhdf5-dev slurmctld slurmd slurm-client munge iproute2 procps)
fi
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "installing: ${missing[*]}"
as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null

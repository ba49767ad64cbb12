#!/usr/bin/env bash
# Compiles the kernels, the splat rasteriser, the entropy coding and their tests for 64-bit Arm and runs them under qemu:
# once for the baseline (armv8-a) and once with the sdot instruction. Takes some minutes.
#
# On Debian or Ubuntu: apt-get install qemu-user-static g++-aarch64-linux-gnu
set -euo pipefail

cxx=${CXX_AARCH64:-aarch64-linux-gnu-g++}
qemu=${QEMU_AARCH64:-qemu-aarch64-static}
for tool in "$cxx" "$qemu"; do
    if ! command -v "$tool" >/dev/null; then
        echo "run_arm.sh: $tool is not installed (apt-get install qemu-user-static g++-aarch64-linux-gnu)" >&2
        exit 2
    fi
done

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

for arch in armv8-a armv8.2-a+dotprod; do
    echo "== $arch"
    # Static: qemu then needs no Arm libraries. The x86 files compile to nothing here.
    "$cxx" -std=c++20 -O2 -g -Wall -Wextra -Werror -static -march="$arch" \
        "$here"/../core/kernels*.cpp "$here"/test_kernels.cpp -o "$out/test_kernels"
    "$qemu" -cpu max "$out/test_kernels"
    "$cxx" -std=c++20 -O2 -g -Wall -Wextra -Werror -static -pthread -march="$arch" \
        "$here"/../core/kernels*.cpp "$here"/../core/splat_kernels*.cpp \
        "$here"/../core/splat_{backward,colour,project,renderer,sort,tiles}.cpp \
        "$here"/../core/thread_pool.cpp "$here"/test_splats.cpp -o "$out/test_splats"
    "$qemu" -cpu max "$out/test_splats"
    "$cxx" -std=c++20 -O2 -g -Wall -Wextra -Werror -static -march="$arch" \
        "$here"/../core/{channel_coding,entropy_decoder,entropy_encoder,position_coding,splat_group}.cpp \
        "$here"/test_entropy.cpp -o "$out/test_entropy"
    "$qemu" -cpu max "$out/test_entropy"
    "$cxx" -std=c++20 -O2 -g -Wall -Wextra -Werror -static -pthread -march="$arch" \
        "$here"/../core/{splat_training,thread_pool}.cpp "$here"/test_splat_training.cpp -o "$out/test_splat_training"
    "$qemu" -cpu max "$out/test_splat_training"
done

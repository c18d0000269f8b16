#!/usr/bin/env bash
# Builds the CPU library with its native tests and runs them: as they are, under sanitizers, and for
# aarch64 in an emulator.
# Usage: tests/native/run.sh [plain | address | thread | aarch64]...   (default: all of them)
# A compiler's warning fails too. CXX chooses the compiler, BUILD the folder (default build/native).
set -euo pipefail
cd "$(dirname "$0")/../.."

# A build keeps the compiler that it began with.
build=${BUILD:-build/native}/$(basename "${CXX:-c++}")

# One build and its run: a name, what runs the driver (nothing for itself), CMake's arguments.
try() {
  local folder="$build/$1" emulator=$2
  printf '== native tests: %s\n' "$1"
  cmake -S . -B "$folder" -DFASTDDPM_TESTS=ON "${@:3}" > "$folder.log" 2>&1 &&
    cmake --build "$folder" -j "$(nproc)" >> "$folder.log" 2>&1 || { cat "$folder.log"; exit 1; }
  if grep -A 3 'warning:' "$folder.log"; then exit 1; fi
  $emulator "$folder/tests/native/fastddpm_native_tests"
}

# AddressSanitizer's code takes the longest to compile, ThreadSanitizer's to run.
address=(-DCMAKE_BUILD_TYPE=None "-DCMAKE_CXX_FLAGS=-O0 -g1" -DFASTDDPM_SANITIZE=address,undefined)
thread=(-DCMAKE_BUILD_TYPE=None "-DCMAKE_CXX_FLAGS=-O1 -g1" -DFASTDDPM_SANITIZE=thread)

mkdir -p "$build"
for kind in ${*:-plain address thread aarch64}; do
  case $kind in
    plain) try plain "" ;;
    address) try address "" "${address[@]}" ;;
    thread) try thread "" "${thread[@]}" ;;
    aarch64)
      if ! command -v aarch64-linux-gnu-g++ > /dev/null || ! command -v qemu-aarch64 > /dev/null; then
        echo "== native tests: no aarch64: aarch64-linux-gnu-g++ and qemu-aarch64 are not both here"
        continue
      fi
      try aarch64 "qemu-aarch64 -L /usr/aarch64-linux-gnu" -DCMAKE_SYSTEM_NAME=Linux \
        -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++
      ;;
    *) echo "unknown: $kind (plain, address, thread or aarch64)" >&2; exit 2 ;;
  esac
done

#!/usr/bin/env bash
# Builds libwina for another processor, statically, and tests it under QEMU's user-mode emulation:
# the C tests, and that the program computes the same bits as here and writes the same tokens.
#
#   tools/test_emulated.sh ARCH [quick]     ARCH: aarch64 or riscv64
#
# "quick" runs of the C tests only those of the kernels, and generates no text. Needs
# ARCH-linux-gnu-gcc and qemu-ARCH-static (Debian: gcc-ARCH-linux-gnu, qemu-user-static); where they
# are not, it says so and succeeds, or fails if WINA_NEED_EMULATION=1.
set -euo pipefail
cd "$(dirname "$0")/.."
arch=$1 quick=${2:-}
cross=$arch-linux-gnu build=build-$arch qemu=qemu-$arch-static
command -v "$qemu" >/dev/null || qemu=qemu-$arch

for tool in "$cross-gcc" "$qemu"; do
    if ! command -v "$tool" >/dev/null; then
        echo "== $arch: SKIPPED, not tested: there is no $tool" \
            "(Debian: gcc-$cross, libc6-dev-${arch/aarch64/arm64}-cross, qemu-user-static)"
        [ "${WINA_NEED_EMULATION:-0}" != 1 ]
        exit
    fi
done

# One processor for each set of kernels. The last one has them all.
case $arch in
aarch64) cpus=(cortex-a72 cortex-a76 max) sets=(neon dotprod i8mm) ;;
riscv64) cpus=(rv64) sets=(c) ;;
*) echo "$0: unknown processor $arch" >&2 && exit 2 ;;
esac

# Options of a make above this one (sanitizers, say) are for this machine's build.
env -u MAKEFLAGS -u MAKEOVERRIDES -u CFLAGS make -s -j"$(nproc)" CROSS="$cross" BUILD="$build" \
    tests static

# Limits of time and of the process's own memory mean nothing here.
export WINA_EMULATED=1
if [ -n "$quick" ]; then
    tests=("$build/tests/test_kernels")
else
    tests=()
    for t in "$build"/tests/test_*; do
        [[ $t == *.d ]] || tests+=("$t")
    done
fi
for t in "${tests[@]}"; do
    echo "== $arch ${cpus[-1]}: ${t##*/}"
    "$qemu" -cpu "${cpus[-1]}" "$t"
done

model=${PYWINA_HOME:-$HOME/.cache/pywina}/models/smollm2-135m.gguf
if [ ! -f "$model" ]; then
    echo "== $arch: the program is not tested: there is no $model (make fetch)"
    exit
fi

here=${WINA_BIN:-build/bin/wina} there=$build/bin/wina-static

# program CPU OPTIONS: runs the program there.
program() {
    "$qemu" -cpu "$1" "$there" "${@:2}" 2>"$build/notes" || cat "$build/notes" >&2
}

# expect NAME WANT GOT
expect() {
    if [ "$2" != "$3" ] || [ -z "$2" ]; then
        printf '%s: there\n%s\nhere\n%s\n' "$1" "$3" "$2" >&2
        exit 1
    fi
    echo "== $1: as here"
}

# The bits of the logits after a prompt and after decoding.
hashes() {
    grep -o '"logits_hash":"[0-9a-f]*"'
}

for i in "${!cpus[@]}"; do
    name="$arch ${cpus[i]} (${sets[i]})"
    options=(bench -m "$model" -t 1 -p 3 -n 1 -r 1 --sparsity 0.5 --json)
    got=$(program "${cpus[i]}" "${options[@]}")
    if [[ $got != *"\"backend\":\"${sets[i]}\""* ]]; then
        echo "$name: other kernels were chosen: $got" >&2
        exit 1
    fi
    expect "$name: logits at sparsity 0.5" "$("$here" "${options[@]}" | hashes)" \
        "$(hashes <<<"$got")"
    [ -n "$quick" ] && continue
    options=(run -m "$model" -p "Once upon a time" -n 48 --temp 0)
    expect "$name: 48 tokens" "$("$here" "${options[@]}" 2>/dev/null)" \
        "$(program "${cpus[i]}" "${options[@]}")"
done

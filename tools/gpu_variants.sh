#!/bin/sh
# Times builds of the CUDA backend that differ in compiler flags, one after the other on one GPU.
#
#   tools/gpu_variants.sh NAME[=FLAGS] ...
#   TYPES="Q4_0 F16" SPARSITIES=0,0.5,0.65 tools/gpu_variants.sh new old=@build/old "few=-DX=1"
#
# DEPTH=8000 begins at that position. NAME=@DIR times the libwina_cuda.so in DIR. PROFILE=1 adds the table of stages.
set -u
cd "$(dirname "$0")/.." || exit 1
make -j"$(nproc)" cuda-tests CUDA_ARCHS=90 >/tmp/build.log 2>&1 || { tail -30 /tmp/build.log; exit 1; }
for v in "$@"; do
    name=${v%%=*} flags=
    case $v in *=*) flags=${v#*=} ;; esac
    case $flags in @*) continue ;; esac
    make -j4 cuda BUILD="build/variant-$name" CUDA_ARCHS=90 NVCC="${NVCC:-nvcc} $flags" \
        >"build/variant-$name.log" 2>&1 &
done
wait
for type in ${TYPES:-Q4_0}; do
    for v in "$@"; do
        name=${v%%=*} dir=build/variant-${v%%=*}/lib
        case $v in *=@*) dir=${v#*=@} ;; esac
        [ -f "$dir/libwina_cuda.so" ] || { tail -5 "build/variant-$name.log"; continue; }
        echo "-- $name $type"
        WINA_CUDA_LIBRARY=$dir/libwina_cuda.so build/tests/time_cuda "$type" \
            "${SPARSITIES:-0,0.5,0.65}" "${DEPTH:-0}"
        if [ -n "${PROFILE:-}" ]; then
            for s in $(echo "${SPARSITIES:-0,0.65}" | tr , ' '); do
                WINA_CUDA_PROFILE=1 WINA_CUDA_LIBRARY=$dir/libwina_cuda.so \
                    build/tests/time_cuda "$type" "$s"
            done
        fi
    done
done

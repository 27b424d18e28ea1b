#!/bin/sh
# Checks and times the CUDA backend on a machine with a GPU, in a few minutes.
#
#   tools/gpu_check.sh [check] [time] [two] [sanitize] [racecheck] [profile]   (default: check time)
#
# Builds what is missing (`make cuda-tests`); BUILD=dir uses programs that were built elsewhere.
set -u
BUILD=${BUILD:-build}
cd "$(dirname "$0")/.." || exit 1
[ -x "$BUILD/tests/check_cuda" ] && [ -f "$BUILD/lib/libwina_cuda.so" ] ||
    make -j"$(nproc)" cuda-tests CUDA_ARCHS="${CUDA_ARCHS:-90}" >&2 || exit 1
[ $# -gt 0 ] || set -- check time
failed=0
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit --format=csv,noheader

for step in "$@"; do
    echo "== $step"
    case $step in
    check)
        "$BUILD/tests/check_cuda" || failed=1
        ;;
    time)
        TIME_SAMPLED=1 "$BUILD/tests/time_cuda" "${TYPES:-F16,Q8_0,Q4_0}" \
            "${SPARSITIES:-0,0.5,0.65}" || failed=1
        WINA_CUBLAS=none "$BUILD/tests/time_cuda" Q4_0 0 || failed=1
        ;;
    sanitize)
        for tool in ${TOOLS:-memcheck initcheck synccheck}; do
            compute-sanitizer --tool $tool --error-exitcode 1 "$BUILD/tests/check_cuda" quick \
                >"/tmp/sanitize.$tool" 2>&1 || { failed=1; head -40 "/tmp/sanitize.$tool"; }
            echo "$tool: $(tail -1 "/tmp/sanitize.$tool")"
        done
        ;;
    racecheck) # every barrier of all blocks spins under it: two blocks, least models, RACE_JOBS
               # of them at a time, each within RACE_S seconds; RACES names others, RACE_SET=quick
        cases="small F32:small F16:small BF16:small Q8_0:small Q4_0:small Q4_1:small Q5_0:small Q5_1"
        cases="$cases:small Q4_K:small Q5_K:small Q6_K:small, equal logits"
        for kind in qwen3 gemma2 gemma3 olmo2 smollm3; do cases="$cases:small like $kind"; done
        rm -f /tmp/racecheck.*
        printf '%s\n' "${RACES:-$cases}" | tr : '\n' | WINA_CUDA_BLOCKS=2 WINA_CUBLAS=none \
            xargs -d '\n' -P "${RACE_JOBS:-6}" -I {} sh -c '
                start=$(date +%s)
                CHECK_ONLY=$1 timeout "$2" compute-sanitizer --tool racecheck --error-exitcode 1 \
                    "$3/tests/check_cuda" "$4" >"/tmp/racecheck.$1" 2>&1
                rc=$? n=$(grep -c "^  " "/tmp/racecheck.$1")
                [ $rc = 0 ] && [ "$n" = 0 ] && rc=99 # no such case
                case $rc in
                0) said="$n case(s), no hazard" ;;
                124) said="not finished" ;;
                *) said="failed ($rc): $(tail -3 "/tmp/racecheck.$1" | tr "\n" " ")" ;;
                esac
                echo "racecheck $1: $said, $(($(date +%s) - start)) s"
                [ $rc = 0 ]' race {} "${RACE_S:-150}" "$BUILD" "${RACE_SET:-small}" || failed=1
        ;;
    two) # layers over two GPUs: correct, then as fast as one but for the way between them
        WINA_CUDA_FREE_MB=401.5 CHECK_ONLY="chain, 3" "$BUILD/tests/check_cuda" || failed=1
        for mb in 1000000 9000; do
            WINA_CUDA_FREE_MB=$mb "$BUILD/tests/time_cuda" F16 0,0.5 || failed=1
        done
        for mb in 1000000 2700; do
            WINA_CUDA_FREE_MB=$mb "$BUILD/tests/time_cuda" Q4_0 0,0.5 || failed=1
        done
        ;;
    profile) # where a token's time goes
        for type in ${TYPES:-F16 Q4_0}; do
            for s in 0 0.5 0.65; do
                WINA_CUDA_PROFILE=1 "$BUILD/tests/time_cuda" "$type" "$s" || failed=1
            done
        done
        ;;
    *)
        echo "unknown step $step" >&2
        exit 2
        ;;
    esac
done
exit $failed

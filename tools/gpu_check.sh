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
    racecheck) # every barrier of all blocks spins under it: two blocks, tiny models, side by side
        cases="F32 1 x 1:F16 36 x 52:Q4_0 32 x 64:equal logits, vocabulary of 129"
        pids= n=0 old_ifs=$IFS IFS=:
        set -f
        for case in ${RACES:-$cases}; do
            n=$((n + 1))
            WINA_CUDA_BLOCKS=2 WINA_CUBLAS=none CHECK_ONLY=$case timeout "${RACE_S:-100}" \
                compute-sanitizer --tool racecheck --error-exitcode 1 "$BUILD/tests/check_cuda" quick \
                >"/tmp/racecheck.$n" 2>&1 &
            pids=$pids:$!
        done
        n=0
        for pid in ${pids#:}; do
            n=$((n + 1))
            wait "$pid"
            rc=$?
            [ $rc = 0 ] || failed=1
            [ $rc = 124 ] && echo "not finished within ${RACE_S:-100} s:"
            tail -6 "/tmp/racecheck.$n"
        done
        IFS=$old_ifs
        set +f
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

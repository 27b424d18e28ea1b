#!/bin/sh
# Everything that docs/method.md tabulates, for one model: calibrates it, transforms it, and evaluates
# all rules over the whole test text and the tasks. Hours of work on a few cores, minutes beside a
# GPU; resumable at any moment: results are kept in OUT and what is there is not measured again.
#
#   tools/eval_full.sh MODEL [OUT] [STAGE...]   MODEL: a known model's name or a GGUF file
#   stages: tune text tuned tasks generation thresholds transforms graph     default: all
#   LIMIT=500                   items of each task
#   FEW=128                     windows of the text for what is tabulated in passing; the defaults and
#                               the best calibration are scored on all of it
#   JOBS=1                      processes that share an evaluation
#   DEVICE=cpu                  cuda: torch on the GPU calibrates, and compares distributions
#   WINDOWS=8 SIZE=256          of the calibration text
#   PYWINA_DATA=../shared/data  the data
set -eu

model=$1
name=$(basename "$model" .gguf)
out=${2:-build/eval}
shift; [ $# -gt 0 ] && shift
stages=${*:-tune text tuned tasks generation thresholds transforms graph}
data=${PYWINA_DATA:-../shared/data}
limit=${LIMIT:-500} few=${FEW:-128} jobs=${JOBS:-1} device=${DEVICE:-cpu}
python=${PYTHON:-.venv/bin/python}
pywina="$python -m pywina"
valid=$data/wikitext2/wiki.valid.tokens
test=$data/wikitext2/wiki.test.raw
all=0.25,0.4,0.5,0.65 two=0.5,0.65
published=wina:budget=uniform,mask=projection,exponent=1
grouped=wina:budget=uniform,exponent=1
mkdir -p "$out"

calibrate() { # file, suffix of the result, options...
    source=$1 target=$out/$(basename "$1" .gguf)-$2.gguf
    shift 2
    [ -s "$target" ] || $pywina calibrate "$source" -f "$valid" -o "$target" --target $all \
        --windows "${WINDOWS:-8}" --size "${SIZE:-256}" --device "$device" "$@"
}

evaluate() { # file, name of the results, options...
    file=$1 results=$out/$2 parts=
    shift 2
    for i in $(seq "$jobs"); do
        parts="$parts $results.part$i.json"
        $pywina eval "$file" --data "$data" --device "$device" -t "${THREADS:-1}" "$@" \
            --json "$results.part$i.json" --shard "$i/$jobs" >/dev/null &
    done
    wait
    # shellcheck disable=SC2086
    $pywina eval "$file" --data "$data" --json "$results.json" --merge $parts "$@" >"$results.md"
}

for stage in $stages; do
    case $stage in
    tune) # budgets with l2 and with loss-weighted norms, TEAL's greedy ones, norms alone
        calibrate "$model" descent --norms loss --allocate descent --objective loss
        calibrate "$model" fitted --norms fitted --allocate descent --objective kl --thresholds
        calibrate "$model" descent-kl --norms loss --allocate descent --objective kl
        calibrate "$model" global-loss --norms loss
        calibrate "$model" uniform-loss --allocate uniform --norms loss
        calibrate "$model" greedy --allocate greedy --norms l2
        calibrate "$model" global-l2
        calibrate "$model" block-loss --allocate block --norms loss
        ;;
    text)
        evaluate "$model" "$name-text" --tasks wikitext2 --sparsity $all --method teal --method wina
        evaluate "$model" "$name-published" --tasks wikitext2 --sparsity $two \
            --method $published --method $grouped
        ;;
    tuned)
        for suffix in fitted descent descent-kl global-loss; do
            evaluate "$out/$name-$suffix.gguf" "$name-$suffix-text" --tasks wikitext2 \
                --sparsity $all --method wina
        done
        for suffix in block-loss global-l2 uniform-loss greedy; do
            evaluate "$out/$name-$suffix.gguf" "$name-$suffix-text" --tasks wikitext2 \
                --sparsity $two --method wina --limit "$few"
        done
        ;;
    tasks)
        tasks=hellaswag,piqa,arc_easy,winogrande
        evaluate "$model" "$name-tasks" --tasks $tasks --limit "$limit" --sparsity $all \
            --method teal --method wina --method $published
        evaluate "$out/$name-descent.gguf" "$name-descent-tasks" --tasks $tasks \
            --limit "$limit" --sparsity $all --method wina
        ;;
    generation) # greedy continuations of dense prompts, and answers in words
        evaluate "$model" "$name-generation" --tasks generation --limit 200 --sparsity $all \
            --method teal --method wina
        evaluate "$out/$name-descent.gguf" "$name-descent-generation" \
            --tasks generation --limit 200 --sparsity $all --method wina
        case $name in qwen*)
            evaluate "$model" "$name-gsm8k" --tasks gsm8k --limit "$limit" --sparsity $all \
                --method teal --method wina
            evaluate "$out/$name-descent.gguf" "$name-descent-gsm8k" --tasks gsm8k \
                --limit "$limit" --sparsity $all --method wina ;;
        esac
        ;;
    thresholds) # against exact numbers by the same rule; what is kept is in the results, too
        calibrate "$model" thresholds --norms loss --thresholds
        evaluate "$out/$name-thresholds.gguf" "$name-thresholds-text" --tasks wikitext2 \
            --sparsity $all --limit "$few" --method teal --method wina --method wina:select=threshold
        ;;
    transforms) # in the precision of their source as far as it is known (F16), then calibrated;
        # gemma's cannot be rotated
        case $name in gemma*) continue ;; esac
        for transform in global segments:4 segments:8 blocks paper; do
            target=$out/$name-$(echo "$transform" | tr -d :).gguf
            [ -s "$target" ] || $pywina convert "$model" "$target" --transform "$transform" -f "$valid"
        done
        for transform in segments8 segments4 global; do
            calibrate "$out/$name-$transform.gguf" tuned --norms loss --equal-bytes \
                --allocate descent --objective loss
        done
        ;;
    graph) # transformed models at equal bytes, by the float32 graph
        $python tools/eval_graph.py "$model" -f "$test" --sparsity $all --method teal,wina \
            --device "$device" --json "$out/$name-graph.json"
        $python tools/eval_graph.py "$model" -f "$test" --sparsity $all --device "$device" \
            --tuning "$out/$name-descent.json" --json "$out/$name-descent-graph.json"
        case $name in gemma*) continue ;; esac
        for transform in global segments4 segments8; do
            $python tools/eval_graph.py "$out/$name-$transform.gguf" -f "$test" --equal-bytes \
                --sparsity $all --tuning "$out/$name-$transform-tuned.json" --device "$device" \
                --json "$out/$name-$transform-tuned-graph.json"
        done
        for transform in global segments4 segments8 blocks paper; do
            for exponent in 0 1; do
                $python tools/eval_graph.py "$out/$name-$transform.gguf" -f "$test" --equal-bytes \
                    --sparsity $two --exponent $exponent --device "$device" --limit "$few" \
                    --json "$out/$name-$transform-graph$exponent.json"
            done
        done
        ;;
    *) echo "unknown stage: $stage" >&2; exit 2 ;;
    esac
done
echo "results: $out/$name-*.json"

#!/bin/sh
# Everything that docs/method.md tabulates, for one model: calibrates it, transforms it, and evaluates
# all rules over the whole test text and the tasks. Hours of work, resumable at any moment: results
# are kept in OUT and what is there is not measured again.
#
#   tools/eval_full.sh MODEL [OUT]        MODEL: smollm2-135m, qwen2.5-coder-0.5b or a GGUF file
#   LIMIT=500                             items of each task (the whole text is always scored)
#   PYWINA_DATA=../shared/data            the data
set -eu

model=$1
name=$(basename "$model" .gguf)
out=${2:-build/eval}
data=${PYWINA_DATA:-../shared/data}
limit=${LIMIT:-500}
pywina="${PYTHON:-.venv/bin/python} -m pywina"
valid=$data/wikitext2/wiki.valid.tokens
all=0,0.25,0.4,0.5,0.65
mkdir -p "$out"

# 1. Files: calibrated budgets with l2 and with loss-weighted norms, TEAL's greedy budgets, and the
#    transforms, in the precision of their source as far as it is known (F16).
calibrate() { # suffix, options...
    [ -s "$out/$name-$1.gguf" ] || {
        target=$out/$name-$1.gguf
        shift
        $pywina calibrate "$model" -f "$valid" -o "$target" --target 0.25,0.4,0.5,0.65 "$@"
    }
}
calibrate global-l2
calibrate global-loss --norms loss
calibrate greedy --allocate greedy --norms l2
calibrate uniform-loss --allocate uniform --norms loss
for transform in global segments:4 blocks paper; do
    target=$out/$name-$(echo "$transform" | tr -d :).gguf
    [ -s "$target" ] || $pywina convert "$model" "$target" --transform "$transform" -f "$valid"
done
target=$out/$name-global-tuned.gguf
[ -s "$target" ] || $pywina calibrate "$out/$name-global.gguf" -f "$valid" -o "$target" \
    --target 0.25,0.4,0.5,0.65 --norms loss

# 2. Perplexity and divergence over the whole text.
evaluate() { # file, name of the results, options...
    file=$1 results=$out/$2.json
    shift 2
    $pywina eval "$file" --data "$data" --json "$results" --sparsity $all "$@" >"${results%.json}.md"
}
published=wina:budget=uniform,mask=projection,exponent=1
grouped=wina:budget=uniform,exponent=1
evaluate "$model" "$name-text" --tasks wikitext2 --method teal --method wina \
    --method $published --method $grouped --method cats
for file in "$out/$name"-*.gguf; do
    evaluate "$file" "$(basename "$file" .gguf)-text" --tasks wikitext2 --method wina
done

# 3. Tasks and greedy continuations.
tasks=hellaswag,piqa,arc_easy,winogrande,generation
evaluate "$model" "$name-tasks" --tasks $tasks --limit "$limit" \
    --method teal --method wina --method $published
evaluate "$out/$name-global-loss.gguf" "$name-global-loss-tasks" --tasks $tasks --limit "$limit" \
    --method wina
case $name in qwen*) evaluate "$model" "$name-gsm8k" --tasks gsm8k --limit "$limit" ;; esac
echo "results: $out/$name-*.md"

#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU can say about this build, from a prebuilt binary: no Rust, no network, no
# CUDA toolkit; a driver and NVRTC are enough (PyTorch's wheels bring one).
#
# usage: ci/gpu.sh [OPTIONS] FOLDER [STEP...]
#
# Steps, in the order of their value, which is the order in which they run; all of them unless some are named:
#   devices      what there is, and what NVML says of it for three seconds (a trace that `run --nvml-trace` replays)
#   selftest     kernels of a known length, within 1 %
#   correctness  every kernel over cuda_correctness.toml, against the oracle
#   peers        cuda_peers.toml, with PyTorch beside the kernels where python3 has it
#   example      a kernel that is not built in, from its source (kernels/cuda/examples)
#   aa           two runs of the kernels of cuda_peers.toml, which must agree: whatever differs is noise
#   energy       energy a call and the memory's activity, of some cases
#   tune         which tiles the kernels should take: candidates of tune.toml, and those that seem faster once more
#   suites       the suites, in bf16
#   sanitizer    compute-sanitizer over small problems, where it is installed
#
# Options: --binary ATTNBENCH (target/release/attnbench)   --device DEVICE (cuda:0)      --include GLOB (cases)
#          --suites "A B" (of the step suites)             --suite-folder FOLDER (suites)
#          --tune-kernels "A B" (of the step tune; all)    --tiles GLOB (of the step tune: these candidates)
#          --seconds N (540: all steps together, and none takes more than two thirds of what is left to those after it)
#          --pack (for machines that give few files back: FOLDER gets summary.txt and results.tar.gz, renewed after each step)
#
# FOLDER gets a log of each step, the records, and summary.txt. A step that fails or runs out of time does not stop the
# others, and its record keeps what was measured. Exits with 1 where a step failed or was cut short, with 2 for wrong
# arguments. It changes no setting of the GPU.
set -uo pipefail

STEPS="devices selftest correctness peers example aa energy tune suites sanitizer"
# Seconds that are kept for the end: a run that is told to stop finishes its case.
MARGIN=15

usage() {
    sed -n '/^# usage/,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
    exit 2
}

binary=${ATTNBENCH:-}
device=cuda:0
seconds=540
suites="ci quickstart decode prefill head_sharing sparse linear long_context"
suite_folder=suites
include=()
tune_kernels="flash3 flash split_kv paged mla block_sparse linear linformer"
tiles=()
is_packed=
while [ $# -gt 0 ]; do
    case "$1" in
    --pack) is_packed=yes && shift && continue ;;
    --binary | --device | --seconds | --suites | --suite-folder | --include | --tune-kernels | --tiles) [ $# -ge 2 ] || usage ;;
    -*) usage ;;
    *) break ;;
    esac
    case "$1" in
    --binary) binary=$(realpath -m "$2") ;;
    --device) device=$2 ;;
    --seconds) seconds=$2 ;;
    --suites) suites=$2 ;;
    --suite-folder) suite_folder=$(realpath -m "$2") ;;
    --include) include+=(--include "$2") ;;
    --tune-kernels) tune_kernels=$2 ;;
    --tiles) tiles+=(--tiles "$2") ;;
    esac
    shift 2
done
if [ $# -eq 0 ] || ! [[ $seconds =~ ^[0-9]+$ ]]; then usage; fi
folder=$(realpath -m "$1")
shift
wanted=" ${*:-$STEPS} "
for name in $wanted; do
    [[ " $STEPS " == *" $name "* ]] || { echo "there is no step \`$name\`; there are $STEPS" >&2 && exit 2; }
done
cd "$(dirname "$0")/.." || exit 2
binary=${binary:-target/release/attnbench}
"$binary" --version >/dev/null || { echo "--binary $binary: this is no attnbench that runs here" >&2 && exit 2; }

mkdir -p "$folder" || exit 2
out=$folder
if [ -n "$is_packed" ]; then
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
fi
summary=$folder/summary.txt
: >"$summary"
started=$SECONDS
shortfalls=0
steps_left=0
for name in $STEPS; do [[ $wanted != *" $name "* ]] || steps_left=$((steps_left + 1)); done

say() { printf '%s\n' "$*" | tee -a "$summary"; }
quote() { sed 's/^/     /' | tee -a "$summary"; }

# Seconds that the next command may take: two thirds of what is left, or all of it where nothing comes after.
allowance() {
    local left=$((seconds - MARGIN - (SECONDS - started)))
    [ "$steps_left" -le 1 ] || left=$((left * 2 / 3))
    echo $((left > 0 ? left : 0))
}

# attempt NAME COMMAND...: its output goes to NAME.log; the summary says what became of it. A command that runs out of time
# is interrupted, as by Ctrl-C, so that it can save what it has.
attempt() {
    local name=$1 code may start=$SECONDS
    shift
    may=$(allowance)
    if [ "$may" -lt 2 ]; then
        say "CUT  $name: not begun, $seconds s are over"
        shortfalls=$((shortfalls + 1))
        return 1
    fi
    # In the foreground, or it would send the signal twice, and the second one ends a run at once.
    timeout --foreground --signal=INT --kill-after="$MARGIN" "$may" "$@" >"$out/$name.log" 2>&1 </dev/null
    code=$?
    case $code in
    0) say "ok   $name ($((SECONDS - start)) s)" ;;
    124 | 137) say "CUT  $name after $((SECONDS - start)) s: what it had measured is kept" ;;
    *)
        say "FAIL $name: exit code $code ($((SECONDS - start)) s)"
        tail -n 12 "$out/$name.log" | quote
        ;;
    esac
    [ $code -eq 0 ] || shortfalls=$((shortfalls + 1))
    return $code
}

# leaves_nothing OPTIONS of `run`...: whether the selection leaves no case, which is no fault of the suite.
leaves_nothing() {
    local said
    said=$("$binary" run "$@" --dry-run 2>&1 >/dev/null)
    [[ $said == *"leave none of its"* ]]
}

# measure NAME SUITE [OPTIONS]: a record, its journal where it is not whole, and two lines about it.
measure() {
    local name=$1 suite=$suite_folder/$2.toml
    shift 2
    rm -f "$out/$name".{json,json.journal,log}
    if leaves_nothing "$suite" --device "$device" "$@" "${include[@]}"; then
        say "none $name: the selection leaves no case of it"
        return 1
    fi
    attempt "$name" "$binary" run "$suite" --device "$device" --out "$out/$name.json" "$@" "${include[@]}"
    local code=$?
    grep -hE 'cases measured|overhead of the harness' "$out/$name.log" 2>/dev/null | quote
    return $code
}

step_devices() {
    attempt devices "$binary" devices && grep -A3 -E '^(cuda|nvml)' "$out/devices.log" | quote
    if grep -q '^nvml: no' "$out/devices.log"; then
        say "none trace: no NVML"
    else
        attempt trace "$binary" devices --record-trace "$out/nvml-trace.jsonl" --seconds 3
    fi
}

step_selftest() {
    attempt selftest "$binary" devices --self-test && quote <"$out/selftest.log"
}

step_correctness() {
    measure correctness cuda_correctness
}

step_peers() {
    if ! python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        say "none torch: python3 has no PyTorch that sees a GPU, so the kernels run alone"
        measure peers cuda_peers --exclude 'torch/*'
        return
    fi
    measure peers cuda_peers --provider torch='python3 kernels/adapters/torch_worker.py --device cuda'
    if [ -s "$out/peers.json" ] && attempt ratios "$binary" ratios "$out/peers.json" --of cuda; then
        quote <"$out/ratios.log"
    fi
}

step_example() {
    local example=kernels/cuda/examples/row_attention
    local arguments=(--kernel-source "$example.cu" --kernel-manifest "$example.toml" --device "$device" --rounds 1)
    rm -f "$out"/example.{json,json.journal}
    if leaves_nothing "${arguments[@]}" "${include[@]}"; then
        say "none example: the selection leaves no case of it"
    else
        attempt example "$binary" run "${arguments[@]}" --out "$out/example.json" "${include[@]}"
    fi
}

step_aa() {
    local side
    for side in a b; do measure "aa-$side" cuda_peers --exclude 'torch/*' --rounds 5; done
    [ -s "$out/aa-a.json" ] && [ -s "$out/aa-b.json" ] || return
    attempt aa "$binary" compare "$out/aa-a.json" "$out/aa-b.json"
    grep -E '^(drift|[0-9]+ (regressed|improved|unchanged|inconclusive|not_comparable))' "$out/aa.log" | quote
    python3 - "$out"/aa-[ab].json 2>&1 <<'PYTHON' | quote
import json, statistics, sys
# Spread of the medians of rounds, (largest - smallest) / median, a case; then over cases.
spreads = []
for path in sys.argv[1:]:
    for case in json.load(open(path))["cases"]:
        medians = [statistics.median(r["device_ns"]) for r in case["rounds"] if r["device_ns"]]
        if len(medians) > 1:
            spreads.append((max(medians) - min(medians)) / statistics.median(medians))
if spreads:
    print(f"A/A spread of round medians: median {100 * statistics.median(spreads):.2f} %, worst {100 * max(spreads):.2f} %")
PYTHON
}

step_energy() {
    measure energy cuda_peers --exclude 'torch/*' --exclude '*/q[12]*' --rounds 1 --energy
}

# A run a kernel: a step that is cut has chosen for the kernels before. The records of the rounds lie beside the choices.
step_tune() {
    local kernel cases suite=$suite_folder/tune.toml
    cases=$("$binary" run "$suite" --device "$device" --dry-run "${include[@]}" 2>&1)
    for kernel in $tune_kernels; do
        rm -f "$out/tune-$kernel".{toml,log} "$out/tune-$kernel".{screen,confirmation}.json*
        if [[ $cases != *"cuda/$kernel/"* ]]; then
            say "none tune-$kernel: the selection leaves no case of it"
            continue
        fi
        attempt "tune-$kernel" "$binary" tune "$suite" --device "$device" --kernel "$kernel" --out "$out/tune-$kernel.toml" \
            "${tiles[@]}" "${include[@]}"
        grep -hE '^ +(take another|keep):' "$out/tune-$kernel.log" 2>/dev/null | quote
    done
}

step_suites() {
    local suite
    # GPU kernels compute in bf16 and f16; the suites that are made for every device are in f32 for the most part.
    for suite in $suites; do measure "$suite" "$suite" --rounds 3 --dtype bf16; done
}

step_sanitizer() {
    local tool found command=compute-sanitizer suite=$suite_folder/cuda_correctness.toml
    if ! command -v $command >/dev/null; then
        say "none sanitizer: compute-sanitizer is not in PATH"
        return
    fi
    # Its processes are slow: the narrowest problems of each kernel are enough for an address or a race.
    local small=(--include '*/h4:2/q515/*d64' --include '*/k333/*' --include '*q200/*' --include '*/q300/*' --rounds 1)
    [ ${#include[@]} -eq 0 ] || small=(--rounds 1 "${include[@]}")
    if leaves_nothing "$suite" --device "$device" "${small[@]}"; then
        say "none sanitizer: the selection leaves no case of it"
        return
    fi
    for tool in memcheck racecheck; do
        rm -f "$out/$tool".{json,json.journal}
        attempt $tool $command --tool $tool --target-processes all --error-exitcode 9 \
            "$binary" run "$suite" --device "$device" "${small[@]}" --out "$out/$tool.json"
        # The coordinator's exit code is not that of the workers, which are what is watched.
        found=$(grep -E 'ERROR SUMMARY: [1-9]|RACECHECK SUMMARY: [1-9]' "$out/$tool.log" 2>/dev/null)
        if [ -n "$found" ]; then
            say "FAIL $tool: its log has what it found"
            quote <<<"$found"
            shortfalls=$((shortfalls + 1))
        fi
    done
}

pack() {
    [ -n "$is_packed" ] || return 0
    cp "$summary" "$out/"
    tar -czf "$folder/.results.tmp" -C "$out" . && mv "$folder/.results.tmp" "$folder/results.tar.gz"
}

# NVRTC comes with toolkits and with frameworks: the first folder that has it.
if [ -z "${ATTNBENCH_NVRTC:-}" ]; then
    site=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null || true)
    for candidate in .nvrtc/*/nvidia/*/lib "$site"/nvidia/cu*/lib "$site"/nvidia/cuda_nvrtc/lib /usr/local/cuda/lib64; do
        if compgen -G "$candidate/libnvrtc.so*" >/dev/null; then
            export ATTNBENCH_NVRTC=$candidate
            break
        fi
    done
fi

say "attnbench on $device, $(date -u +%Y-%m-%dT%H:%MZ), NVRTC ${ATTNBENCH_NVRTC:-of the system}"
for name in $STEPS; do
    if [[ $wanted == *" $name "* ]]; then
        "step_$name"
        steps_left=$((steps_left - 1))
        pack
    fi
done
if [ $shortfalls -eq 0 ]; then
    say "all steps passed, $((SECONDS - started)) s"
else
    say "$shortfalls commands FAILED or were CUT short, $((SECONDS - started)) s"
fi
pack
[ $shortfalls -eq 0 ]

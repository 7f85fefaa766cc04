#!/usr/bin/env bash
# Everything that a machine with an NVIDIA GPU can say about this build, from a prebuilt binary: no Rust, no network, no
# CUDA toolkit; a driver and NVRTC are enough (PyTorch's wheels bring one).
#
# usage: ci/gpu.sh [--out FOLDER] [--binary ATTNBENCH] [--device DEVICE] [--seconds N] [--suites "A B"] [--include GLOB]
#
# In order: what there is; the self-test of timing (kernels of a known length within 1 %); correctness of every kernel over
# suites/cuda_correctness.toml; two runs of one suite that must agree (A/A); compute-sanitizer over a small suite, where it
# is installed; the suites, and PyTorch beside them where python3 has it. Every step that begins after N seconds is skipped
# and says so. FOLDER (results/gpu) gets a record and a log of each step and summary.txt, which is also printed last.
# Exits with 1 where a step failed. It changes no setting of the GPU.
set -uo pipefail
cd "$(dirname "$0")/.."

out=results/gpu
binary=${ATTNBENCH:-target/release/attnbench}
device=cuda:0
seconds=1500
suites="quickstart prefill decode head_sharing sparse linear long_context"
include=()
while [ $# -gt 0 ]; do
    case "$1" in
    --out) out=$2 ;;
    --binary) binary=$2 ;;
    --device) device=$2 ;;
    --seconds) seconds=$2 ;;
    --suites) suites=$2 ;;
    --include) include=(--include "$2") ;;
    *) sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//' >&2 && exit 2 ;;
    esac
    shift 2 || exit 2
done
mkdir -p "$out"
summary=$out/summary.txt
: >"$summary"
started=$SECONDS
failed=0

say() { printf '%s\n' "$*" | tee -a "$summary"; }

# step NAME COMMAND...: runs it unless time is up; its output goes to NAME.log and its end to the summary.
step() {
    local name=$1 code start=$SECONDS
    shift
    if [ $((SECONDS - started)) -ge "$seconds" ]; then
        say "SKIP $name: $seconds s are over"
        return 1
    fi
    timeout --kill-after=10 $((seconds - (SECONDS - started) + 30)) "$@" >"$out/$name.log" 2>&1
    code=$?
    if [ $code -eq 0 ]; then
        say "ok   $name ($((SECONDS - start)) s)"
    else
        say "FAIL $name: exit code $code ($((SECONDS - start)) s)"
        tail -n 12 "$out/$name.log" | sed 's/^/     /' | tee -a "$summary"
        failed=1
    fi
    return $code
}

measure() { # measure NAME SUITE [OPTIONS]: a record and its table
    local name=$1 suite=$2
    shift 2
    rm -f "$out/$name".{json,json.journal,log}
    step "$name" "$binary" run "$suite" --device "$device" --out "$out/$name.json" "$@"
    local code=$?
    grep -m1 'cases measured' "$out/$name.log" 2>/dev/null | sed "s/^/     $name: /" | tee -a "$summary"
    return $code
}

# NVRTC comes with toolkits and with frameworks: the first folder that has it.
if [ -z "${ATTNBENCH_NVRTC:-}" ]; then
    site=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null || true)
    for folder in .nvrtc/*/nvidia/*/lib "$site"/nvidia/cu*/lib "$site"/nvidia/cuda_nvrtc/lib /usr/local/cuda/lib64; do
        if compgen -G "$folder/libnvrtc.so*" >/dev/null; then
            export ATTNBENCH_NVRTC=$folder
            break
        fi
    done
fi

say "attnbench on $device, $(date -u +%Y-%m-%dT%H:%MZ), NVRTC ${ATTNBENCH_NVRTC:-of the system}"
step devices "$binary" devices && grep -A3 '^cuda' "$out/devices.log" | tee -a "$summary"
step self-test "$binary" devices --self-test && sed 's/^/     /' "$out/self-test.log" | tee -a "$summary"

measure correctness suites/cuda_correctness.toml "${include[@]}"

# A/A: the same build twice. Whatever differs is noise.
for side in a b; do measure "aa-$side" suites/cuda_peers.toml --include 'cuda/*' --rounds 5; done
if [ -s "$out/aa-a.json" ] && [ -s "$out/aa-b.json" ]; then
    step aa "$binary" compare "$out/aa-a.json" "$out/aa-b.json"
    command -v python3 >/dev/null &&
    python3 - "$out"/aa-[ab].json <<'PYTHON' | tee -a "$summary"
import json, statistics, sys
# Spread of the medians of rounds, (largest - smallest) / median, a case; then over cases.
spreads = []
for path in sys.argv[1:]:
    for case in json.load(open(path))["cases"]:
        medians = [statistics.median(r["device_ns"]) for r in case["rounds"] if r["device_ns"]]
        if len(medians) > 1:
            spreads.append((max(medians) - min(medians)) / statistics.median(medians))
if spreads:
    print(f"     A/A spread of round medians: median {100 * statistics.median(spreads):.2f} %, worst {100 * max(spreads):.2f} %")
PYTHON
fi

if command -v compute-sanitizer >/dev/null; then
    # Its processes are slow: the narrowest problems of each kernel are enough for an address or a race.
    small=(--include '*/h4:2/q515/*d64' --include '*/k333/*' --include '*q200/*' --include '*/q300/*' --rounds 1)
    for tool in memcheck racecheck; do
        rm -f "$out/$tool".{json,json.journal,log}
        step "$tool" compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 9 \
            "$binary" run suites/cuda_correctness.toml --device "$device" "${small[@]}" --out "$out/$tool.json"
    done
else
    say "SKIP compute-sanitizer: not installed"
fi

if python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
    measure peers suites/cuda_peers.toml --provider torch='python3 kernels/adapters/torch_worker.py --device cuda'
    [ -s "$out/peers.json" ] && step ratios "$binary" ratios "$out/peers.json" --of cuda &&
        sed 's/^/     /' "$out/ratios.log" | tee -a "$summary"
else
    say "SKIP peers: python3 has no PyTorch that sees the GPU"
fi
for suite in $suites; do
    measure "$suite" "suites/$suite.toml" --rounds 3 "${include[@]}"
done

say "$([ $failed -eq 0 ] && echo "all steps passed" || echo "some steps FAILED"), $((SECONDS - started)) s"
exit $failed

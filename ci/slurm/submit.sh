#!/usr/bin/env bash
# usage: ci/slurm/submit.sh SHARDS SUITE FOLDER [RUN OPTIONS...]
#
# Submits an array with a task a shard and a job that joins them, and prints the number of the latter. Options of sbatch, as a
# partition or GPUs, are in SBATCH_OPTIONS: SBATCH_OPTIONS='--partition=h200 --gpus-per-task=1' ci/slurm/submit.sh 4 prefill ...
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
shards=$1
folder=$3
shift
read -r -a options <<<"${SBATCH_OPTIONS:-}"
array=$(sbatch --parsable --array="1-$shards" "${options[@]}" "$here/run.sbatch" "$@")
echo "array $array" >&2
sbatch --parsable --dependency="afterany:${array%%;*}" "${options[@]}" "$here/merge.sbatch" "$folder"

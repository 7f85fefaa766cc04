#!/usr/bin/env bash
# Starts a Slurm of one node on this machine and has it run a suite in three shards, lose one of them, and join them again.
# Needs root (it installs Debian's slurm-wlm and munge where they are missing); where that is not possible, it says so and
# passes. usage: ci/slurm/test.sh [ATTNBENCH]
set -euo pipefail
cd "$(dirname "$0")/../.."
ATTNBENCH=$(realpath "${1:-target/release/attnbench}")
export ATTNBENCH

skip() { printf '\nSKIPPED: Slurm is not tested: %s\n\n' "$*" >&2; exit 0; }
fail() { printf 'FAILED: %s\n' "$*" >&2; tail -n 40 "$folder"/*.log "$folder"/*/*.log >&2 || true; exit 1; }

[ "$(id -u)" = 0 ] || skip "its daemons need root"
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
    command -v apt-get >/dev/null || skip "there is no apt-get to install it"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends slurm-wlm munge; } >&2 ||
        skip "Debian's slurm-wlm cannot be installed"
fi

folder=$(mktemp -d)
chmod 755 "$folder"
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$folder"
}
trap cleanup EXIT

# A key and a socket of its own: a munge that serves the machine is left alone.
install -d -o munge -g munge -m 700 "$folder/munge"
install -d -o munge -g munge -m 755 "$folder/socket"
(umask 077 && dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none)
chown munge:munge "$folder/munge/key"
chmod 711 "$folder"
munge_socket=$folder/socket/munge.socket
setpriv --reuid munge --regid munge --clear-groups munged --foreground --force --socket "$munge_socket" \
    --key-file "$folder/munge/key" --pid-file "$folder/munge/pid" --log-file "$folder/munge/log" \
    --seed-file "$folder/munge/seed" >"$folder/munged.log" 2>&1 &
pids+=($!)

host=$(hostname -s)
port=$((20000 + RANDOM % 20000))
mkdir -p "$folder/state" "$folder/spool"
cat >"$folder/slurm.conf" <<CONF
ClusterName=attnbench
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
AuthInfo=socket=$munge_socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SchedulerParameters=sched_interval=2,batch_sched_delay=0
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=10 State=UP
CONF
export SLURM_CONF=$folder/slurm.conf

# wait_for SECONDS COMMAND...
wait_for() {
    local left=$1
    shift
    until "$@" >/dev/null 2>&1; do
        left=$((left - 1))
        [ "$left" -gt 0 ] || return 1
        sleep 1
    done
}
wait_for 20 test -S "$munge_socket" || skip "munged does not start: $(tail -n 1 "$folder/munged.log")"
slurmctld -D -f "$SLURM_CONF" >"$folder/slurmctld.out" 2>&1 &
pids+=($!)
slurmd -D -f "$SLURM_CONF" >"$folder/slurmd.out" 2>&1 &
pids+=($!)
idle() { [ "$(sinfo --noheader --format=%T)" = idle ]; }
wait_for 60 idle || skip "its daemons do not start here: $(tail -n 1 "$folder/slurmctld.log" "$folder/slurmd.log" | tr '\n' ' ')"

ended() { [ -z "$(squeue --noheader --me)" ]; }
submit() { (cd "$folder" && "$OLDPWD/ci/slurm/submit.sh" "$@"); }
suite=$PWD/suites/quickstart.toml
submit 3 "$suite" "$folder/run" --rounds 1 >"$folder/job"
wait_for 300 ended || fail "the jobs did not end"
merged=$folder/run/record.json
[ -s "$merged" ] || fail "there is no merged record"

planned=$("$ATTNBENCH" run "$suite" --dry-run --json | python3 -c 'import json, sys; print(*(case["case_id"] for case in json.load(sys.stdin)), sep="\n")')
check() { python3 - "$merged" "$1" "$planned" <<'PYTHON'
import json, sys
record, complete, planned = json.load(open(sys.argv[1])), sys.argv[2] == "complete", sys.argv[3].split("\n")
assert [case["case_id"] for case in record["cases"]] == planned, "the merged record has the cases of one run"
assert record["run"]["complete"] == complete, record["run"]
missing = [case for case in record["cases"] if "missing" in (case["reason"] or "")]
assert bool(missing) != complete, missing
print(f"{len(planned)} cases, {len(missing)} missing")
PYTHON
}
check complete || fail "the merged record is not that of one run"

# A shard that is lost leaves the others usable, and the same line again measures it and nothing else.
rm "$folder/run/2.json" "$merged"
before=$(stat -c %Y "$folder/run/1.json")
if "$ATTNBENCH" merge "$folder"/run/[0-9]*.json --out "$merged" >"$folder/partial.log" 2>&1; then
    fail "a merge without a shard must not pass"
fi
grep -q 'shard 2/3 is missing' "$folder/partial.log" || fail "the merge does not say what is missing"
check partial || fail "the partial record is not usable"
submit 3 "$suite" "$folder/run" --rounds 1 >"$folder/job"
wait_for 300 ended || fail "the jobs did not end"
check complete || fail "the record is not whole again"
[ "$(stat -c %Y "$folder/run/1.json")" = "$before" ] || fail "a shard that was there was measured again"
echo "Slurm: an array of three shards, one lost and measured again, joined into one record"

#!/usr/bin/env bash
# Runs a command with a PostgreSQL server of its own on loopback, whose URL is in ATTNBENCH_TEST_POSTGRES, and stops the
# server afterwards:
#
#   ci/postgres.sh cargo test --release -p attnbench --test history
#
# Installs Debian's `postgresql` where there is no server; where that fails, it says so and runs the command without one.
set -euo pipefail

skip() { printf '\nSKIPPED: PostgreSQL is not tested: %s\n\n' "$*" >&2; exec "${command[@]}"; }
command=("$@")
[ "${#command[@]}" -gt 0 ] || { echo "usage: ci/postgres.sh COMMAND..." >&2; exit 2; }

binaries() { ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1; }
bin=$(binaries)
if [ ! -x "$bin/initdb" ]; then
    command -v apt-get >/dev/null || skip "there is no server and no apt-get to install one"
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends postgresql; } >&2 ||
        skip "Debian's postgresql cannot be installed"
    bin=$(binaries)
fi

folder=$(mktemp -d)
port=$((20000 + RANDOM % 20000))
# The server refuses to run as root.
as=()
if [ "$(id -u)" = 0 ]; then
    chown postgres "$folder"
    as=(setpriv --reuid postgres --regid postgres --clear-groups)
fi
cleanup() {
    "${as[@]}" "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1 || true
    rm -rf "$folder"
}
trap cleanup EXIT
(
    cd "$folder"
    "${as[@]}" "$bin/initdb" -D "$folder/data" -U attnbench -A trust >"$folder/initdb.log" 2>&1 &&
        "${as[@]}" "$bin/pg_ctl" -D "$folder/data" -w -l "$folder/server.log" \
            -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories=$folder" start >"$folder/start.log" 2>&1
) || {
    cat "$folder"/*.log >&2
    echo "error: the PostgreSQL server did not start" >&2
    exit 1
}
ATTNBENCH_TEST_POSTGRES="postgresql://attnbench@127.0.0.1:$port/postgres" "${command[@]}"

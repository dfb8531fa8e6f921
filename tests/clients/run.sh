#!/usr/bin/env bash
# Runs every client against a running server: run.sh BASE_URL BASE_ARM URIAL_ARM
#
# BASE_URL is without `/v1`. Each client gets its own environment, with the version
# that its script names, in $CLIENTS_DIR (or the user's cache folder). Clients that
# cannot be run here are listed at the end, and count as failures.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ $# != 3 ]]; then
    echo "usage: $0 BASE_URL BASE_ARM URIAL_ARM" >&2
    exit 2
fi
folder=${CLIENTS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/incant/clients}
mkdir -p "$folder"
failed=()

for script in "$here"/*_client.py; do
    name=$(basename "$script" .py)
    package=$(sed -n 's/^# dependencies = \["\(.*\)"\]$/\1/p' "$script")
    environment=$folder/$package
    if [[ ! -e "$environment/complete" ]]; then
        python3 -m venv --clear "$environment" &&
            "$environment/bin/pip" install --quiet --disable-pip-version-check "$package" &&
            touch "$environment/complete"
    fi
    "$environment/bin/python" "$script" "$@" || failed+=("$name")
done

if command -v npm >/dev/null; then
    cp "$here"/openai_node/* "$folder" &&
        (cd "$folder" && npm install --silent --no-package-lock && node client.js "$@") ||
        failed+=(openai_node)
else
    failed+=('openai_node: there is no npm')
fi

if [[ ${#failed[@]} != 0 ]]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi

#!/usr/bin/env bash
# Install the missing ones of the named Debian packages. Needs root only if some are missing.
set -euo pipefail
missing=()
for package in "$@"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0
sudo=()
((EUID == 0)) || sudo=(sudo)
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${sudo[@]}" apt-get update --quiet=2
# RUNLEVEL=1 keeps the services of these packages from starting: the tests start their own.
"${sudo[@]}" env RUNLEVEL=1 apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}" >/dev/null

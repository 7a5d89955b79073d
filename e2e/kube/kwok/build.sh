#!/usr/bin/env bash
# build.sh: kwok into the cache, a program that plays any number of kubelets; prints where it is. Apart from
# the other programs, since only the bench with many clusters wants it: about 3 min cold on 2 cores.
set -euo pipefail
. "$(dirname "$0")/../env.sh"
folder=$HERE/kwok
program=$E2E_CACHE/kwok-$(cat "$folder"/go.{mod,sum} "$folder/build.sh" | sha256sum | cut -c1-12)
echo "$program"
[ ! -x "$program" ] || exit 0
exec 9>"$E2E_CACHE/kube.lock"; flock 9     # another checkout may build the same, or the other programs
[ ! -x "$program" ] || exit 0
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOTOOLCHAIN=local
[ -z "${E2E_GOCACHE:-}" ] || export GOCACHE=$E2E_GOCACHE
echo "[build $(date +%T)] kwok" >&2
cd "$folder"
go build -trimpath -gcflags all=-dwarf=false -ldflags "-s -w" -o "$program.draft" sigs.k8s.io/kwok/cmd/kwok
mv "$program.draft" "$program"

#!/bin/sh
# An operator's CRD, RBAC and admission policy, tested against a real API server in seconds: no kubelet is needed for these.
# Usage: run.sh, with gvisor-k3s on PATH; the cluster's options are in Pulumi.ex-rbac.yaml beside this.
set -eu
cd "$(dirname "$0")"
cluster=ex-rbac
trap 'gvisor-k3s destroy $cluster' EXIT
k() { gvisor-k3s kubectl -c $cluster "$@"; }
operator="--as=system:serviceaccount:backups:operator --namespace=backups"
backup() { printf 'apiVersion: example.test/v1\nkind: Backup\nmetadata: { name: nightly, namespace: backups }\nspec: { schedule: "%s", keep: %s }\n' "$1" "$2"; }
refused() { # MESSAGE COMMAND...
	message=$1; shift
	if output=$("$@" 2>&1); then echo "was not refused: $*"; exit 1; fi
	case $output in *"$message"*) echo "refused, as it should be: $message" ;; *) echo "$output"; exit 1 ;; esac
}

gvisor-k3s up $cluster
k apply --server-side -f rbac.yaml
k wait --for=condition=Established crd/backups.example.test --timeout=30s

backup "0 3 * * *" 14 | k apply -f -
# shellcheck disable=SC2086 # two options
{
	test "$(k get backup nightly $operator -o 'jsonpath={.spec.keep}')" = 14
	k patch backup nightly $operator --subresource=status --type=merge -p '{"status":{"phase":"Done"}}'
	refused 'cannot list resource "secrets"' k get secrets $operator
	refused 'cannot delete resource "backups"' k delete backup nightly $operator
}
backup "0 3 * * *" 0 >/tmp/ex-rbac.$$; refused 'should be greater than or equal to 1' k apply -f /tmp/ex-rbac.$$
# A policy acts a moment after it is made; the API server is asked until it does.
backup "0 3 * * *" 99 >/tmp/ex-rbac.$$
tries=0
while k apply --dry-run=server -f /tmp/ex-rbac.$$ >/dev/null 2>&1; do tries=$((tries + 1)); test $tries -lt 100; done
refused 'at most 30 backups are kept' k apply -f /tmp/ex-rbac.$$
rm /tmp/ex-rbac.$$
echo "the operator may do what it should, and nothing more"

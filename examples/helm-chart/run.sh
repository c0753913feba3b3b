#!/bin/sh
# A chart is linted, installed, tested by its own hook, upgraded, rolled back, and removed, on a cluster that is gone afterwards.
# Usage: run.sh, with gvisor-k3s and helm on PATH.
set -eu
cd "$(dirname "$0")"
cluster=ex-helm
trap 'gvisor-k3s destroy $cluster' EXIT

gvisor-k3s up $cluster
KUBECONFIG=$(mktemp); export KUBECONFIG
gvisor-k3s kubeconfig $cluster >"$KUBECONFIG"
image=$(gvisor-k3s kubectl -c $cluster get pod testpod -o 'jsonpath={.spec.containers[0].image}')

helm lint chart --set image="$image"
helm install hello chart --set image="$image" --wait --timeout 2m
helm test hello --logs
helm upgrade hello chart --set image="$image" --set replicas=3 --wait --timeout 2m
test "$(gvisor-k3s kubectl -c $cluster get deployment hello -o 'jsonpath={.status.readyReplicas}')" = 3
helm rollback hello 1 --wait --timeout 2m
helm uninstall hello --wait
rm "$KUBECONFIG"
echo "the chart works"

"""Brings a cluster and a pod of its own up by the SDK for Python, prints what it is told of it, and takes it down."""

import json
import sys

import pulumi
import pulumi_gvisor_k3s as gvisor
from pulumi import automation


def program() -> None:
    cluster = gvisor.Cluster(
        sys.argv[1],
        pod={"enabled": False},
        addons={"metrics_server": {"enabled": False}},
        node={"api_server_args": [pulumi.Output.secret("max-requests-inflight=300")]},
    )
    pulumi.export("address", cluster.address)
    pulumi.export("kubeconfig", cluster.kubeconfig)
    # Its image is one that the cluster has.
    pod = gvisor.TestPod("of-python", kubeconfig=cluster.kubeconfig)
    pulumi.export("pod", pod.phase)


stack = automation.create_or_select_stack(stack_name="test", project_name="languages", program=program)
try:
    outputs = stack.up(on_error=lambda line: print(line, file=sys.stderr)).outputs
    kubeconfig = outputs["kubeconfig"]
    told = {"secret": kubeconfig.secret, "kubeconfig": kubeconfig.value}
    told |= {name: outputs[name].value for name in ("address", "pod")}
    print(json.dumps(told))
finally:
    stack.destroy()

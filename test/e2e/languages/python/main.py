"""Brings a control plane up by the SDK for Python, prints what it is told of it, and takes it down."""

import json
import sys

import pulumi
import pulumi_gvisor_k3s as gvisor
from pulumi import automation


def program() -> None:
    cluster = gvisor.Cluster(
        sys.argv[1],
        mode="control-plane",
        sandbox={"memory": "1Gi"},
        node={"api_server_args": [pulumi.Output.secret("max-requests-inflight=300")]},
    )
    pulumi.export("address", cluster.address)
    pulumi.export("kubeconfig", cluster.kubeconfig)


stack = automation.create_or_select_stack(stack_name="test", project_name="languages", program=program)
try:
    outputs = stack.up(on_error=lambda line: print(line, file=sys.stderr)).outputs
    kubeconfig = outputs["kubeconfig"]
    told = {"address": outputs["address"].value, "secret": kubeconfig.secret, "kubeconfig": kubeconfig.value}
    print(json.dumps(told))
finally:
    stack.destroy()

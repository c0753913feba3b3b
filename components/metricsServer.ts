import * as pulumi from "@pulumi/pulumi";
import { renderMetricsServer } from "../config/metricsServer.ts";
import { type AddonArgs, applyAddon } from "./addon.ts";

/**
 * metrics-server in kube-system: what nodes and pods use, for `kubectl top` and HorizontalPodAutoscalers. A change is a
 * rolling update.
 */
export class MetricsServer extends pulumi.ComponentResource {
  constructor(name: string, args: AddonArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:MetricsServer", name, {}, options);
    applyAddon(this, name, "metrics-server", args, renderMetricsServer);
    this.registerOutputs();
  }
}

import * as pulumi from "@pulumi/pulumi";
import { renderIngress } from "../config/ingress.ts";
import { INGRESS_MANIFEST } from "../config/schema.ts";
import { type AddonArgs, applyAddon } from "./addon.ts";

/**
 * Traefik in kube-system: it serves Ingresses, at ports 80 and 443 of the node's address, as in k3s. A change is a
 * rolling update.
 */
export class Ingress extends pulumi.ComponentResource {
  constructor(name: string, args: AddonArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:Ingress", name, {}, options);
    applyAddon(this, name, "traefik", args, renderIngress, INGRESS_MANIFEST);
    this.registerOutputs();
  }
}

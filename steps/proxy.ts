import { readFile } from "node:fs/promises";
import { hostPath, inSandbox } from "../config/paths.ts";
import type { StackConfig } from "../config/schema.ts";
import type { SandboxRef } from "./sandbox.ts";
import { ensureService, serviceAnswers } from "./service.ts";

export interface ProxyParams extends SandboxRef {
  /** The proxy by its path in the sandbox. */
  proxy: string;
  /** The node's link to its pods. */
  link: string;
  /** The node's address, where node ports are served. */
  address: string;
  /** See the option `distribution`. */
  distribution: StackConfig["distribution"];
}

/**
 * What each server writes for the proxy (k3s for its kube-proxy, whether that runs or not), and the proxy for who waits
 * for it.
 */
const kubeconfigs = {
  embedded: `${inSandbox.nodeData}/server/cred/kube-proxy.kubeconfig`,
  k3s: `${inSandbox.nodeData}/agent/kubeproxy.kubeconfig`,
};
const status = `${inSandbox.nodeData}/server/service-proxy.json`;

/** Seconds for the proxy to know every Service. */
const PATIENCE = 60;

/** Has the proxy run, and waits until it knows every Service. */
export async function ensureProxy(params: ProxyParams): Promise<void> {
  const { name, proxy, link, address } = params;
  const command = [
    proxy,
    "-kubeconfig",
    kubeconfigs[params.distribution],
    "-node",
    name,
    "-link",
    link,
    "-node-addresses",
    `${address},127.0.0.1`,
    "-status",
    status,
  ];
  const state = await ensureService(params, { name: "proxy", command, config: "", stopSeconds: 5 });
  const file = hostPath(params, status);
  const synced = async ({ pid }: { pid: number }) => {
    const noted = JSON.parse(await readFile(file, "utf8").catch(() => "{}")) as { pid?: number };
    return noted.pid === pid || undefined;
  };
  await serviceAnswers(params, "proxy", PATIENCE, synced, state);
}

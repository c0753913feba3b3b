import { readFile } from "node:fs/promises";
import { hostPath, inSandbox } from "../config/paths.ts";
import type { SandboxRef } from "./sandbox.ts";
import { ensureService, serviceAnswers } from "./service.ts";

export interface ProxyParams extends SandboxRef {
  /** The proxy by its path in the sandbox. */
  proxy: string;
  /** The node's link to its pods. */
  link: string;
  /** The node's address, where node ports are served. */
  address: string;
}

/** What the server writes for the proxy, and the proxy for who waits for it. */
const [kubeconfig, status] = ["cred/kube-proxy.kubeconfig", "service-proxy.json"].map((file) => `${inSandbox.nodeData}/server/${file}`) as [string, string];

/** Seconds for the proxy to know every Service. */
const PATIENCE = 60;

/** Has the proxy run, and waits until it knows every Service. */
export async function ensureProxy(params: ProxyParams): Promise<void> {
  const { name, proxy, link, address } = params;
  const command = [proxy, "-kubeconfig", kubeconfig, "-node", name, "-link", link, "-node-addresses", `${address},127.0.0.1`, "-status", status];
  const state = await ensureService(params, { name: "proxy", command, config: "", stopSeconds: 5 });
  const file = hostPath(params, status);
  const synced = async ({ pid }: { pid: number }) => {
    const noted = JSON.parse(await readFile(file, "utf8").catch(() => "{}")) as { pid?: number };
    return noted.pid === pid || undefined;
  };
  await serviceAnswers(params, "proxy", PATIENCE, synced, state);
}

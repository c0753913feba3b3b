/** Who is let in, and what nobody may see. */
import { X509Certificate } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { request } from "node:https";
import { connect } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parse } from "yaml";
import { sandboxPaths } from "../../config/paths.ts";
import { changes, cli, inside, kubectl, open, ownHome, removeHome, stateFiles } from "./harness.ts";

const home = await ownHome();
const name = "e2e-s";
const options = { addons: { coredns: { enabled: false }, metricsServer: { enabled: false } } };
let address: string;
let admin: { ca: Buffer; cert: Buffer; key: Buffer };

beforeAll(async () => {
  const stack = await open(name, options);
  const { outputs } = await stack.up();
  address = outputs.address!.value;
  const { clusters, users } = parse(readFileSync(sandboxPaths(name).kubeconfig, "utf8"));
  const decoded = (base64: string) => Buffer.from(base64, "base64");
  admin = { ca: decoded(clusters[0].cluster["certificate-authority-data"]), cert: decoded(users[0].user["client-certificate-data"]), key: decoded(users[0].user["client-key-data"]) };
});

afterAll(async () => {
  if (process.env.KEEP) return;
  await cli("destroy", name);
  removeHome(home);
});

/** The status of an answer, or the code of the error. */
function ask(port: number, path: string, options: object = {}): Promise<number | string> {
  return new Promise((resolve) => {
    request({ host: address, port, path, rejectUnauthorized: false, ...options }, (response) => resolve(response.resume().statusCode!)).on("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message)).end();
  });
}

const [API, KUBELET] = [6443, 10250];

describe.each([
  ["the API server", API, "/api/v1/pods"],
  ["the kubelet", KUBELET, "/pods"],
])("%s", (_, port, path) => {
  it("refuses who shows nothing, and who shows a token that it did not give", async () => {
    expect(await ask(port, path)).toBe(401);
    expect(await ask(port, path, { headers: { authorization: "Bearer made-up" } })).toBe(401);
  });

  it("shows a certificate of the cluster's own CA, for its address", async () => {
    expect(await ask(port, path, { rejectUnauthorized: true, ca: admin.ca, cert: admin.cert, key: admin.key })).toBe(200);
    expect(await ask(port, path, { rejectUnauthorized: true })).toBe("UNABLE_TO_VERIFY_LEAF_SIGNATURE");
  });

  it("refuses a pod's service account what it was not given", async () => {
    const token = await kubectl(name, "create", "token", "default");
    expect(await ask(port, path, { headers: { authorization: `Bearer ${token}` } })).toBe(403);
  });
});

it("no port answers from outside without asking who it is", async () => {
  const listening = (await inside(name, "/bin/netstat", "-ltn")).matchAll(/^tcp +\d+ +\d+ +(\S+):(\d+) /gm);
  const reachable = [...listening].filter(([, local]) => !local!.startsWith("127.") && !local!.startsWith("10.4")).map(([, , port]) => Number(port));
  // Pods have 8080, each in its own network.
  expect([...new Set(reachable)].filter((port) => port !== 8080).sort()).toEqual([KUBELET, API]);
  const connected = await new Promise((resolve) => {
    connect(10255, address).on("connect", () => resolve("connected")).on("error", (error: NodeJS.ErrnoException) => resolve(error.code));
  });
  expect(connected, "the kubelet's port for anybody").toBe("ECONNREFUSED");
});

it("keys and kubeconfigs can be read by root alone, wherever they lie", () => {
  const { state } = sandboxPaths(name);
  const secret = /-----BEGIN (EC |RSA )?PRIVATE KEY-----|client-key-data:|"?auth"?\s*[:=]/;
  const open: string[] = [];
  for (const entry of readdirSync(state, { recursive: true, withFileTypes: true })) {
    const file = join(entry.parentPath, entry.name);
    if (!entry.isFile() || statSync(file).size > 1_000_000 || /\/(bin|containerd|log|runsc)\//.test(file)) continue;
    if (secret.test(readFileSync(file, "latin1")) && (statSync(file).mode & 0o077) !== 0) open.push(file);
  }
  expect(open).toEqual([]);
  for (const folder of [home, state]) expect(statSync(folder).mode & 0o777).toBe(0o700);
});

it("the admin's key is in no state file, no log, no preview, and no process's arguments or environment", async () => {
  const key = admin.key.toString().split("\n")[1]!;
  expect(new X509Certificate(admin.cert).subject).toContain("system:masters");
  const shows = (text: string) => text.includes(key) || text.includes(admin.key.toString("base64").slice(0, 60));
  expect(stateFiles(home).filter((file) => shows(readFileSync(file, "utf8")))).toEqual([]);
  const logs = sandboxPaths(name).logs;
  expect(readdirSync(logs, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile() && shows(readFileSync(join(entry.parentPath, entry.name), "latin1")))).toEqual([]);
  const stack = await open(name, { ...options, node: { labels: { a: "b" } } });
  expect(shows((await changes((run) => stack.preview(run))).output)).toBe(false);
  const processes = readdirSync("/proc").filter((entry) => /^\d+$/.test(entry) && entry !== String(process.pid));
  const said = (pid: string) => ["cmdline", "environ"].map((file) => {
    try {
      return readFileSync(`/proc/${pid}/${file}`, "latin1");
    } catch {
      return ""; // it has just ended
    }
  });
  expect(processes.filter((pid) => said(pid).some(shows))).toEqual([]);
});

/**
 * The way to the API server of a node on another machine: an SSH connection that forwards a port of this machine's
 * loopback device. The node's own port is open to nobody but the machine itself.
 * @module
 */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { closeSync, openSync, readFileSync } from "node:fs";
import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { dirname, join } from "node:path";
import { checkServerIdentity, connect } from "node:tls";
import { parseDocument } from "yaml";
import { sandboxPaths } from "../config/paths.ts";
import type { SshTarget } from "../config/ssh.ts";
import { isAlive, nextIncarnation, processStart, readRecord, type SandboxRecord, writeRecord } from "./record.ts";
import { lastLines } from "./run.ts";
import { sshArguments } from "./ssh.ts";
import { waitFor } from "./wait.ts";

export interface TunnelParams {
  name: string;
  home: string;
  ssh: SshTarget;
  /** The API server's address and port on that machine. */
  address: string;
  port: number;
}

interface TunnelRecord extends SandboxRecord {
  /** The port here. */
  localPort: number;
}

/** A hash of everything that it is started with. */
export function tunnelRevision(params: TunnelParams): string {
  return createHash("sha256").update(JSON.stringify(params)).digest("hex");
}

/**
 * Has the tunnel run as described, and writes a kubeconfig that goes through it.
 * @param kubeconfig the node's own
 * @returns the kubeconfig for this machine
 * @throws Error with ssh's words if the API server is not reached through it
 */
export async function ensureTunnel(params: TunnelParams, kubeconfig: string): Promise<string> {
  const paths = sandboxPaths(params.name, params.home);
  const { localPort } = await startTunnel(params, certificateOf(kubeconfig));
  const document = parseDocument(kubeconfig);
  const cluster = ["clusters", 0, "cluster"];
  document.setIn([...cluster, "server"], `https://127.0.0.1:${localPort}`);
  document.setIn([...cluster, "tls-server-name"], params.address); // what the server's certificate is for
  const text = document.toString({ lineWidth: 0 });
  await mkdir(dirname(paths.kubeconfig), { recursive: true, mode: 0o700 });
  await writeFile(`${paths.kubeconfig}.tmp`, text, { mode: 0o600 });
  await rename(`${paths.kubeconfig}.tmp`, paths.kubeconfig);
  return text;
}

/** The CA of a kubeconfig's cluster, as PEM. */
function certificateOf(kubeconfig: string): string {
  const data = parseDocument(kubeconfig).getIn(["clusters", 0, "cluster", "certificate-authority-data"]) as string;
  return Buffer.from(data, "base64").toString();
}

async function startTunnel(params: TunnelParams, ca: string): Promise<TunnelRecord> {
  const paths = sandboxPaths(params.name, params.home);
  const revision = tunnelRevision(params);
  const previous = readRecord({ record: paths.tunnel }) as TunnelRecord | undefined;
  if (previous && isAlive(previous) && previous.revision === revision) return previous;
  const incarnation = nextIncarnation({ record: paths.tunnel }, revision);
  await stop(previous);
  // The port of before, so that a kubeconfig that was copied still works.
  const localPort = (previous && (await freePort(previous.localPort))) ?? (await freePort(0))!;
  await mkdir(paths.logs, { recursive: true, mode: 0o700 });
  const log = join(paths.logs, "tunnel.log");
  const output = openSync(log, "w", 0o600);
  const forward = `127.0.0.1:${localPort}:${params.address}:${params.port}`;
  const child = spawn(
    "ssh",
    sshArguments(params.ssh, "-N", "-o", "ExitOnForwardFailure=yes", "-o", "ServerAliveInterval=15", "-L", forward),
    { detached: true, stdio: ["ignore", output, output] },
  );
  closeSync(output);
  child.unref();
  const { pid } = child;
  if (pid === undefined) throw new Error("ssh cannot be started");
  const said = () => lastLines(readFileSync(log, "utf8"));
  const record: TunnelRecord = { incarnation, revision, pid, startTime: processStart(pid) ?? "", localPort };
  try {
    await waitFor(
      "the API server answers through the SSH tunnel",
      30,
      async () => {
        if (!isAlive(record)) throw new Error(`ssh ended\n${said()}`);
        return (await handshake(localPort, params.address, ca)) || undefined;
      },
      () => said() || "ssh says nothing; the machine's sshd must allow TCP forwarding (AllowTcpForwarding)",
    );
  } catch (error) {
    await stop(record);
    throw error;
  }
  await writeRecord(paths.tunnel, record);
  return record;
}

/** A port of the loopback device that nobody has; undefined if this one is taken. */
function freePort(port: number): Promise<number | undefined> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(undefined));
    server.listen(port, "127.0.0.1", () => {
      const { port: free } = server.address() as AddressInfo;
      server.close(() => resolve(free));
    });
  });
}

/** Whether the server with this CA and address answers at a port here. */
function handshake(port: number, address: string, ca: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect({
      host: "127.0.0.1",
      port,
      ca,
      servername: "",
      checkServerIdentity: (_, certificate) => checkServerIdentity(address, certificate),
      timeout: 5000,
    });
    const done = (answers: boolean) => {
      socket.destroy();
      resolve(answers);
    };
    socket
      .once("secureConnect", () => done(true))
      .once("error", () => done(false))
      .once("timeout", () => done(false));
  });
}

/** Ends the tunnel, and removes the kubeconfig that goes through it. */
export async function removeTunnel({ name, home }: Pick<TunnelParams, "name" | "home">): Promise<void> {
  const { tunnel, kubeconfig } = sandboxPaths(name, home);
  await stop(readRecord({ record: tunnel }));
  for (const file of [tunnel, kubeconfig]) await rm(file, { force: true });
}

async function stop(record: SandboxRecord | undefined): Promise<void> {
  if (!record || !isAlive(record)) return;
  process.kill(record.pid, "SIGTERM");
  await waitFor("the SSH tunnel ends", 10, () => !isAlive(record) || undefined);
}

/** Whether the tunnel of a cluster is there. */
export function hasTunnel({ name, home }: Pick<TunnelParams, "name" | "home">): boolean {
  const { tunnel } = sandboxPaths(name, home);
  return isAlive(readRecord({ record: tunnel }));
}

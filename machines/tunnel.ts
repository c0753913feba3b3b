/**
 * The way to the API server of a node on another machine: an SSH connection that forwards a port of this machine's
 * loopback device. The node's own port is open to nobody but the machine itself.
 * @module
 */
import { readFileSync, rmSync } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { checkServerIdentity, connect } from "node:tls";
import { emptyIfLonger, readJson } from "../system/files.ts";
import { endProcess, isAlive } from "../system/processes.ts";
import { lastLines } from "../system/run.ts";
import { waitFor } from "../system/wait.ts";
import { inTurn } from "./lock.ts";
import type { Reached } from "./machine.ts";
import { type Outliving, revisionOf, startOutliving } from "./outliving.ts";
import { hostPaths } from "./paths.ts";
import type { MachineRef } from "./ref.ts";
import { sshArguments } from "./sshConnection.ts";

/** An API server on another machine. */
export interface RemoteServer {
  address: string;
  port: number;
  /** Its CA, as PEM. */
  ca: string;
}

/** What is written down of a tunnel. */
interface TunnelRecord extends Outliving {
  /** The port here. */
  localPort: number;
}

/** Seconds for the API server to answer through the tunnel. */
const PATIENCE = 30;

/** Bytes that its log may have. */
const MOST_LOG = 2 ** 20;

const readTunnel = ({ name, home }: MachineRef) =>
  readJson<TunnelRecord>(hostPaths(name, home).tunnel, "delete it; the next command opens the tunnel again");

/**
 * Has the tunnel run as described.
 * @returns where the API server is reached here
 * @throws Error with ssh's words if it is not
 */
export async function openTunnel(ref: MachineRef, server: RemoteServer): Promise<Reached> {
  const { localPort } = await inTurn(hostPaths(ref.name, ref.home).state, "tunnel", () => startTunnel(ref, server));
  return { address: "127.0.0.1", port: localPort, tlsServerName: server.address };
}

async function startTunnel(ref: MachineRef, server: RemoteServer): Promise<TunnelRecord> {
  const { tunnel, logs } = hostPaths(ref.name, ref.home);
  const { address, port } = server;
  const revision = revisionOf([ref, address, port]);
  const previous = readTunnel(ref);
  const log = join(logs, "tunnel.log");
  if (previous && isAlive(previous) && previous.revision === revision) {
    emptyIfLonger(log, MOST_LOG); // ssh tells of each connection that the machine refuses
    return previous;
  }
  await endProcess(previous, 10);
  // The port of before, so that a kubeconfig that was copied still works.
  const localPort = (previous && (await freePort(previous.localPort))) ?? (await freePort(0))!;
  await mkdir(logs, { recursive: true, mode: 0o700 });
  rmSync(log, { force: true });
  const forward = `127.0.0.1:${localPort}:${address}:${port}`;
  const args = sshArguments(ref.ssh!, undefined, "-N", "-o", "ExitOnForwardFailure=yes", "-L", forward);
  const said = () => lastLines(readFileSync(log, "utf8"));
  const record = await startOutliving(["ssh", ...args], { revision, localPort }, log, tunnel);
  try {
    await waitFor(
      "the API server answers through the SSH tunnel",
      PATIENCE,
      async () => {
        if (!isAlive(record)) throw new Error(`ssh ended\n${said()}`);
        return (await handshake(localPort, server)) || undefined;
      },
      () => said() || "ssh says nothing; the machine's sshd must allow TCP forwarding (AllowTcpForwarding)",
    );
  } catch (error) {
    await endProcess(record, 10);
    throw error;
  }
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
function handshake(port: number, { address, ca }: RemoteServer): Promise<boolean> {
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

/** Ends the tunnel. */
export async function endTunnel(ref: MachineRef): Promise<void> {
  await endProcess(readTunnel(ref), 10);
  await rm(hostPaths(ref.name, ref.home).tunnel, { force: true });
}

/** Whether the tunnel of a cluster is there. */
export function hasTunnel(ref: MachineRef): boolean {
  return isAlive(readTunnel(ref));
}

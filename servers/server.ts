/**
 * What serves Kubernetes. All that differs between the distributions stands in this folder, behind {@link Server}.
 * @module
 */
import type { Wanted } from "../artifacts/artifacts.ts";
import type { Problem } from "../config/problems.ts";
import type { StackConfig } from "../config/schema.ts";
import type { Machine } from "../machines/machine.ts";
import type { MachineFile } from "../machines/ref.ts";
import type { Service } from "../machines/services.ts";

/** What finds a server's programs on a machine, as JSON, in the parameters of steps. */
export interface ServerRef {
  /** See the option `distribution`. */
  distribution: StackConfig["distribution"];
  /** The server by its path on the machine. */
  server: string;
  /** What is taken for kubectl: a program by its path on the machine, with this as its first argument. */
  kubectl: string;
  /** The version of Kubernetes, where it is known, "v1.37.2". */
  version?: string;
}

/** What finds a server's client: enough for what is asked of its API, and the same for another version of it. */
export type ClientRef = Pick<ServerRef, "distribution" | "kubectl">;

/**
 * How far a server is: its API answers and the default service account is there; its controllers, scheduler and kubelet
 * live as well; or its node is Ready.
 */
export type Stage = "api" | "agent" | "node";

/** What is asked of a server's API. */
export interface Client {
  /** What it writes for the service proxy, on the machine. */
  readonly proxyKubeconfig: string;
  /**
   * Applies a manifest, and keeps it applied; what an earlier one of this name brought and this one does not is deleted.
   * @throws Error with the API server's words on what it refuses
   */
  apply(machine: Machine, manifest: string, content: string): Promise<void>;
  /** Takes a manifest away, and with it what the server has made of it. */
  withdraw(machine: Machine, manifest: string): Promise<void>;
}

/** What a node needs to join; as node/server/members.go prints it. */
export interface Invitation {
  token: string;
  serverCA: string;
  clientCA: string;
}

/** A server on a machine. */
export interface Server extends Client {
  /**
   * The service that runs it, and the files that it reads.
   * @param config the content of its config file
   */
  service(config: string): { service: Omit<Service, "config">; files: MachineFile[] };
  /**
   * The service that runs a kubelet of its version which joins it, on a machine of its own, and the files that it reads.
   * @param config the content of its config file
   */
  agent(config: string, invitation: Invitation): { service: Omit<Service, "config">; files: MachineFile[] };
  /**
   * Waits until the process that runs now is so far.
   * @param config the content of its config file, as the host has it: that on the machine is its root's to write
   * @param again it may have been so before and not be now: the network that is given back has been gone for a while
   * @throws Error with what is missing and the end of its log
   */
  reached(machine: Machine, stage: Stage, config: string, again?: boolean): Promise<void>;
  /** Removes what other versions of it have left, once this one is ready. */
  tidy?(machine: Machine): Promise<void>;
}

/** A distribution: what a file of this folder has to offer. */
export interface Distribution {
  /** Its server's programs. */
  refOf(config: StackConfig): ServerRef;
  /** What is to be there for it: artifacts, programs of the user's, and whether something is downloaded. */
  takes(config: StackConfig): { artifacts: Wanted[]; own: { source: string; name: string }[]; download: boolean };
  /** Whether nodes that join are told the cluster's networks by the server, and take no such keys in their config file. */
  tellsAgents: boolean;
  /** Whether its kubelet awaits containerd, so that the server can be started beside it, and not after. */
  awaitsRuntime: boolean;
  /** Whether this project's controllers are in it; if not, they run beside it. */
  hasControllers: boolean;
  /** What of the server's own addons is switched off, by k3s' names. */
  disabled(config: StackConfig): string[];
  /** What users miss with it, where there are pods. */
  lacks: readonly string[];
  /** What it reads beside its config file and the user's files; a change of it is a restart. */
  settings?: string;
  /** What stands in the way of it here. */
  problemsOf(config: StackConfig): Problem[];
  /**
   * The option by which another version is chosen; what is said of the one that it brings; and what is to be taken in
   * place of a downgrade, and before a version that is too far from the one that the cluster runs.
   */
  versionOption(
    config: StackConfig,
    from: string,
  ): { option: string; value: string; brings: string; newer: string; next: string };
  open(ref: ServerRef): Server;
}

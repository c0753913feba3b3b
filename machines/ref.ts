import type { StackConfig } from "../config/schema.ts";
import type { SshTarget } from "./sshConnection.ts";

/** What finds a machine, as JSON, in the parameters of every step. */
export interface MachineRef {
  kind: Kind;
  /** The cluster's name, which is the node's too; of a node that joins a cluster its own. */
  name: string;
  /** The cluster that it joins. */
  joins?: string;
  /** The home folder here. */
  home: string;
  /** How the machine is reached, of those that are elsewhere. */
  ssh?: SshTarget;
}

/** The kinds of machines, as the option `target` names them. */
export type Kind = StackConfig["target"];

/** A file that is written on a machine. */
export interface MachineFile {
  path: string;
  content: string;
  /** Permissions, whatever the umask is. */
  mode: number;
}

import * as pulumi from "@pulumi/pulumi";
import { homeFolder, sandboxPaths } from "../config/paths.ts";
import type { StackConfig } from "../config/schema.ts";
import { insideRevision } from "../steps/inside.ts";
import { nextIncarnation } from "../steps/record.ts";
import { linkAddresses, type SandboxParams, type SandboxRef, sandboxRevision } from "../steps/sandbox.ts";
import { type Artifact, artifactFolder, fileDigest } from "../toolchain/artifacts.ts";
import { step } from "./step.ts";

export interface SandboxArgs {
  /** See the option `target`. A change replaces the sandbox. */
  target: StackConfig["target"];
  /** The sandbox's name, unique on the machine. A change replaces the sandbox, and what is in it is lost. */
  name: string;
  /** See the option `sandbox`. A change of the subnet replaces the sandbox; any other restarts it in place. */
  sandbox: StackConfig["sandbox"];
  /** See the option `mode`. A change replaces the sandbox. */
  mode: StackConfig["mode"];
  /** Whether it has a way out, which the component `Egress` then makes; default false. A change restarts the sandbox. */
  egress?: boolean;
  /** See the option `network`. */
  network: StackConfig["network"];
}

/**
 * Where the node lives. The target `managed` is a runsc container with its own network namespace, a veth pair to the host, and a state folder; it
 * is restarted by the next `up` if it died. `inside` is the machine that Pulumi runs on, which is a sandbox already and gets a supervisor.
 */
export class Sandbox extends pulumi.ComponentResource {
  /** What finds the sandbox; known before it exists. */
  readonly ref: SandboxRef;
  /** What its gVisor's abilities depend on, beside what finds it; nothing of it is known of a machine that is a sandbox. */
  readonly kind: Partial<Pick<SandboxParams, "runscDigest" | "platform" | "network">>;
  /** The node's address, which the host reaches. */
  readonly address: string;
  /** The start of the sandbox that this deployment is for; see `nextIncarnation`. */
  readonly incarnation: number;
  /** The resource whose deletion ends everything in the sandbox. */
  readonly process: pulumi.CustomResource;

  constructor(name: string, args: SandboxArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:Sandbox", name, {}, options);
    const home = homeFolder();
    const { subnet } = args.sandbox;
    this.address = linkAddresses(subnet).node;
    const made = args.target === "managed" ? managed(name, home, args) : inside(name, home, this.address, args);
    this.ref = made.ref;
    this.kind = made.kind;
    this.incarnation = nextIncarnation(sandboxPaths(args.name, home), made.revision);
    const build = step(`${name}-build`, { step: "build", params: { artifacts: made.artifacts, own: [] } }, { parent: this });
    this.process = made.start({ incarnation: this.incarnation, replaceOn: [args.name, home, subnet, args.mode, ...(args.target === "managed" ? [] : [args.target])] }, { parent: this, dependsOn: build, deleteBeforeReplace: true });
    this.registerOutputs({ address: this.address });
  }

  /** Options of what lives in this sandbox: it ends with it, so nothing has to be undone one by one. */
  inside(parent: pulumi.Resource, ...dependsOn: pulumi.Resource[]): pulumi.CustomResourceOptions {
    return { parent, deletedWith: this.process, dependsOn };
  }
}

/** What a target is made of. */
interface Target {
  ref: SandboxRef;
  kind: Sandbox["kind"];
  revision: string;
  artifacts: Artifact[];
  start: (args: { incarnation: number; replaceOn: string[] }, options: pulumi.CustomResourceOptions) => pulumi.CustomResource;
}

function managed(name: string, home: string, args: SandboxArgs): Target {
  const { runsc = `${artifactFolder({ name: "runsc" })}/runsc`, subnet, memory, cpus, platform, network } = args.sandbox;
  const own = args.sandbox.runsc ? { runscDigest: fileDigest(args.sandbox.runsc) } : {};
  const ref = { name: args.name, home, runsc };
  const params: SandboxParams = { ...ref, ...own, subnet, limits: { memory, cpus }, platform, network, egress: args.egress ?? false };
  return {
    ref,
    kind: { ...own, platform, network },
    revision: sandboxRevision(params),
    artifacts: [...(args.sandbox.runsc ? [] : [{ name: "runsc" as const }]), { name: "init" }],
    start: (more, options) => step(`${name}-process`, { step: "sandbox", undo: "sandbox-remove", params, ...more }, options),
  };
}

function inside(name: string, home: string, address: string, args: SandboxArgs): Target {
  const params = { name: args.name, home, address, bridge: args.network.bridge };
  return {
    ref: { name: args.name, home },
    kind: {},
    revision: insideRevision(params),
    artifacts: [{ name: "init" }],
    start: (more, options) => step(`${name}-process`, { step: "inside", undo: "inside-remove", params, ...more }, options),
  };
}

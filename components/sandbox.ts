import * as pulumi from "@pulumi/pulumi";
import { homeFolder, sandboxPaths } from "../config/paths.ts";
import type { StackConfig } from "../config/schema.ts";
import { nextIncarnation } from "../steps/record.ts";
import { linkAddresses, type SandboxParams, type SandboxRef, sandboxRevision } from "../steps/sandbox.ts";
import { artifactFolder, fileDigest } from "../toolchain/artifacts.ts";
import { step } from "./step.ts";

export interface SandboxArgs {
  /** The sandbox's name, unique on the machine. A change replaces the sandbox, and what is in it is lost. */
  name: string;
  /** See the option `sandbox`. A change of the subnet replaces the sandbox; any other restarts it in place. */
  sandbox: StackConfig["sandbox"];
  /** See the option `mode`. A change replaces the sandbox. */
  mode: StackConfig["mode"];
  /** Whether it has a way out, which the component `Egress` then makes; default false. A change restarts the sandbox. */
  egress?: boolean;
}

/** A runsc container with its own network namespace, a veth pair to the host, and a state folder; it is restarted by the next `up` if it died. */
export class Sandbox extends pulumi.ComponentResource {
  /** What finds the sandbox; known before it exists. */
  readonly ref: SandboxRef;
  /** What it is started with. */
  readonly params: SandboxParams;
  /** The node's address, which the host reaches. */
  readonly address: string;
  /** The start of the sandbox that this deployment is for; see `nextIncarnation`. */
  readonly incarnation: number;
  /** The resource whose deletion ends everything in the sandbox. */
  readonly process: pulumi.CustomResource;

  constructor(name: string, args: SandboxArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:Sandbox", name, {}, options);
    const { runsc = `${artifactFolder({ name: "runsc" })}/runsc`, subnet, memory, cpus, platform, network } = args.sandbox;
    const home = homeFolder();
    this.ref = { name: args.name, home, runsc };
    this.address = linkAddresses(subnet).node;
    const own = args.sandbox.runsc ? { runscDigest: fileDigest(args.sandbox.runsc) } : {};
    this.params = { ...this.ref, ...own, subnet, limits: { memory, cpus }, platform, network, egress: args.egress ?? false };
    this.incarnation = nextIncarnation(sandboxPaths(args.name, home), sandboxRevision(this.params));
    const artifacts = [...(args.sandbox.runsc ? [] : [{ name: "runsc" as const }]), { name: "init" as const }];
    const build = step(`${name}-build`, { step: "build", params: { artifacts, own: [] } }, { parent: this });
    this.process = step(
      `${name}-process`,
      {
        step: "sandbox",
        undo: "sandbox-remove",
        params: this.params,
        incarnation: this.incarnation,
        replaceOn: [args.name, home, subnet, args.mode],
      },
      { parent: this, dependsOn: build, deleteBeforeReplace: true },
    );
    this.registerOutputs({ address: this.address });
  }

  /** Options of what lives in this sandbox: it ends with it, so nothing has to be undone one by one. */
  inside(parent: pulumi.Resource, ...dependsOn: pulumi.Resource[]): pulumi.CustomResourceOptions {
    return { parent, deletedWith: this.process, dependsOn };
  }
}

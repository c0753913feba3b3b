import { basename } from "node:path";
import * as pulumi from "@pulumi/pulumi";
import { homeFolder } from "../config/paths.ts";
import type { StackConfig } from "../config/schema.ts";
import { remotePaths, type SshTarget, sshTarget } from "../config/ssh.ts";
import { insideRevision } from "../steps/inside.ts";
import type { StepName } from "../steps/main.ts";
import { incarnationOf, type Observed, observe } from "../steps/observe.ts";
import type { BuildParams } from "../steps/parts.ts";
import type { UploadParams } from "../steps/upload.ts";
import { linkAddresses, type SandboxParams, type SandboxRef, sandboxRevision } from "../steps/sandbox.ts";
import { type Artifact, artifactFolder, fileDigest } from "../toolchain/artifacts.ts";
import { runnerFolder } from "../toolchain/runner.ts";
import { remoteStep, type StepArgs, type StepResource, step } from "./step.ts";

export interface SandboxArgs {
  /** See the option `target`. A change replaces the sandbox. */
  target: StackConfig["target"];
  /** See the option `ssh`. A change of its host or port replaces the sandbox. */
  ssh: StackConfig["ssh"];
  /** The sandbox's name, unique on the machine. A change replaces the sandbox, and what is in it is lost. */
  name: string;
  /**
   * See the option `sandbox`. A change of the subnet replaces the sandbox, one of the host's ports restarts nothing,
   * and any other restarts it in place.
   */
  sandbox: StackConfig["sandbox"];
  /** See the option `mode`. A change replaces the sandbox. */
  mode: StackConfig["mode"];
  /**
   * Whether it has a way out, which the component `Egress` then makes; default false. A change restarts the sandbox.
   */
  egress?: boolean;
  /** See the option `network`. */
  network: StackConfig["network"];
}

/**
 * Where the node lives. The target `managed` is a runsc container with its own network namespace, a veth pair to the
 * host, and a state folder; it is restarted by the next `up` if it died. `inside` is the machine that Pulumi runs on,
 * which is a sandbox already and gets a supervisor; `ssh` is such a machine elsewhere.
 */
export class Sandbox extends pulumi.ComponentResource {
  /** What finds the sandbox from where it is; known before it exists. */
  readonly ref: SandboxRef;
  /** The machine that it is on, if that is another one. */
  readonly ssh: SshTarget | undefined;
  /** The home folder here. */
  readonly home = homeFolder();
  /**
   * What its gVisor's abilities depend on, beside what finds it; nothing of it is known of a machine that is a sandbox.
   */
  readonly kind: Partial<Pick<SandboxParams, "runscDigest" | "platform" | "network">>;
  /** The node's address, which the host reaches. */
  readonly address: string;
  /** The start of the sandbox that this deployment is for; see `incarnationOf`. */
  readonly incarnation: number;
  /** The resource whose deletion ends everything in the sandbox. */
  readonly process: pulumi.CustomResource;
  /** How the sandbox was found. */
  readonly #observed: Observed;

  constructor(name: string, args: SandboxArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:Sandbox", name, {}, options);
    const { subnet } = args.sandbox;
    this.address = linkAddresses(subnet).node;
    this.ssh = sshTarget(args);
    const made =
      args.target === "managed"
        ? managed(this.home, args)
        : inside(this.ssh ? remotePaths.home : this.home, this.address, args);
    this.ref = made.ref;
    this.kind = made.kind;
    this.#observed = observe(this.reachedFromHere());
    this.incarnation = incarnationOf(this.#observed, args.name, this.home, made.revision);
    const machine = this.ssh ? [this.ssh.host, String(this.ssh.port)] : [];
    const replaceOn = [
      args.name,
      this.ref.home,
      subnet,
      args.mode,
      ...(args.target === "managed" ? [] : [args.target]),
      ...machine,
    ];
    const build = this.build(name, { artifacts: made.artifacts, own: [] }, { parent: this }, true);
    this.process = this.step(
      `${name}-process`,
      { ...made.start, incarnation: this.incarnation, replaceOn },
      { parent: this, dependsOn: build, deleteBeforeReplace: true },
    );
    this.registerOutputs({ address: this.address });
  }

  /** What finds the sandbox from this machine. */
  reachedFromHere(): SandboxRef {
    return this.ssh ? { ...this.ref, ssh: this.ssh } : this.ref;
  }

  /** A step that runs where the sandbox can be reached without SSH. */
  step<S extends StepName>(name: string, args: StepArgs<S>, options: pulumi.CustomResourceOptions): StepResource {
    return this.ssh ? remoteStep(this.ssh, name, args, options) : step(name, args, options);
  }

  /**
   * The step that builds what a component takes, and brings it to where the sandbox finds it.
   * @param name the component's name
   * @param first whether it is the one whose end takes all that was brought away
   */
  build(
    name: string,
    params: { [K in keyof BuildParams]: pulumi.Input<BuildParams[K]> },
    options: pulumi.CustomResourceOptions,
    first = false,
  ): pulumi.Resource {
    if (!this.ssh) return step(`${name}-build`, { step: "build", params }, options);
    const { to } = this;
    const runner = first ? { runner: basename(runnerFolder()) } : {};
    const undo = first ? { undo: "build-remove" as const, replaceOn: [this.ssh.host, String(this.ssh.port)] } : {};
    return step(
      `${name}-build`,
      { step: "build", ...undo, params: { ...params, to, ...runner }, incarnation: this.incarnation },
      options,
    );
  }

  /** Where what is built is copied to; undefined if the sandbox finds it here. */
  get to(): UploadParams | undefined {
    return this.ssh && { ssh: this.ssh, name: this.ref.name, home: this.home };
  }

  /**
   * What a step has in addition whose result outlives the sandbox's restarts: another machine may lose it, which is
   * then told by its incarnation.
   */
  get again(): { incarnation?: number } {
    return this.ssh ? { incarnation: this.incarnation } : {};
  }

  /** How often the files of a step were found edited: an input of it. */
  repairs(step: StepName): number {
    return this.#observed.repairs[step] ?? 0;
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
  start: Pick<StepArgs<"sandbox">, "step" | "undo" | "params"> | Pick<StepArgs<"inside">, "step" | "undo" | "params">;
}

function managed(home: string, args: SandboxArgs): Target {
  const {
    runsc = `${artifactFolder({ name: "runsc" })}/runsc`,
    subnet,
    memory,
    cpus,
    platform,
    network,
    hostPorts,
  } = args.sandbox;
  const own = args.sandbox.runsc ? { runscDigest: fileDigest(args.sandbox.runsc) } : {};
  const ref = { name: args.name, home, runsc };
  const params: SandboxParams = {
    ...ref,
    ...own,
    subnet,
    limits: { memory, cpus },
    platform,
    network,
    egress: args.egress ?? false,
    hostPorts,
  };
  return {
    ref,
    kind: { ...own, platform, network },
    revision: sandboxRevision(params),
    artifacts: [...(args.sandbox.runsc ? [] : [{ name: "runsc" as const }]), { name: "init" }, { name: "egress" }],
    start: { step: "sandbox", undo: "sandbox-remove", params },
  };
}

function inside(home: string, address: string, args: SandboxArgs): Target {
  const params = { name: args.name, home, address, bridge: args.network.bridge };
  return {
    ref: { name: args.name, home },
    kind: {},
    revision: insideRevision(params),
    artifacts: [{ name: "init" }],
    start: { step: "inside", undo: "inside-remove", params },
  };
}

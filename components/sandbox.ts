import * as pulumi from "@pulumi/pulumi";
import { meshDevice } from "../config/mesh.ts";
import { linkAddresses, type Mesh } from "../config/network.ts";
import { InputError } from "../config/problems.ts";
import type { StackConfig } from "../config/schema.ts";
import { driverOf, openMachine, refOf } from "../machines/index.ts";
import { incarnationOf, type Observed } from "../machines/observe.ts";
import { hostPaths } from "../machines/paths.ts";
import type { MachineRef } from "../machines/ref.ts";
import { needMachine } from "../steps/preflight.ts";
import type { StepName } from "../steps/steps.ts";
import { homeFolder } from "../system/folders.ts";
import { type StepArgs, type StepResource, step } from "./step.ts";

export interface SandboxArgs {
  /**
   * The options of the cluster, complete: see `parseStackConfig`. Those named `target`, `ssh`, `sandbox` and `egress` say
   * what the machine is. A change of the name, the home folder, the target, the machine's host, the mode or the subnet
   * replaces it, and all that is in it is made anew by the same update; other changes restart it in place, or take
   * effect while it runs.
   */
  config: StackConfig;
  /** What is known of the machine; default: it is asked, while the program runs on. */
  observed?: pulumi.Input<Observed>;
}

/** A step's arguments, but for the machine. */
type StepOnMachine<S extends StepName> = Omit<StepArgs<S>, "params"> & {
  params: Omit<StepArgs<S>["params"], "machine">;
  /** A step that it is done again after, where what that makes was found not as it was made. */
  restsOn?: StepName;
};

/** The machines that this program has made, so that two of one name are told before one takes the other's place. */
const made = new Set<string>();

/** Where the node lives: a machine of one of the kinds in machines/, with a supervisor for the node's services. */
export class Sandbox extends pulumi.ComponentResource {
  /** What finds the machine; known before it exists. */
  readonly ref: MachineRef;
  /** What it is started with. */
  readonly spec: unknown;
  /** The node's address, which the host reaches. */
  readonly address: string;
  /** The node's link to the other nodes of its cluster; undefined of a cluster of one. */
  readonly mesh: string | undefined;
  /** The kubeconfig's file on the host, mode 0600. */
  readonly kubeconfigPath: string;
  /** The start of the machine that this deployment is for; see `incarnationOf`. */
  readonly incarnation: pulumi.Output<number>;
  /** The resource whose deletion ends everything on the machine. */
  readonly process: pulumi.CustomResource;
  /** Whether the machine was running before. */
  readonly wasRunning: pulumi.Output<boolean>;
  /** How the machine was found. */
  readonly #observed: pulumi.Output<Observed>;
  readonly #durable: boolean;

  constructor(name: string, args: SandboxArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:Sandbox", name, {}, options);
    const { config } = args;
    const driver = driverOf(config);
    const home = homeFolder();
    this.ref = driver.refOf(config, home);
    if (made.has(config.name)) {
      throw new pulumi.RunError(`two clusters of this program are called ${config.name}; give one another option name`);
    }
    made.add(config.name);
    this.spec = driver.specOf(config);
    this.address = linkAddresses(config.sandbox.subnet).node;
    this.mesh = (this.spec as { mesh?: Mesh }).mesh && meshDevice(config);
    this.kubeconfigPath = hostPaths(config.name, home).kubeconfig;
    this.#durable = driver.durable;
    this.#observed = pulumi.output(args.observed ?? observe(config));
    this.wasRunning = this.#observed.apply(({ state }) => state === "running");
    const revision = driver.revisionOf(this.spec, this.ref);
    this.incarnation = this.#observed.apply((observed) => incarnationOf(observed as Observed, revision));
    const owner = `${pulumi.getProject()}/${pulumi.getStack()}`;
    this.process = step(
      `${name}-process`,
      {
        step: "sandbox",
        undo: "sandbox-remove",
        params: { machine: this.ref, owner, spec: this.spec },
        variables: { SANDBOX_INCARNATION: this.incarnation.apply(String), ...this.#repairs("sandbox") },
        replaceOn: driver.identityOf(config, this.ref),
      },
      { parent: this, deleteBeforeReplace: true },
    );
    this.registerOutputs({ address: this.address });
  }

  /**
   * A step on this machine, which ends with it, so nothing has to be undone one by one. A machine that is replaced has
   * it done again, whatever the step is.
   * @param lives where its result is: `memory` has it done again after each start of the machine, `disk` where the disk
   *   may be another one, `cache` where the artifact cache of the machine is not this one's
   */
  step<S extends StepName>(
    name: string,
    lives: "memory" | "disk" | "cache",
    { params, restsOn, ...args }: StepOnMachine<S>,
    parent: pulumi.Resource,
    ...dependsOn: pulumi.Input<pulumi.Resource>[]
  ): StepResource {
    const again = lives === "memory" || !this.#durable;
    const other = lives !== "cache" || !this.#durable;
    const variables = {
      ...(other ? { SANDBOX_ID: this.process.id } : {}),
      ...(again ? { SANDBOX_INCARNATION: this.incarnation.apply(String) } : {}),
      ...this.#repairs(args.step),
      ...(restsOn === undefined ? {} : { BELOW_REPAIRS: this.#repairs(restsOn).STEP_REPAIRS! }),
    };
    const onMachine = { machine: this.ref, ...params } as StepArgs<S>["params"];
    return step(name, { ...args, params: onMachine, variables } as StepArgs<S>, {
      parent,
      deletedWith: this.process,
      dependsOn,
    });
  }

  /** How often what a step makes was found not as it was made: an input of it. */
  #repairs(step: StepName): Record<string, pulumi.Input<string>> {
    return { STEP_REPAIRS: this.#observed.apply(({ repairs }) => String(repairs[step] ?? 0)) };
  }
}

/** How several machines are; what stands in the way on one stands in the way of all. */
export function observeAll(configs: readonly StackConfig[]): Promise<Observed>[] {
  const all = Promise.all(configs.map(observe));
  return configs.map((_, i) => all.then((observed) => observed[i]!));
}

/**
 * How the machine is.
 * @throws RunError that lists what stands in the way on it; Pulumi prints its message alone
 */
async function observe(config: StackConfig): Promise<Observed> {
  try {
    const observed = await openMachine(refOf(config)).observe();
    needMachine(config, observed);
    return observed;
  } catch (error) {
    throw error instanceof InputError ? new pulumi.RunError(error.message) : error;
  }
}

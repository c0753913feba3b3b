/**
 * The server that is built here from the Kubernetes modules: node/server.
 * @module
 */
import { createHash } from "node:crypto";
import { dirname, join } from "node:path";
import { manifest, pathInSandbox, serverOf, wanted } from "../artifacts/artifacts.ts";
import { kubernetesMinors, minorOf, nextTo } from "../config/kubernetes.ts";
import { inSandbox } from "../config/paths.ts";
import type { StackConfig } from "../config/schema.ts";
import type { Machine } from "../machines/machine.ts";
import type { MachineFile } from "../machines/ref.ts";
import { serviceGives } from "../machines/services.ts";
import { CommandError, lastLines } from "../system/run.ts";
import { waitFor } from "../system/wait.ts";
import type { Distribution, Invitation, Server, ServerRef, Stage } from "./server.ts";

/** Seconds for the API server or the node to become ready; on two slow cores it takes about ten. */
const PATIENCE = 180;

/** Seconds for a node to be Ready again whose network was gone for a while. */
const AGAIN = 60;

/** Seconds for the server to apply a manifest, retries included. */
const APPLY = 60;

/** Seconds that it is waited on the machine at a time. */
const LOOK = 20;

const folder = `${inSandbox.nodeData}/server/manifests`;

/** What the server notes of its start: its process, and when it came how far. See node/server/ready.go. */
const stages = `${inSandbox.nodeData}/server/stages.json`;
const keys: Record<Stage, string> = { api: "defaultServiceAccount", agent: "agentAlive", node: "nodeReady" };

/** What the server notes of a manifest; see `manifestState` in node/server/manifests.go. */
interface ManifestState {
  digest: string;
  problem?: string;
  /** To try again is of no use. */
  final?: boolean;
}

/** By what a node that joins knows the server and the server's clients, where both distributions' kubelets look. */
export const authorityFiles = (serverCA: string, clientCA: string): MachineFile[] => [
  { path: `${inSandbox.nodeData}/agent/server-ca.crt`, content: serverCA, mode: 0o600 },
  { path: `${inSandbox.nodeData}/agent/client-ca.crt`, content: clientCA, mode: 0o600 },
];

/** The server's program by its path on the machine: it is kubectl as well, and what other servers lack of this one. */
export const embeddedServer = ({ kubernetes }: Pick<StackConfig, "kubernetes">) =>
  pathInSandbox({ name: serverOf(kubernetes) }, "gvisor-k3s-node");

/** What serves Services on a node, which is beside the program that is its kubelet or kubectl, by its path there. */
export const serviceProxy = (program: string) => join(dirname(program), "service-proxy");

/** See {@link Distribution}. */
export const embedded: Distribution = {
  refOf: (config) => ({
    distribution: "embedded",
    server: embeddedServer(config),
    kubectl: embeddedServer(config),
    version: `v${manifest().kubernetes[config.kubernetes]}`,
  }),
  takes: ({ kubernetes }) => ({ artifacts: [wanted({ name: serverOf(kubernetes) })], own: [], download: false }),
  disabled: ({ addons }) => (addons.localStorage.enabled ? [] : ["local-storage"]),
  tellsAgents: false,
  awaitsRuntime: true,
  hasControllers: true,
  lacks: [],
  problemsOf: () => [],
  versionOption,
  open: (ref) => new EmbeddedServer(ref),
};

/** See {@link Distribution}. */
function versionOption(config: StackConfig, from: string): ReturnType<Distribution["versionOption"]> {
  const { kubernetes } = config;
  const [there, first] = [minorOf(from), nextTo(from)];
  const known = (kubernetesMinors as readonly string[]).includes(first);
  return {
    option: "kubernetes",
    value: kubernetes,
    brings: `that is v${manifest().kubernetes[kubernetes]} here; `,
    newer: there === kubernetes ? `a gvisor-k3s that brings ${from} or newer` : `${there} or newer`,
    next: known
      ? `${first} first, or run \`gvisor-k3s upgrade NAME --to ${kubernetes}\`, which takes one after the other`
      : `${first} first, by a gvisor-k3s that brings it: this one has ${kubernetesMinors.join(", ")}`,
  };
}

class EmbeddedServer implements Server {
  readonly #ref: ServerRef;
  readonly proxyKubeconfig = `${inSandbox.nodeData}/server/cred/kube-proxy.kubeconfig`;

  constructor(ref: ServerRef) {
    this.#ref = ref;
  }

  service(config: string): ReturnType<Server["service"]> {
    const command = (verb: string) => [this.#ref.server, verb, "--config", inSandbox.nodeConfig];
    return {
      service: { name: "server", command: command("server"), check: command("check"), stopSeconds: 15 },
      files: [{ path: inSandbox.nodeConfig, content: config, mode: 0o600 }],
    };
  }

  agent(config: string, { token, serverCA, clientCA }: Invitation): ReturnType<Server["agent"]> {
    const command = (verb: string) => [this.#ref.server, verb, "--config", inSandbox.nodeConfig];
    return {
      service: { name: "agent", command: command("join"), check: command("check"), stopSeconds: 15 },
      files: [
        { path: inSandbox.nodeConfig, content: config, mode: 0o600 },
        { path: inSandbox.joinToken, content: `${token}\n`, mode: 0o600 },
        ...authorityFiles(serverCA, clientCA),
      ],
    };
  }

  async reached(machine: Machine, stage: Stage, _config: string, again = false): Promise<void> {
    const sign = { file: stages, key: keys[stage] };
    await serviceGives(machine, "server", sign, PATIENCE).catch(async (error: Error) => {
      const missing = await this.#missing(machine, stage);
      throw new Error([missing, error.message].filter(Boolean).join("\n"), { cause: error });
    });
    if (again) await machine.exec(this.#question(stage, AGAIN), { timeout: (AGAIN + 30) * 1000 });
  }

  #question(stage: Stage, seconds: number): string[] {
    return [this.#ref.server, "ready", "--config", inSandbox.nodeConfig, "--stage", stage, "--wait", `${seconds}`];
  }

  /** What the server itself says is missing. To ask takes a process, just when it needs every CPU: only at the end. */
  async #missing(machine: Machine, stage: Stage): Promise<string> {
    const asked = await machine.exec(this.#question(stage, 0), { timeout: 30_000 }).catch((reason: unknown) => reason);
    return asked instanceof CommandError ? lastLines(asked.output, 1) : "";
  }

  /** The server applies what lies in its folder, and deletes what leaves it. */
  async apply(machine: Machine, manifest: string, content: string): Promise<void> {
    const file = `${manifest}.yaml`;
    await machine.write([{ path: `${folder}/${file}`, content, mode: 0o600 }]);
    const digest = createHash("sha256").update(content).digest("hex");
    let problem: string | undefined;
    const applied = async (states: ManifestStates) => {
      const state = states[file];
      if (state?.digest !== digest) return undefined;
      problem = state.problem;
      if (state.final) throw new Error(problem);
      return problem === undefined || undefined;
    };
    await statesTell(machine, `the server applies ${file}`, applied, () => problem ?? "");
  }

  async withdraw(machine: Machine, manifest: string): Promise<void> {
    const file = `${manifest}.yaml`;
    await machine.remove([`${folder}/${file}`]);
    await statesTell(machine, `the server removes what ${file} brought`, async (states) =>
      states[file] ? undefined : true,
    );
  }
}

type ManifestStates = Record<string, ManifestState>;

/** Waits, on the machine itself, until what the server notes of its manifests tells something. */
async function statesTell(
  machine: Machine,
  what: string,
  tells: (states: ManifestStates) => Promise<true | undefined>,
  lastState?: () => string,
): Promise<void> {
  let known: string | undefined;
  let seconds = 0; // the first look is at what is there
  await waitFor(
    what,
    APPLY,
    async () => {
      known = await machine.changed(`${folder}.json`, known, seconds);
      seconds = LOOK;
      return await tells((JSON.parse(known ?? "{}") as ManifestStates | null) ?? {});
    },
    lastState,
  );
}

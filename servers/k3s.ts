/**
 * The official k3s, in the place of the server that is built here.
 * @module
 */
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { parse, parseAllDocuments } from "yaml";
import { serverOf, wanted } from "../artifacts/artifacts.ts";
import { k3sFolder, releaseFiles } from "../artifacts/k3sRelease.ts";
import { stagedPath } from "../artifacts/stage.ts";
import { nextTo } from "../config/kubernetes.ts";
import { renderKubeletConfig } from "../config/nodeYaml.ts";
import { inSandbox } from "../config/paths.ts";
import type { Problem } from "../config/problems.ts";
import type { StackConfig } from "../config/schema.ts";
import type { ExecOptions, Machine } from "../machines/machine.ts";
import { hostPaths } from "../machines/paths.ts";
import type { MachineFile } from "../machines/ref.ts";
import { lastWords, logOf, serviceStates } from "../machines/services.ts";
import { writeWhole } from "../system/files.ts";
import { says } from "../system/programs.ts";
import { type Output, worked } from "../system/run.ts";
import { waitFor } from "../system/wait.ts";
import { authorityFiles, embeddedServer } from "./embedded.ts";
import type { Distribution, Invitation, Server, ServerRef, Stage } from "./server.ts";

/**
 * What k3s brings and this project has its own of, or has no use for: there is no netfilter for a load balancer, Traefik
 * has an image of its own, and so has the provisioner of volumes, which without one to pull from never starts.
 */
const DISABLED = ["coredns", "local-storage", "metrics-server", "servicelb", "traefik"];

/** Seconds for the API server or the node to become ready. */
const PATIENCE = 180;

/** How often k3s may end while it is waited for. */
const ATTEMPTS = 3;

/**
 * Seconds after which k3s is started again: its certificates live a year, and are renewed at a start in the last quarter
 * of it (k3s' docs, "certificate").
 */
const RENEWAL = 300 * 24 * 3600;

/** See {@link Distribution}. */
export const k3s: Distribution = {
  refOf: ({ k3s, kubernetes }) => ({
    distribution: "k3s",
    server: k3s.path ? stagedPath(k3s.path, "k3s") : join(inSandbox.artifacts, basename(k3sFolder(k3s)), "k3s"),
    kubectl: embeddedServer({ kubernetes }),
    ...(k3s.path === undefined ? { version: k3s.version } : {}),
  }),
  takes: ({ k3s: { path }, kubernetes }) => ({
    artifacts: [wanted({ name: serverOf(kubernetes) })], // kubectl, and the service proxy
    own: path === undefined ? [] : [{ source: path, name: "k3s" }],
    download: path === undefined,
  }),
  tellsAgents: true,
  awaitsRuntime: false,
  hasControllers: false,
  // Its kubelet's cAdvisor reads gVisor's cgroups as upstream does, and finds cpuacct.usage_percpu missing. Then it has no
  // figures at all, of the node's file systems neither.
  lacks: [
    "kubectl top and autoscaling by CPU or memory: no figures",
    "a resize of a pod's memory in place: it waits for a figure that there is not",
    "eviction of pods before memory is used up: they are killed instead, as said above",
  ],
  settings: renderKubeletConfig(),
  disabled: () => DISABLED,
  problemsOf,
  versionOption: ({ k3s }, from) => ({
    option: "k3s.version",
    value: k3s.version,
    brings: "",
    newer: `${from} or newer`,
    next: `a v${nextTo(from)} first`,
  }),
  open: (ref) => new K3sServer(ref),
};

/** What stands in the way of the official release: its source is looked at before anything is made. */
function problemsOf({ k3s }: StackConfig): Problem[] {
  if (k3s.path !== undefined || existsSync(k3sFolder(k3s))) return [];
  if (k3s.airgap !== undefined) {
    const absent = Object.values(releaseFiles()).filter((file) => !existsSync(join(k3s.airgap!, file)));
    const message = `${absent.join(" and ")} of ${k3s.version} must be in it`;
    return absent.length === 0 ? [] : [{ option: "k3s.airgap", value: k3s.airgap, message }];
  }
  const tools = ["curl", "flock"].filter((tool) => says(tool, "--version") === "");
  return tools.map((tool) => {
    const message = `there is no ${tool} to download it with; install it, or set k3s.airgap or k3s.path`;
    return { option: "distribution", value: "k3s", message };
  });
}

/** What a manifest holds, as far as it matters here. */
interface KubernetesObject {
  apiVersion?: string;
  kind?: string;
  metadata?: { name?: string; namespace?: string };
}

/** What of the config file says how the server is asked. */
interface NodeConfig {
  "disable-agent"?: boolean;
  "kube-controller-manager-arg"?: string[];
  "kube-scheduler-arg"?: string[];
}

const sha256 = (text: string) => createHash("sha256").update(text).digest("hex");

/** The files of a server and of an agent. */
function filesOf(config: string): MachineFile[] {
  const kubelet = `${inSandbox.nodeData}/agent/etc/kubelet.conf.d/10-gvisor-k3s.conf`;
  return [
    { path: inSandbox.nodeConfig, content: config, mode: 0o600 },
    { path: kubelet, content: renderKubeletConfig(), mode: 0o600 },
  ];
}

class K3sServer implements Server {
  readonly #ref: ServerRef;
  // k3s writes it for its kube-proxy, whether that runs or not.
  readonly proxyKubeconfig = `${inSandbox.nodeData}/agent/kubeproxy.kubeconfig`;

  constructor(ref: ServerRef) {
    this.#ref = ref;
  }

  service(config: string): ReturnType<Server["service"]> {
    const command = [this.#ref.server, "server", "--config", inSandbox.nodeConfig];
    return { service: { name: "server", command, stopSeconds: 15, restartEvery: RENEWAL }, files: filesOf(config) };
  }

  /**
   * k3s' own agent, which this project's program starts, and has beside it what such a node needs. It knows the server by
   * the hash in the token, and is known by a password of its own from its first start on (k3s' docs, "k3s token"): made of
   * the token's secret, so that a machine that is made anew has the same.
   */
  agent(config: string, { token, serverCA, clientCA }: Invitation): ReturnType<Server["agent"]> {
    const command = [this.#ref.kubectl, "join", "--config", inSandbox.nodeConfig, "--agent", this.#ref.server];
    const password = sha256(`the password of a node: ${token}`).slice(0, 32);
    return {
      service: { name: "agent", command, stopSeconds: 15, restartEvery: RENEWAL },
      files: [
        ...filesOf(config),
        { path: inSandbox.joinToken, content: `K10${sha256(serverCA)}::${token}\n`, mode: 0o600 },
        { path: inSandbox.nodePassword, content: `${password}\n`, mode: 0o600 },
        ...authorityFiles(serverCA, clientCA),
      ],
    };
  }

  /**
   * k3s notes nothing of its stages, so it is asked, and all of one process: the database tells what was, and a process
   * that ends over its scheduler's arguments answers for some seconds.
   */
  async reached(machine: Machine, stage: Stage, config: string): Promise<void> {
    const questions = this.#questions(machine.ref.name, stage, (parse(config) ?? {}) as NodeConfig);
    const server = async () => (await serviceStates(machine)).server ?? { pid: 0, restarts: 0, lastExit: "" };
    const before = (await server()).restarts;
    const answers = async () => {
      const { pid } = await server();
      let answered = pid !== 0;
      for (const { question, good } of questions) {
        if (!answered) break;
        const output = await worked(this.#kubectl(machine, ["--request-timeout=5s", ...question]));
        answered = output !== undefined && good.test(output);
      }
      const now = await server();
      if (answered && now.pid === pid) return true;
      if (now.restarts - before >= ATTEMPTS)
        throw new Error(
          `server keeps ending, the last time with ${now.lastExit}\n${await lastWords(machine, "server")}`,
        );
      await delay(500); // each question is a process, beside a server that needs every CPU
      return undefined;
    };
    await waitFor("server answers", PATIENCE, answers, () => lastWords(machine, "server"));
    const skipped = await this.#skipped(machine);
    if (skipped.length === 0) return;
    const version = this.#ref.version ?? "this k3s";
    throw new Error(
      `${version} does not know, and skips, what its config has: ${skipped.join(", ")}; take another k3s`,
    );
  }

  /** Removes what other releases have unpacked, some 200 MB each. */
  async tidy(machine: Machine): Promise<void> {
    const script =
      'cd "$1" 2> /dev/null && current=$(readlink current) || exit 0; ' +
      'exec find . -mindepth 1 -maxdepth 1 -type d ! -name cni ! -name "$current" -exec rm -rf {} +';
    await machine.exec(["/bin/sh", "-c", script, "sh", `${inSandbox.nodeData}/data`], { timeout: 60_000 });
  }

  /** What is asked, and what a good answer is. */
  #questions(node: string, stage: Stage, config: NodeConfig): { question: string[]; good: RegExp }[] {
    const account = { question: ["get", "serviceaccount", "default", "--output=name"], good: /./ };
    if (stage === "api") return [account];
    const args = [config["kube-controller-manager-arg"] ?? [], config["kube-scheduler-arg"] ?? []].flat();
    const conditions = "{range .items[?(@.metadata.name!='etcd-0')]}{.conditions[*].status}{end}";
    // The API server asks where they are by default.
    const elsewhere = args.some((argument) => argument.startsWith("secure-port="));
    const controllers = {
      question: ["get", "componentstatuses", `--output=jsonpath=${conditions}`],
      good: /^TrueTrue$/,
    };
    const kubelet = { question: ["get", `--raw=/api/v1/nodes/${node}/proxy/healthz`], good: /^ok$/ };
    const ready = "{.status.conditions[?(@.type=='Ready')].status}";
    return [
      account,
      ...(elsewhere ? [] : [controllers]),
      ...(config["disable-agent"] ? [] : [kubelet]),
      ...(stage === "node"
        ? [{ question: ["get", `node/${node}`, `--output=jsonpath=${ready}`], good: /^True$/ }]
        : []),
    ];
  }

  /** The keys of its config file that it did not know at its last start: it says so once, and goes on without. */
  async #skipped(machine: Machine): Promise<string[]> {
    const [unknown, started] = ["Unknown flag", "Starting k3s v"]; // k3s: pkg/configfilearg, pkg/cli/server
    const grep = ["/bin/grep", "-aE", `${unknown}|${started}`, logOf("server")];
    const said = (await worked(machine.exec(grep)))?.split("\n") ?? [];
    const last = said.findLastIndex((line) => line.includes(started));
    const previous = said.slice(0, Math.max(last, 0)).findLastIndex((line) => line.includes(started));
    return said
      .slice(previous + 1, Math.max(last, 0))
      .map((line) => /Unknown flag -*([\w-]{1,64})/.exec(line)?.[1] ?? "?")
      .slice(0, 20);
  }

  #kubectl(machine: Machine, args: string[], options: ExecOptions = {}): Promise<Output> {
    return machine.exec([this.#ref.kubectl, "kubectl", `--kubeconfig=${inSandbox.kubeconfig}`, ...args], options);
  }

  /**
   * k3s has a folder of manifests, and never deletes what a file that left it brought (k3s's docs, "Auto-deploying
   * manifests"), so kubectl does it: what was applied last is kept, and what is in it and not in the new content is
   * deleted. Empty content deletes all.
   */
  async apply(machine: Machine, manifest: string, content: string): Promise<void> {
    const { name, home } = machine.ref;
    const last = join(hostPaths(name, home).manifests, `${manifest}.yaml`);
    if (content !== "") {
      await this.#kubectl(machine, ["apply", "--server-side", "--force-conflicts", "--filename=-"], { input: content });
    }
    const stays = new Set(objectsOf(content).map(identity));
    const before = existsSync(last) ? readFileSync(last, "utf8") : "";
    const gone = objectsOf(before).filter((object) => !stays.has(identity(object)));
    if (gone.length > 0) {
      const input = JSON.stringify({ apiVersion: "v1", kind: "List", items: gone });
      await this.#kubectl(machine, ["delete", "--ignore-not-found", "--filename=-"], { input });
    }
    await writeWhole(last, content);
  }

  async withdraw(machine: Machine, manifest: string): Promise<void> {
    await this.apply(machine, manifest, "");
  }
}

function objectsOf(content: string): KubernetesObject[] {
  type Document = KubernetesObject & { items?: KubernetesObject[] };
  const documents = parseAllDocuments(content).map((document) => document.toJS() as Document | null);
  return documents.flatMap((object) => (object === null ? [] : (object.items ?? [object])));
}

/** What makes an object the same one: not its version, of which an API group has several for one object. */
function identity({ apiVersion = "", kind, metadata }: KubernetesObject): string {
  const group = apiVersion.includes("/") ? apiVersion.split("/")[0] : "";
  return [group, kind, metadata?.namespace ?? "default", metadata?.name].join("/");
}

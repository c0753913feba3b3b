import { X509Certificate } from "node:crypto";
import { inSandbox } from "../config/paths.ts";
import type { Machine } from "../machines/machine.ts";
import type { Invitation } from "../servers/server.ts";
import { CommandError, lastLines, type Output } from "../system/run.ts";
import type { OnMachine, Step } from "./step.ts";

export interface MemberParams extends OnMachine {
  /** The embedded server by its path on the machine. */
  program: string;
  /** The node that joins. */
  node: string;
  /** Where it is. */
  address: string;
  /** The version of its kubelet, as the node tells it, where it is drained before it gets another one. */
  kubelet?: string;
}

/** Seconds that a node's pods have to move before it is removed. */
const DRAIN = 120;

/** Seconds after which a pod that should have ended is not waited for: its node may be gone. */
const OVERDUE = 30;

/**
 * An annotation of a node that takes no pods because it was drained for another kubelet, and not because a user wants it
 * so.
 */
const DRAINED = "gvisor-k3s/drained";

/**
 * Has the server let a node join, and prints what the node needs to: what comes from the machine is taken for a token and
 * two certificates, and nothing else. A node that is to be drained before it gets another kubelet is.
 * @throws Error with what keeps it from being drained; it is cordoned then
 */
export const inviteNode: Step<MemberParams, Invitation> = {
  name: ({ node }) => `member-${node}`,
  async run({ program, node, address, kubelet }, { machine, say }) {
    const kubectl = kubectlOn(machine, program);
    const found = kubelet === undefined ? undefined : await nodeOf(kubectl, node);
    // A node that has not told which it has, as one of a fork, has no pods that run.
    if (found?.kubelet !== undefined && found.kubelet !== kubelet) {
      say(`draining ${node}, which gets ${kubelet} in place of ${lastLines(found.kubelet, 1)}`);
      if (!found.cordoned) await kubectl(["annotate", "node", node, "--overwrite", `${DRAINED}=`]);
      await drain(kubectl, node, "its kubelet is not exchanged");
    }
    const { stdout } = await machine.exec(
      [program, "invite", "--config", inSandbox.nodeConfig, "--node", node, "--address", address],
      { timeout: 60_000 },
    );
    return invitationIn(stdout);
  },
};

/** Has a node that was drained for its kubelet take pods again. */
export const returnNode: Step<Omit<MemberParams, "address">> = {
  name: ({ node }) => `member-${node}`,
  async run({ program, node }, { machine }) {
    const kubectl = kubectlOn(machine, program);
    if (!(await nodeOf(kubectl, node))?.drained) return;
    await kubectl(["uncordon", node]);
    await kubectl(["annotate", "node", node, `${DRAINED}-`]);
  },
};

/** Runs kubectl on the server's machine, by default for at most half a minute. */
type Kubectl = (args: string[], seconds?: number) => Promise<Output>;

const kubectlOn =
  (machine: Machine, program: string): Kubectl =>
  (args, seconds = 30) =>
    machine.exec([program, "kubectl", ...args], { timeout: seconds * 1000 });

/** What is known of a node; undefined of one that is not there. */
async function nodeOf(kubectl: Kubectl, node: string) {
  const { stdout } = await kubectl(["get", "node", node, "--ignore-not-found", "--output=json"]);
  if (stdout.trim() === "") return undefined;
  const { metadata, spec, status } = (JSON.parse(stdout) ?? {}) as {
    metadata?: { annotations?: Record<string, string> };
    spec?: { unschedulable?: boolean };
    status?: { nodeInfo?: { kubeletVersion?: string } };
  };
  return {
    drained: metadata?.annotations?.[DRAINED] !== undefined,
    cordoned: spec?.unschedulable === true,
    kubelet: status?.nodeInfo?.kubeletVersion ? String(status.nodeInfo.kubeletVersion) : undefined,
  };
}

/**
 * Has no pod be on a node but those of daemon sets.
 * @param kept what follows where that is not reached, for the error
 */
async function drain(kubectl: Kubectl, node: string, kept: string): Promise<void> {
  const args = [
    "drain",
    node,
    "--ignore-daemonsets",
    "--delete-emptydir-data",
    "--force",
    `--timeout=${DRAIN}s`,
    `--skip-wait-for-delete-timeout=${OVERDUE}`,
  ];
  await kubectl(args, DRAIN + 30).catch((error: unknown) => {
    const said = error instanceof CommandError ? lastLines(error.output, 10) : (error as Error).message;
    throw new Error(
      `node ${node} is not drained within ${DRAIN} s, so ${kept}: ${said}\n` +
        "remove what holds it (a PodDisruptionBudget, say), or the pods, and run it again; " +
        `\`kubectl uncordon ${node}\` has it take pods again`,
      { cause: error },
    );
  });
}

/**
 * Takes an invitation out of what a machine printed.
 * @throws Error that says what of it is none
 */
export function invitationIn(text: string): Invitation {
  const { token, serverCA, clientCA } = JSON.parse(text) as Record<keyof Invitation, unknown>;
  if (typeof token !== "string" || !/^[a-z0-9]{6}\.[a-z0-9]{16}$/.test(token)) {
    throw new Error("the server printed no token by which a node could join");
  }
  const certificate = (what: string, pem: unknown) => {
    try {
      return new X509Certificate(String(pem)).toString();
    } catch (error) {
      throw new Error(`the server printed no ${what}: ${(error as Error).message}`, { cause: error });
    }
  };
  return { token, serverCA: certificate("server CA", serverCA), clientCA: certificate("client CA", clientCA) };
}

/**
 * Drains a node and has the server forget it. Its volumes are told: what is on them ends with it.
 * @throws Error with what keeps it from being drained; it is cordoned then, and its pods live on
 */
export const removeNode: Step<MemberParams> = {
  name: ({ node }) => `member-${node}`,
  async run({ program, node }, { machine, say }) {
    const kubectl = kubectlOn(machine, program);
    if ((await nodeOf(kubectl, node)) !== undefined) {
      await tellVolumes(kubectl, node, say);
      await drain(kubectl, node, "it is not removed");
    }
    await machine.exec([program, "forget", "--config", inSandbox.nodeConfig, "--node", node], { timeout: 60_000 });
  },
};

async function tellVolumes(kubectl: Kubectl, node: string, say: (line: string) => void): Promise<void> {
  const terms = "{.spec.nodeAffinity.required.nodeSelectorTerms[*].matchExpressions[*].values[*]}";
  const path = `--output=jsonpath={range .items[*]}{.metadata.name} ${terms}{"\\n"}{end}`;
  const { stdout } = await kubectl(["get", "persistentvolumes", path]);
  const volumes = stdout
    .split("\n")
    .map((line) => line.trim().split(/\s+/))
    .filter(([, ...nodes]) => nodes.includes(node))
    .map(([name]) => name!);
  if (volumes.length > 0) say(lastLines(`node ${node} goes, and with it what is on ${volumes.join(", ")}`, 1));
}

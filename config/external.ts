import { dirname, resolve } from "node:path";
import { parseDocument } from "yaml";
import type { Problem } from "./problems.ts";
import type { StackConfig } from "./schema.ts";

/** Fields of a kubeconfig that are paths, which it may give from its own folder. */
const FILES = [
  ["clusters", "cluster", "certificate-authority"],
  ["users", "user", "client-certificate"],
  ["users", "user", "client-key"],
  ["users", "user", "tokenFile"],
  ["users", "user", "exec.command"],
] as const;

/**
 * A cluster's kubeconfig with the context that is asked for as its current one, and with whole paths: it is used from
 * elsewhere.
 * @param text what is in the file
 */
export function externalKubeconfig(text: string, { kubeconfig: file, context }: StackConfig["external"]): string {
  const document = parseDocument(text);
  if (context !== undefined) document.set("current-context", context);
  for (const [list, inner, field] of FILES) {
    const entries = (document.toJS() as Record<string, unknown[]>)[list] ?? [];
    for (const index of entries.keys()) {
      const place = [list, index, inner, ...field.split(".")];
      const path = document.getIn(place);
      // A command without a slash is looked for on PATH.
      const isPath = typeof path === "string" && (!field.endsWith("command") || path.includes("/"));
      if (isPath) document.setIn(place, resolve(dirname(file!), path));
    }
  }
  return document.toString();
}

interface Kubeconfig {
  contexts?: { name: string; context?: { user?: string } }[];
  users?: { name: string; user?: { exec?: { command?: unknown } } }[];
  "current-context"?: string;
}

/** The program that is run for the credentials of a context; undefined if there is none. */
function programFor({ contexts = [], users = [] }: Kubeconfig, wanted: string): string | undefined {
  const name = contexts.find((context) => context.name === wanted)?.context?.user;
  const exec = users.find((user) => user.name === name)?.user?.exec;
  return exec ? String(exec.command) : undefined;
}

/**
 * What is wrong with a kubeconfig, as far as the file tells.
 * @param read returns what is in the file
 */
export function kubeconfigProblems(
  { kubeconfig: file, context, exec }: StackConfig["external"],
  read: (file: string) => string,
): Problem[] {
  const problem = (message: string): Problem[] => [{ option: "external.kubeconfig", value: file, message }];
  let config: Kubeconfig | null;
  try {
    config = parseDocument(read(file!), { prettyErrors: false }).toJS() as typeof config;
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    return problem(code === "ENOENT" ? "there is no such file" : `it cannot be read (${message})`);
  }
  const contexts = (typeof config === "object" ? (config?.contexts ?? []) : []).map(({ name }) => name);
  if (contexts.length === 0) return problem("it is no kubeconfig, or has no context in it");
  const wanted = context ?? config?.["current-context"];
  if (wanted !== undefined && contexts.includes(wanted)) {
    const program = exec ? undefined : programFor(config!, wanted);
    if (program === undefined) return [];
    return problem(
      `it has a program run for its credentials (${program}), on this machine and with your rights; set external.exec ` +
        "to true if it may, or give a kubeconfig with a certificate or a token",
    );
  }
  const option =
    context === undefined
      ? { option: "external.kubeconfig", value: file }
      : { option: "external.context", value: context };
  return [
    {
      ...option,
      message:
        `${context === undefined ? "it has no current context; set external.context" : "there is no such context in the kubeconfig"}; ` +
        `there are: ${contexts.join(", ")}`,
    },
  ];
}

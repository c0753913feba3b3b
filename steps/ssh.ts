/**
 * Another machine, reached by OpenSSH's client: what is asked of it, and what is run on it beside Pulumi's own remote
 * commands. Both check the same key of the machine, and neither asks for a password.
 * @module
 */
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { remotePaths, type SshTarget } from "../config/ssh.ts";
import type { Problem } from "../config/problems.ts";

/** The machine's public key as its owner noted it, "TYPE BASE64"; of several the one that is best checked. */
export function hostKey({ host, port, knownHosts }: SshTarget): string | undefined {
  const entry = port === 22 ? host : `[${host}]:${port}`;
  const lines = (said("ssh-keygen", ["-F", entry, "-f", knownHosts]) ?? "")
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("#"));
  const keys = lines.filter((line) => !line.startsWith("@")).map((line) => line.split(/\s+/).slice(1, 3).join(" "));
  const preference = ["ssh-ed25519", "ecdsa-", "ssh-rsa"];
  const rank = (key: string) => preference.findIndex((type) => key.startsWith(type));
  return keys.filter((key) => rank(key) >= 0).sort((a, b) => rank(a) - rank(b))[0];
}

/**
 * ssh's arguments before the command. No file of the user's configuration is read: Pulumi's remote commands do not read
 * it either.
 */
export function sshArguments(target: SshTarget, ...more: string[]): string[] {
  const { host, port, user, privateKey, knownHosts } = target;
  const options = {
    BatchMode: "yes",
    StrictHostKeyChecking: "yes",
    UserKnownHostsFile: `"${knownHosts}"`, // several may be given, a blank between them
    GlobalKnownHostsFile: "none",
    ConnectTimeout: "15",
    LogLevel: "ERROR",
    ...(privateKey === undefined ? {} : { IdentityFile: privateKey, IdentitiesOnly: "yes", IdentityAgent: "none" }),
  };
  const type = hostKey(target)?.split(" ")[0];
  const algorithms =
    type === undefined ? [] : ["-o", `HostKeyAlgorithms=${type === "ssh-rsa" ? "rsa-sha2-512,rsa-sha2-256" : type}`];
  return [
    "-F",
    "none",
    ...Object.entries(options).flatMap(([name, value]) => ["-o", `${name}=${value}`]),
    ...algorithms,
    "-p",
    String(port),
    "-l",
    user,
    ...more,
    "--",
    host,
  ];
}

/**
 * The command line that runs a program on the machine as root. SSH knows commands as one text for a shell only, so each
 * argument is quoted.
 */
export function sshCommand(target: SshTarget, args: readonly string[]): string[] {
  return [
    "ssh",
    ...sshArguments(target),
    `${asRoot(target)}env ${[`PATH=${remotePaths.programs}`, ...args].map(quoted).join(" ")}`,
  ];
}

/** What stands before a command that needs root. */
export const asRoot = ({ sudo }: SshTarget) => (sudo ? "sudo -n " : "");

/** An argument as a POSIX shell takes it literally. */
export function quoted(argument: string): string {
  return `'${argument.replaceAll("'", "'\\''")}'`;
}

/**
 * Runs a script on the machine as root, and waits for it: components and checks need the answer before they go on.
 * @throws SshError if the machine is not reached, or the script fails
 */
export function askOverSsh(target: SshTarget, script: string): string {
  const [program, ...args] = sshCommand(target, ["sh", "-s"]);
  try {
    return execFileSync(program!, args, {
      encoding: "utf8",
      input: script,
      stdio: ["pipe", "pipe", "pipe"],
      timeout: 60_000,
    });
  } catch (error) {
    const { status, stderr, code } = error as { status?: number | null; stderr?: string; code?: string };
    throw new SshError(target, status ?? undefined, (stderr ?? "").trim() || String(code ?? (error as Error).message));
  }
}

/** The machine was not reached, or did not do what it was asked. */
export class SshError extends Error {
  /** The same as what is wrong with an option. */
  readonly problem: Problem;

  constructor(target: SshTarget, status: number | undefined, output: string) {
    const problem = problemOf(target, status, output);
    super(`${problem.option} = ${JSON.stringify(problem.value)}: ${problem.message}`);
    this.name = "SshError";
    this.problem = problem;
  }
}

/** What ssh (exit code 255) or sudo says, by the option that helps. */
function problemOf(
  { host, port, user, privateKey, knownHosts }: SshTarget,
  status: number | undefined,
  output: string,
): Problem {
  const last = output.split("\n").at(-1)!;
  if (/HOST IDENTIFICATION HAS CHANGED|Host key verification failed|No \S+ host key is known/.test(output)) {
    return {
      option: "ssh.knownHosts",
      value: knownHosts,
      message:
        `the key of ${host} is not the one that is noted there: it was set up anew, or somebody answers ` +
        `in its place. Compare \`ssh-keyscan -p ${port} ${host}\` with the machine's own ` +
        `/etc/ssh/ssh_host_*_key.pub; if they are the same, \`ssh-keygen -R ` +
        `${port === 22 ? host : `[${host}]:${port}`} -f ${knownHosts}\` forgets the old one`,
    };
  }
  if (/Permission denied/.test(output) && status === 255) {
    const by =
      privateKey === undefined
        ? { option: "ssh.privateKey", value: undefined, message: "no key of the SSH agent is" }
        : { option: "ssh.privateKey", value: privateKey, message: "the key is not" };
    return {
      ...by,
      message:
        `${by.message} accepted by ${host} for the user ${user} (${last}); put its public part into that ` +
        "user's ~/.ssh/authorized_keys, or give another key",
    };
  }
  if (/^sudo:|not in the sudoers/m.test(output))
    return {
      option: "ssh.user",
      value: user,
      message:
        `it cannot become root on ${host} without a password (${last}); allow that in sudoers, or give ` +
        "another user",
    };
  if (status === 255 || status === undefined)
    return { option: "ssh.host", value: host, message: `it is not reached at port ${port} (${last})` };
  return { option: "ssh.host", value: host, message: `what was run there ended with ${status}: ${last}` };
}

/** What is wrong with the keys, as far as this machine tells. */
export function keyProblems(target: SshTarget): Problem[] {
  const { host, port, privateKey, knownHosts } = target;
  const problems: Problem[] = [];
  if (said("ssh", ["-V"]) === undefined)
    return [
      {
        option: "target",
        value: "ssh",
        message: "there is no OpenSSH client here; install it (Debian: apt-get install openssh-client)",
      },
    ];
  if (privateKey !== undefined && !existsSync(privateKey))
    problems.push({ option: "ssh.privateKey", value: privateKey, message: "there is no such file" });
  else if (privateKey !== undefined && !readFileSync(privateKey, "utf8").includes("PRIVATE KEY-----"))
    problems.push({
      option: "ssh.privateKey",
      value: privateKey,
      message: "it is no private key; give the file without .pub",
    });
  else if (privateKey !== undefined && said("ssh-keygen", ["-y", "-P", "", "-f", privateKey]) === undefined)
    problems.push({
      option: "ssh.privateKey",
      value: privateKey,
      message:
        "it cannot be used as it is: it is encrypted, or others may read it. An encrypted key is for the " +
        "SSH agent: `ssh-add` it and leave the option out; else `chmod 600` it",
    });
  if (privateKey === undefined && process.env.SSH_AUTH_SOCK === undefined)
    problems.push({
      option: "ssh.privateKey",
      message: "it is missing, and no SSH agent runs (SSH_AUTH_SOCK); give the file of a key",
    });
  if (hostKey(target) === undefined) {
    problems.push({
      option: "ssh.knownHosts",
      value: knownHosts,
      message:
        `no key of ${host} is noted there, so nobody could tell it from another machine; \`ssh-keyscan ` +
        `-p ${port} ${host} >> ${knownHosts}\`, and compare that with the machine's own ` +
        "/etc/ssh/ssh_host_*_key.pub",
    });
  }
  return problems;
}

/** What a program prints on standard output; undefined if it fails. */
function said(program: string, args: string[]): string | undefined {
  try {
    return execFileSync(program, args, { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"], timeout: 10_000 });
  } catch {
    return undefined;
  }
}

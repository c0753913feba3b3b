/**
 * What the CNCF's programme of conformance takes of a run: a folder of four files, laid out as its repository
 * k8s-conformance has them ("Contents of the PR" in its instructions.md).
 * @module
 */
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { stringify } from "yaml";
import { ownPackage } from "../system/package.ts";
import type { Run } from "./results.ts";

/** What the run has written. */
export interface Reports {
  /** What ginkgo printed. */
  log: string;
  /** What upstream's framework made of it with --report-dir. */
  junit: string;
}

/**
 * Writes the folder of a run of all tests into conformance/, in place of the last one of that release and server.
 * @param nodes how many nodes the cluster had
 * @returns the folder
 */
export function writeSubmission(run: Run, nodes: number, { log, junit }: Reports): string {
  const minor = run.kubernetes.split(".").slice(0, 2).join(".");
  const name = run.server.startsWith("k3s") ? "gvisor-k3s-with-k3s" : "gvisor-k3s";
  const folder = join(import.meta.dirname, `v${minor}`, name);
  mkdirSync(folder, { recursive: true });
  copyFileSync(log, join(folder, "e2e.log"));
  writeFileSync(join(folder, "junit_01.xml"), withoutSkipped(readFileSync(junit, "utf8")));
  writeFileSync(join(folder, "PRODUCT.yaml"), productFile());
  writeFileSync(join(folder, "README.md"), instructions(run, nodes));
  return folder;
}

/** Seven thousand tests of e2e.test are none of the run's, and would be all that one sees. */
export function withoutSkipped(junit: string): string {
  return junit.replace(/\s*<testcase [^>]*status="skipped"[^>]*>.*?<\/testcase>/gs, "");
}

/** The addresses that an applicant has to give (website, repository, documentation, logo, contact) are its own. */
function productFile(): string {
  return stringify({
    vendor: ownPackage.name,
    name: ownPackage.name,
    version: `v${ownPackage.version}`,
    type: "installer",
    description: ownPackage.description,
  });
}

function instructions({ server, procs, kubernetes, gvisor }: Run, nodes: number): string {
  const k3s = server.startsWith("k3s");
  return `# Conformance of ${ownPackage.name} v${ownPackage.version}, Kubernetes ${kubernetes}, gVisor ${gvisor}

Written by \`make conformance\`. On a Linux host with Node.js 24 and root, in a clone of the project:

\`\`\`sh
make conformance GROUPS=all NODES=${nodes} PROCS=${procs}${k3s ? " K3S=/path/to/k3s" : ""}
\`\`\`

It builds \`e2e.test\` from the Kubernetes module that the node is built from, brings up a cluster of ${nodes} nodes, each in a
gVisor sandbox of its own, runs every test of [Conformance] and of network policies, and removes the cluster.
To have only the cluster: \`gvisor-k3s up\` with the option \`nodes: [{ name: n, count: ${nodes - 1} }]\`.

\`junit_01.xml\` leaves out the tests that were not chosen, which e2e.test reports as skipped.
`;
}

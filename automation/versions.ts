/**
 * Which versions of Kubernetes there are.
 * @module
 */
import { existsSync } from "node:fs";
import { artifactFolder, artifactId, manifest, serverOf } from "../artifacts/artifacts.ts";
import { isInstalled } from "../artifacts/release.ts";
import { type KubernetesMinor, kubernetesMinors, newestKubernetes } from "../config/kubernetes.ts";

/** A version of Kubernetes that a cluster can have. */
export interface KubernetesVersion {
  /** What the option `kubernetes` takes. */
  kubernetes: KubernetesMinor;
  /** The version of it that this gvisor-k3s brings, "v1.37.2". */
  version: string;
  /** Whether clusters have it whose options say nothing. */
  default: boolean;
  /** Whether it is here. */
  ready: boolean;
  /** Where it comes from when it is taken first: the npm package that has it, or a build from source. */
  source: { package: string; installed: boolean } | "build";
}

/** The versions of Kubernetes that there are, the newest first. */
export function kubernetesVersions(): KubernetesVersion[] {
  const { kubernetes, release } = manifest();
  return kubernetesMinors.toReversed().map((minor) => {
    const server = { name: serverOf(minor) };
    const archive = release?.archives[artifactId(server)];
    return {
      kubernetes: minor,
      version: `v${kubernetes[minor]}`,
      default: minor === newestKubernetes,
      ready: existsSync(artifactFolder(server)),
      source:
        archive === undefined
          ? "build"
          : { package: archive.package, installed: isInstalled(archive.package, release!) },
    };
  });
}

/** The same as lines for people. */
export function asText(versions: readonly KubernetesVersion[]): string {
  const lines = versions.map(({ kubernetes, version, default: usual, ready, source }) => {
    const from = source === "build" ? "is built when it is taken first" : comesFrom(source);
    return `${kubernetes}  ${version.padEnd(9)} ${[...(usual ? ["the default"] : []), ready ? "ready" : from].join(", ")}`;
  });
  return `${lines.join("\n")}\n`;
}

function comesFrom({ package: name, installed }: Exclude<KubernetesVersion["source"], "build">): string {
  return installed ? `in ${name}` : `in ${name}, which is not installed, or at GVISOR_K3S_ARTIFACTS`;
}

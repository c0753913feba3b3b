/**
 * What is built, and from what: the Go modules, their packages and flags. What is built is named by a hash of all of it;
 * see toolchain/make.ts.
 * @module
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { ArtifactName } from "../artifacts/artifacts.ts";
import { type KubernetesMinor, newestKubernetes } from "../config/kubernetes.ts";

/** The project's folder. */
export const root = join(import.meta.dirname, "..");

/** One `go build` in one module. */
export interface GoBuild {
  /** The module's folder, from the project's root. */
  module: string;
  /** What it pins, where that is not its go.mod: another file, from the module's folder, with a .sum beside it. */
  modfile?: string;
  /** What to build: packages of that module or of one that it pins. */
  packages: string[];
  /** The program's file name, where the package's own would not do. */
  output?: string;
  tags?: string[];
  /** Links C code, statically. */
  cgo?: boolean;
  /** Builds the package's tests. */
  test?: boolean;
  /** Values for string variables, for the linker's -X. */
  variables?: Record<string, string>;
  /** The Go toolchain that it takes, where the machine's own will not do; Go gets it as it gets modules. */
  toolchain?: string;
}

/** The server's pins for a minor version of Kubernetes; see {@link GoBuild.modfile}. */
const pinsOf = (minor: KubernetesMinor): Pick<GoBuild, "modfile"> =>
  minor === newestKubernetes ? {} : { modfile: `versions/${minor}.mod` };

/** The version of Kubernetes that the server is built of for a minor one, without the leading v. */
export const kubernetesVersion = (minor: KubernetesMinor): string =>
  moduleVersion("node/server", "k8s.io/kubernetes", pinsOf(minor).modfile);

/** The server and the service proxy, with the same settings, so that what both are made of is compiled once. */
const serverBuilds = (minor: KubernetesMinor): GoBuild[] =>
  [{ packages: ["."], output: "gvisor-k3s-node" }, { packages: ["./service-proxy"] }].map((build) => ({
    module: "node/server",
    ...pinsOf(minor),
    ...build,
    cgo: true,
    tags: ["sqlite_omit_load_extension"],
    get variables() {
      return versionVariables(minor);
    },
  }));

/** What each artifact is made of, in the order in which it is made. */
export const builds = {
  runsc: [
    {
      module: "toolchain/runsc",
      packages: ["gvisor.dev/gvisor/runsc"],
      get variables() {
        return { "gvisor.dev/gvisor/runsc/version.version": moduleVersion("toolchain/runsc", "gvisor.dev/gvisor") };
      },
    },
  ],
  // Newer toolchains build it, and what they build crashes.
  "runsc-2025-02": [
    {
      module: "toolchain/runsc-2025-02",
      packages: ["gvisor.dev/gvisor/runsc"],
      toolchain: "go1.24.11",
      get variables() {
        return {
          "gvisor.dev/gvisor/runsc/version.version": moduleVersion("toolchain/runsc-2025-02", "gvisor.dev/gvisor"),
        };
      },
    },
  ],
  runc: [{ module: "toolchain/runc", packages: ["github.com/opencontainers/runc"], tags: ["seccomp"], cgo: true }],
  containerd: [
    {
      module: "toolchain/containerd",
      packages: ["containerd", "containerd-shim-runc-v2", "ctr"].map(
        (name) => `github.com/containerd/containerd/v2/cmd/${name}`,
      ),
      get variables() {
        return {
          "github.com/containerd/containerd/v2/version.Version": moduleVersion(
            "toolchain/containerd",
            "github.com/containerd/containerd/v2",
          ),
        };
      },
    },
  ],
  cni: [
    { module: "node/cni", packages: ["./gvisor-bridge"] },
    {
      module: "toolchain/containerd",
      packages: ["ipam/host-local", "main/loopback"].map(
        (name) => `github.com/containernetworking/plugins/plugins/${name}`,
      ),
    },
  ],
  init: [{ module: "node/init", packages: ["."], output: "sandbox-init" }],
  host: [{ module: "host", packages: ["."], output: "gvisor-k3s-host" }],
  wrapper: [{ module: "node/wrapper", packages: ["."], output: "runc-wrapper" }],
  server: serverBuilds(newestKubernetes),
  "server-1.36": serverBuilds("1.36"),
  "server-1.35": serverBuilds("1.35"),
  images: [
    { module: "node/images", packages: ["./testpod", "./mkimage"] },
    { module: "node/coredns", packages: ["."], output: "coredns" },
    { module: "node/metrics-server", packages: ["."], output: "metrics-server" },
  ],
  traefik: [
    {
      module: "toolchain/traefik",
      packages: ["github.com/traefik/traefik/v3/cmd/traefik"],
      get variables() {
        const version = moduleVersion("toolchain/traefik", "github.com/traefik/traefik/v3");
        return { "github.com/traefik/traefik/v3/pkg/version.Version": version };
      },
    },
  ],
  pulumi: [
    {
      module: "toolchain/pulumi",
      packages: ["github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"],
      get variables() {
        return {
          "github.com/pulumi/pulumi/sdk/v3/go/common/version.Version": moduleVersion(
            "toolchain/pulumi",
            "github.com/pulumi/pulumi/pkg/v3",
          ),
        };
      },
    },
  ],
  registry: [{ module: "toolchain/registry", packages: ["github.com/distribution/distribution/v3/cmd/registry"] }],
  helm: [{ module: "toolchain/helm", packages: ["helm.sh/helm/v3/cmd/helm"] }],
  "pulumi-yaml": [
    {
      module: "toolchain/pulumi-yaml",
      packages: ["github.com/pulumi/pulumi-yaml/cmd/pulumi-language-yaml"],
      get variables() {
        return {
          "github.com/pulumi/pulumi-yaml/pkg/version.Version": moduleVersion(
            "toolchain/pulumi-yaml",
            "github.com/pulumi/pulumi-yaml",
          ),
        };
      },
    },
  ],
  "pulumi-sdks": [{ module: "toolchain/pulumi-sdks", packages: ["."] }],
  // With the server's settings, as above; so are the next ones.
  "csi-driver": [
    { module: "node/server", packages: ["./csi-driver"], cgo: true, tags: ["sqlite_omit_load_extension"] },
  ],
  conformance: [
    {
      module: "toolchain/conformance",
      packages: ["k8s.io/kubernetes/test/e2e"],
      test: true,
      output: "e2e.test",
      cgo: true,
      tags: ["sqlite_omit_load_extension"],
      get variables() {
        return versionVariables();
      },
    },
    {
      module: "toolchain/conformance",
      packages: [
        "k8s.io/kubernetes/test/images/agnhost",
        "k8s.io/kubernetes/test/images/nonewprivs",
        "k8s.io/sample-apiserver",
        "github.com/onsi/ginkgo/v2/ginkgo",
      ],
      cgo: true,
      tags: ["sqlite_omit_load_extension"],
    },
    {
      module: "toolchain/conformance",
      packages: ["go.etcd.io/etcd/server/v3"],
      output: "etcd",
      cgo: true,
      tags: ["sqlite_omit_load_extension"],
    },
  ],
  workloads: [{ module: "test/workloads/programs", packages: ["./cert-manager"] }],
  // These two are no part of it: their pins are others, and another workload does not wait for what takes minutes.
  "prometheus-operator": [
    { packages: ["github.com/prometheus-operator/prometheus-operator/cmd/operator"], output: "prometheus-operator" },
    {
      packages: [
        "github.com/prometheus-operator/prometheus-operator/cmd/prometheus-config-reloader",
        "github.com/prometheus/prometheus/cmd/prometheus",
      ],
    },
  ].map((build) => ({
    module: "test/workloads/programs/prometheus-operator",
    // What Prometheus scrapes is found in Kubernetes, and not in all clouds.
    tags: ["remove_all_sd", "enable_kubernetes_sd"],
    ...build,
  })),
  flux: [
    {
      module: "test/workloads/programs/flux",
      packages: ["github.com/fluxcd/source-controller", "github.com/fluxcd/kustomize-controller"],
    },
  ],
  "language-host": [{ module: "standins", packages: ["./cmd/pulumi-language-nodejs"] }],
  standins: [{ module: "standins", packages: ["./cmd/pulumi-resource-command", "./cmd/pulumi-resource-kubernetes"] }],
} satisfies Record<ArtifactName, GoBuild[]>;

/** The version of a module that one of the project's Go modules pins, without the leading v. */
export function moduleVersion(module: string, path: string, modfile = "go.mod"): string {
  const pin = readFileSync(join(root, module, modfile), "utf8").match(
    new RegExp(`^(?:require )?\\s*${path.replaceAll(".", "\\.")} v(\\S+)`, "m"),
  );
  if (!pin) throw new Error(`${module}/${modfile} does not require ${path}`);
  return pin[1]!;
}

function versionVariables(of: KubernetesMinor = newestKubernetes): Record<string, string> {
  const version = kubernetesVersion(of);
  const [major, minor] = version.split(".");
  return Object.fromEntries(
    Object.entries({ gitVersion: `v${version}`, gitMajor: major!, gitMinor: minor!, gitTreeState: "clean" }).map(
      ([name, value]) => [`k8s.io/component-base/version.${name}`, value],
    ),
  );
}

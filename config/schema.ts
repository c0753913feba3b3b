import { createHash } from "node:crypto";
import { basename } from "node:path";
import { z } from "zod";
import {
  isNewer,
  isTooOld,
  KUBELET_SKEW,
  type KubernetesMinor,
  kubernetesMinors,
  minorOf,
  newestKubernetes,
} from "./kubernetes.ts";
import { addressAt, contains, type Mesh, overlap, parseNetwork } from "./network.ts";
import { absolutePath, ociRule, RULE_FORMS } from "./ociRules.ts";
import { type Problem, refuse } from "./problems.ts";
import { blockersAmong, probedQuirks, type QuirkId, quirk } from "./quirks.ts";
import { registriesSchema } from "./registries.ts";

/** Ports that the node's own servers take beside `node.httpsListenPort`, by who takes them. */
export const NODE_PORTS = {
  kubelet: 10250,
  "kubelet health": 10248,
  "controller manager": 10257,
  scheduler: 10259,
} as const;

/** Where Debian's crun is. */
export const CRUN = "/usr/bin/crun";

/** Sandboxes without a `sandbox.subnet` of their own get one from here, chosen by their name. */
export const SUBNET_POOL = parseNetwork("10.107.0.0/16")!;

/** A published port: the host's address, unless it is loopback; the host's port; the node's. */
const PUBLISHED = /^(?:(\d{1,3}(?:\.\d{1,3}){3}):)?([1-9]\d{0,4}):([1-9]\d{0,4})$/;

const quantity = z
  .string()
  .regex(/^[1-9]\d*(Mi|Gi)$/, "a whole number with Mi or Gi behind it, such as 4Gi, is allowed");
const cidr = z
  .string()
  .refine(
    (text) => parseNetwork(text) !== undefined,
    "an IPv4 network such as 10.42.0.0/16, with no bit set behind the prefix, is allowed",
  );
const wholeNumber = (least: number, most: number) => {
  const allowed = `a whole number from ${least} to ${most} is allowed`;
  return z.int(allowed).min(least, allowed).max(most, allowed);
};
const port = wholeNumber(1, 65535);
const cpuTime = z.number().min(0.1, "a number from 0.1 is allowed");
const shortName = z
  .string()
  .regex(
    /^[a-z]([a-z0-9-]{0,10}[a-z0-9])?$/,
    "up to 12 lower-case letters, digits and dashes are allowed, a letter first, no dash last",
  );
const dnsLabel = z
  .string()
  .regex(
    /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/,
    "up to 63 lower-case letters, digits and dashes are allowed, no dash at either end",
  );
const imageName = z
  .string()
  .regex(
    /^[a-z0-9.-]+(:\d+)?\/[a-z0-9._/-]+(:[\w.-]+|@sha256:[0-9a-f]{64})$/,
    "a full image name with registry and tag or digest is allowed, such as registry.example/team/app:1.2",
  );
const componentArguments = (program: string) =>
  z
    .array(z.string().regex(/^[a-z][a-z0-9-]*=.*$/s, `name=value without leading dashes is allowed, such as v=2`))
    .default([])
    .describe(
      `Arguments for ${program} as \`name=value\`, over those that this project sets. Changing them ` +
        "restarts the node's server; pods live on.",
    );

const sshHost = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9.:-]*$/, "a host's name or address is allowed");

/** How a machine is logged in to. */
const sshOptions = {
  port: port.default(22).describe("The port of its SSH server."),
  user: z
    .string()
    .regex(/^[a-z_][a-z0-9_-]{0,31}$/, "a user's name is allowed")
    .default("root")
    .describe("Who is logged in; a user other than root needs sudo without a password."),
  privateKey: absolutePath
    .optional()
    .describe("The file of a private key without a passphrase. Default: the keys of the SSH agent."),
  knownHosts: absolutePath
    .optional()
    .describe(
      "The file that the machine's own key is noted in, as OpenSSH writes it; a machine with another " +
        "key is refused. Default: `~/.ssh/known_hosts`.",
    ),
  sudo: z.boolean().optional().describe("Whether commands are run by `sudo -n`. Default: for any user but root."),
};

const releaseTag = z
  .string()
  .regex(/^v1\.\d+\.\d+(-rc\d+)?\+k3s\d+$/, "a release's tag such as v1.36.4+k3s1 is allowed");

/**
 * Every option of the stack, its default and its doc. The README's table is generated from here.
 * Values are checked one by one here, and against each other in {@link parseStackConfig}.
 */
export const stackSchema = z.strictObject({
  name: shortName.describe(
    "The sandbox's name, one per machine; also the node's name. Default: the stack's name. Changing " +
      "it replaces the sandbox, and the cluster in it is lost.",
  ),
  mode: z
    .enum(["node", "control-plane", "external"])
    .default("node")
    .describe(
      "`node` runs pods. `control-plane` is the API server, the controllers and the scheduler alone: " +
        "for Helm, RBAC, CRDs, admission and server-side dry runs; pods stay Pending. `external` is a " +
        "cluster that is there already (see `external`): nothing is installed, and the outputs and the " +
        "test pod are the same. Changing it replaces the sandbox, and the cluster in it is lost.",
    ),
  external: z
    .strictObject({
      kubeconfig: absolutePath
        .optional()
        .describe("The kubeconfig of a cluster that is there already: k3d's, kind's, a cloud's, another stack's."),
      context: z
        .string()
        .min(1, "a context's name is allowed")
        .optional()
        .describe("Which of its contexts is taken. Default: its current one."),
      exec: z
        .boolean()
        .default(false)
        .describe(
          "Whether the program may be run that the kubeconfig names for its credentials (`exec`), as those of most " +
            "clouds do: on this machine, with your rights, by each command. Without, such a kubeconfig is refused.",
        ),
    })
    .prefault({}),
  quirks: z
    .union([z.literal("auto"), z.array(z.string())])
    .default("auto")
    .describe(
      "What the sandbox's gVisor lacks, by the ids of [docs/quirks.md](docs/quirks.md): `auto` probes " +
        "the sandbox, once; a list is taken as it is, so that a preview of a new sandbox shows every " +
        "line. Changing it changes what they ask for: runc, the wrapper, containerd's config.",
    ),
  target: z
    .enum(["managed", "inside", "ssh"])
    .default("managed")
    .describe(
      "Where the node lives: in a sandbox that is made here (`managed`), on the machine that Pulumi " +
        "runs on, which is a gVisor sandbox itself (`inside`), or on another machine that is one " +
        "(`ssh`). With the latter two there is no runsc, no network namespace, and no way out for pods. " +
        "Changing it replaces the sandbox, and the cluster in it is lost.",
    ),
  from: z
    .string()
    .regex(
      /^[a-z][a-z0-9-]{0,11}(\/[A-Za-z0-9._-]{1,63})?$/,
      "a cluster of this machine, whose newest snapshot is taken, or CLUSTER/SNAPSHOT is allowed",
    )
    .optional()
    .describe(
      "A snapshot that the cluster begins with: `CLUSTER/SNAPSHOT`, or the newest of `CLUSTER`. It has its objects, " +
        "images and volumes, and an identity of its own: names, addresses, certificates, keys, tokens. What `mode`, " +
        "`kubernetes`, `node`, `nodes`, `network` and `containerd` say has to be the same. It needs `target: managed` and " +
        "`distribution: embedded`. Changing it changes nothing of a cluster that is there; one " +
        "that is replaced begins with the snapshot again.",
    ),
  ssh: z
    .strictObject({
      host: sshHost
        .optional()
        .describe(
          "The machine, with `target: ssh`; it needs an SSH server and what [a node " +
            "takes](docs/targets.md#on-another-machine). Changing it, or the port, replaces the sandbox, and the cluster in " +
            "it is lost.",
        ),
      ...sshOptions,
    })
    .prefault({}),
  kubernetes: z
    .enum(kubernetesMinors)
    .optional()
    .describe(
      `The minor version of Kubernetes of the server that is built here, with its kubectl and service proxy; those ` +
        `that there are: ${kubernetesMinors.join(", ")}. Default: ${newestKubernetes}. Another one than the default is ` +
        "built, or fetched, when it is first taken. Changing it restarts the node's server; pods and data live on. A " +
        "downgrade, or more than one minor version at a time, is refused (`gvisor-k3s upgrade NAME --to VERSION` takes " +
        "one after the other); a server that does not become ready makes way for the one of before, with its data.",
    ),
  distribution: z
    .enum(["embedded", "k3s"])
    .default("embedded")
    .describe(
      "The server: `embedded` is built from the Kubernetes modules; `k3s` is the official release (see " +
        "`k3s`), with the same containerd, network, proxy and config file. Changing it on a cluster that " +
        "exists is refused: the two keep their state differently.",
    ),
  k3s: z
    .strictObject({
      version: releaseTag
        .default("v1.36.4+k3s1")
        .describe(
          "The release of k3s, by its tag. It is downloaded once and verified with the release's own " +
            "SHA-256. Changing it restarts the node's server; pods live on. A downgrade, or more than one " +
            "minor version at a time, is refused; a release that does not become ready makes way for the one " +
            "of before, with its data.",
        ),
      mirror: z
        .url({ protocol: /^https?$/, error: "an http or https address is allowed" })
        .optional()
        .describe("What stands before VERSION/FILE in place of GitHub's address."),
      airgap: absolutePath
        .optional()
        .describe(
          "A folder with the release's files (`k3s` or `k3s-arm64`, and `sha256sum-ARCH.txt`), in place of a download.",
        ),
      path: absolutePath.optional().describe("A k3s binary that is taken as it is, in place of a release."),
    })
    .prefault({}),
  sandbox: z
    .strictObject({
      subnet: cidr
        .optional()
        .describe(
          "The link between host and sandbox: an IPv4 network of 4 to 256 addresses; the host takes the " +
            "first address, the node the second. Default: four addresses of 10.107.0.0/16, chosen by `name`. " +
            "Changing it replaces the sandbox, and the cluster in it is lost.",
        ),
      memory: quantity
        .nullable()
        .default("4Gi")
        .describe(
          "What the whole sandbox may use at most, from 512Mi; `null` or `none` for no limit. Changing it restarts nothing; what " +
            "the node counts as its own memory follows at the sandbox's next start.",
        ),
      cpus: cpuTime
        .nullable()
        .default(null)
        .describe(
          "How many CPUs' worth of time the sandbox may use, from 0.1; `null` for no limit. Changing it " +
            "restarts nothing; the number of CPUs that programs see there follows at the sandbox's next start.",
        ),
      platform: z
        .enum(["systrap", "kvm", "ptrace"])
        .default("systrap")
        .describe("How gVisor intercepts system calls. Changing it restarts the sandbox."),
      network: z
        .enum(["sandbox", "host"])
        .default("sandbox")
        .describe(
          "Whose network stack the sandbox uses: gVisor's own (`sandbox`), or the host kernel's (`host`), " +
            "in the sandbox's own network namespace either way. `host` is for old gVisors that refuse the " +
            "other on a newer kernel; it has no veth, so it carries a control plane and no pods. Changing it " +
            "restarts the sandbox.",
        ),
      hostPorts: z
        .union([z.literal("all"), z.array(port)])
        .default([])
        .describe(
          "The host's ports that the sandbox reaches at the host's end of the link, by TCP and UDP: those " +
            "of a registry on the host, say. Others of the host's services are kept from it, also those that " +
            "listen on every address; the host reaches the sandbox either way. `all` filters nothing, for " +
            "hosts whose kernel lacks nftables' egress hook (Linux 5.16). Changing it restarts nothing.",
        ),
      setuid: z
        .boolean()
        .default(true)
        .describe(
          "Whether programs with the setuid or setgid bit (`sudo`, `ping`, `su`) run as who owns them, as they do " +
            "everywhere, unless a pod says `allowPrivilegeEscalation: false`. Changing it restarts the sandbox.",
        ),
      restart: z
        .boolean()
        .default(true)
        .describe(
          "Whether a sandbox that died is started again by its supervisor on the host, with all that was in it. " +
            "Without, the next `up` does it. Changing it restarts nothing.",
        ),
      runsc: absolutePath
        .optional()
        .describe(
          "A `runsc` to use in place of the one that is built from the pinned module. Changing it restarts " +
            "the sandbox.",
        ),
    })
    .prefault({}),
  runtime: z
    .strictObject({
      name: z
        .enum(["runc", "crun"])
        .default("runc")
        .describe(
          "The OCI runtime: `runc`, built here with the patches that the sandbox's quirks ask for, or " +
            "`crun`, the one that is installed on the host. Changing it restarts containerd; running pods " +
            "live on, and are stopped by the runtime that started them.",
        ),
      path: absolutePath
        .optional()
        .describe(
          `A program to use in place of the runtime that is built (\`runc\`, which must be static) or ` +
            `installed (\`crun\`, default \`${CRUN}\`; it is taken with its libraries).`,
        ),
      patches: z
        .array(z.string())
        .default([])
        .describe(
          "Patches by id (`toolchain/runc/patches/ID.patch`) that runc is built with beside those that the " +
            "quirks ask for. Changing them restarts containerd; running pods keep their runc's containers.",
        ),
      rules: z
        .array(ociRule)
        .default([])
        .describe(
          "Changes to every container's OCI spec, in order, after those that the quirks ask for: " +
            "`{dropNamespace}`, `{dropMaskedPath}`, `{dropMount}`, `{unset}`, `{set, value}`, or `{sysctls: show}`, with " +
            "which a pod's sysctls are shown to it and have no effect. Without any there is no wrapper.",
        ),
    })
    .prefault({}),
  containerd: z
    .strictObject({
      snapshotter: z
        .enum(["auto", "overlayfs", "native"])
        .default("auto")
        .describe(
          "How image layers become a container's root: `overlayfs` shares them, `native` copies them; " +
            "`auto` is `overlayfs` unless the sandbox has the quirk overlay-upper. Changing it restarts " +
            "containerd; running pods live on.",
        ),
      logLevel: z
        .enum(["debug", "info", "warn", "error"])
        .default("info")
        .describe("Changing it restarts containerd; running pods live on."),
      containerd: absolutePath
        .optional()
        .describe(
          "A static `containerd` to use in place of the one that is built; `shim` must then be of the same version.",
        ),
      shim: absolutePath
        .optional()
        .describe(
          "A static `containerd-shim-runc-v2` to use in place of the one that is built; it must be of " +
            "containerd's version.",
        ),
    })
    .prefault({}),
  registries: registriesSchema
    .prefault({})
    .describe(
      "Mirrors, credentials and TLS of image registries: the path of a file in the format of k3s's " +
        "registries.yaml, or its content; the files that it names are the host's. Changing credentials " +
        "restarts containerd; the rest holds for the next pull.",
    ),
  proxy: z
    .strictObject({
      http: z
        .url({ protocol: /^https?$/, error: "a URL such as http://proxy.example:3128 is allowed" })
        .optional()
        .describe("The proxy for pulls by http. Changing it restarts containerd."),
      https: z
        .url({ protocol: /^https?$/, error: "a URL such as http://proxy.example:3128 is allowed" })
        .optional()
        .describe("The proxy for pulls by https. Changing it restarts containerd."),
      noProxy: z
        .array(z.string())
        .default([])
        .describe(
          "Hosts, domains and networks that are pulled from without a proxy, beside the node's own. " +
            "Changing it restarts containerd.",
        ),
    })
    .prefault({}),
  node: z
    .strictObject({
      httpsListenPort: port
        .default(6443)
        .describe("The API server's port, on the node's address only. Changing it restarts the node's server."),
      clusterDomain: z
        .string()
        .regex(/^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$/, "a DNS name is allowed")
        .default("cluster.local")
        .describe("The DNS domain of Services and pods."),
      clusterCidr: cidr
        .default("10.42.0.0/16")
        .describe(
          "The pods' addresses; 256 addresses (a /24) are the node's. Changing it does not move pods that run.",
        ),
      serviceCidr: cidr.default("10.43.0.0/16").describe("The Services' addresses."),
      clusterDns: z
        .ipv4("an IPv4 address is allowed")
        .optional()
        .describe("The address of the cluster's DNS Service, inside `serviceCidr`. Default: its tenth address."),
      labels: z
        .record(z.string(), z.string())
        .default({})
        .describe(
          "Labels that the node registers with; one that is registered keeps those that it has, which `kubectl label` " +
            "changes. Changing them restarts the node's server; pods live on.",
        ),
      pruneImagesAt: wholeNumber(1, 100)
        .nullable()
        .default(95)
        .describe(
          "From how many percent of the disk in use on the kubelet deletes images that no container uses, the longest " +
            "unused first, until it is 5 less; it looks every five minutes. The disk is the host's, whoever fills it. " +
            "What was imported from archives stays, and so do the node's own images; `images prune` deletes at once. " +
            "100 or `null` for never. Changing it restarts the node's server; pods live on.",
        ),
      kubeletArgs: componentArguments("the kubelet"),
      apiServerArgs: componentArguments("kube-apiserver"),
      controllerManagerArgs: componentArguments("kube-controller-manager"),
      schedulerArgs: componentArguments("kube-scheduler"),
      files: z
        .record(
          z
            .string()
            .regex(
              /^(\/etc\/kubernetes|\/var\/lib\/kubelet\/seccomp)(\/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$/,
              "a path below /etc/kubernetes or /var/lib/kubelet/seccomp is allowed",
            ),
          absolutePath,
        )
        .default({})
        .describe(
          "Files of the host's that the server or the kubelet is to have, by their paths in the sandbox: what arguments " +
            "name (`audit-policy-file`, `encryption-provider-config`, `oidc-ca-file`) below `/etc/kubernetes`, and seccomp " +
            "profiles below `/var/lib/kubelet/seccomp`. They are secrets of the stack. Changing them restarts the node's " +
            "server; pods live on.",
        ),
    })
    .prefault({}),
  network: z
    .strictObject({
      bridge: z
        .string()
        .regex(/^[a-z][a-z0-9-]{0,14}$/, "up to 15 lower-case letters, digits and dashes are allowed, a letter first")
        .default("cni0")
        .describe("The bridge in the sandbox that pods are attached to."),
      mtu: wholeNumber(1280, 65521)
        .default(65000)
        .describe(
          "The largest packet of pods that start from now on. Nothing leaves the sandbox's memory between " +
            "pods, so a large one is several times faster.",
        ),
      policies: z
        .enum(["enforce", "refuse"])
        .default("enforce")
        .describe(
          "What becomes of NetworkPolicies. `enforce`: they hold, for pods and through Services, and while there are any, " +
            "the frames of all pods pass a filter. A sandbox whose gVisor has no taps cannot do that: each policy gets " +
            "an event there that says so. `refuse`: the API server takes none, so that nobody relies on one.",
        ),
    })
    .prefault({}),
  egress: z
    .strictObject({
      enabled: z
        .boolean()
        .default(true)
        .describe(
          "Whether the node and its pods reach what the host reaches, less the host itself (see " +
            "`sandbox.hostPorts`) and link-local addresses: TCP, UDP, and DNS by the host's name servers. A " +
            "process on the host makes the connections; nothing of the host's own network is changed. A " +
            "control plane alone has none. Changing it restarts the sandbox.",
        ),
    })
    .prefault({}),
  addons: z
    .strictObject({
      coredns: z
        .strictObject({
          enabled: z
            .boolean()
            .default(true)
            .describe(
              "Whether CoreDNS answers pods: names of Services and pods, and others by the name servers of the host.",
            ),
          image: imageName
            .optional()
            .describe(
              "CoreDNS's image. Default: one that is built here from CoreDNS's module, with the plugins that a " +
                "cluster takes. Changing it is a rolling update.",
            ),
        })
        .prefault({}),
      ingress: z
        .strictObject({
          enabled: z
            .boolean()
            .default(false)
            .describe(
              "Whether Traefik serves Ingresses: it has the default IngressClass, `traefik`, and a Service of type " +
                "LoadBalancer with ports 80 and 443 at the node's address; with `ports: [8080:80]` the host answers too. " +
                "Traefik's own kinds, such as IngressRoute, are not installed. It is built, or taken from the package " +
                "`gvisor-k3s-ingress`, only where this is on.",
            ),
          image: imageName
            .optional()
            .describe(
              "Traefik's image. Default: one that is built here from its module, without clouds for ACME by DNS. " +
                "Changing it is a rolling update.",
            ),
        })
        .prefault({}),
      localStorage: z
        .strictObject({
          enabled: z
            .boolean()
            .default(true)
            .describe(
              "Whether claims are bound to folders of the node, by the default StorageClass `local-path`, as " +
                "in k3s. They outlive the sandbox's restarts, and end with their claims. Changing it restarts " +
                "the node's server; volumes that exist stay.",
            ),
        })
        .prefault({}),
      metricsServer: z
        .strictObject({
          enabled: z
            .boolean()
            .default(true)
            .describe(
              "Whether metrics-server tells what the node and its pods use, for `kubectl top` and " +
                "HorizontalPodAutoscalers: from a quarter of a minute after its start on.",
            ),
          image: imageName
            .optional()
            .describe(
              "metrics-server's image. Default: one that is built here from its module. Changing it is a " +
                "rolling update.",
            ),
        })
        .prefault({}),
    })
    .prefault({}),
  nodes: z
    .array(
      z.strictObject({
        name: shortName.describe("What the pool is called: its nodes are CLUSTER-POOL-1, CLUSTER-POOL-2 and so on."),
        count: wholeNumber(0, 20)
          .default(1)
          .describe("How many nodes it has. One that is taken off is drained first; it is the last one."),
        memory: quantity
          .nullable()
          .default(null)
          .describe("What each node may use at most, from 256Mi; `null` for no limit. It changes while the node runs."),
        cpus: cpuTime
          .nullable()
          .default(null)
          .describe("How many CPUs' worth of time each may use; `null` for no limit. It changes while the node runs."),
        labels: z
          .record(z.string(), z.string())
          .default({})
          .describe("Labels that each registers with; one that is registered keeps those that it has."),
        taints: z
          .array(
            z
              .string()
              .regex(
                /^[A-Za-z0-9./_-]+(=[A-Za-z0-9._-]*)?:(NoSchedule|PreferNoSchedule|NoExecute)$/,
                "KEY=VALUE:EFFECT or KEY:EFFECT is allowed, such as gpu=yes:NoSchedule",
              ),
          )
          .default([])
          .describe("Taints that each registers with; one that is registered keeps those that it has."),
        kubernetes: z
          .enum(kubernetesMinors)
          .optional()
          .describe(
            "The minor version of their kubelet, no newer than the server's. Default: the server's. Another one starts " +
              "each kubelet anew, one node after the other and after the server, while its pods go on.",
          ),
        k3s: z
          .strictObject({
            version: releaseTag
              .optional()
              .describe(
                "The release of k3s of their agent, with `distribution: k3s`, no newer than the server's, and at most three " +
                  "minor versions older. Default: the server's. Another one starts each agent anew, one node after the " +
                  "other and after the server, while its pods go on.",
              ),
            path: absolutePath.optional().describe("A k3s binary that is taken as it is, in place of that release."),
          })
          .optional(),
        drain: z
          .boolean()
          .default(false)
          .describe(
            "Whether a node's pods move to others before its kubelet is exchanged, and it takes none meanwhile.",
          ),
        ssh: z
          .strictObject({
            host: sshHost.describe(
              "The machine that the node is put on, over SSH, in place of a sandbox on this host: a gVisor sandbox with " +
                "what [a node takes](docs/targets.md#on-another-machine). It is one node, and has the memory and CPUs of " +
                "that machine. Pods on it have no way out. Changing it, or the port, replaces the node with all that is " +
                "on it.",
            ),
            ...sshOptions,
          })
          .optional(),
      }),
    )
    .default([])
    .describe(
      "Further nodes, in pools: each is a sandbox of its own, on this host or over SSH, with a kubelet, containerd, a " +
        "service proxy and a way out, and options of `sandbox`, `runtime` and `containerd` are theirs too. The first of them restarts " +
        "the server's sandbox once, which gets a link to the network that the nodes share; others change nothing there. " +
        "One that leaves the list is drained (two minutes) and removed, with all that is on it, volumes of claims included.",
    ),
  ports: z
    .array(
      z
        .string()
        .regex(PUBLISHED, "HOST_PORT:PORT or ADDRESS:HOST_PORT:PORT is allowed, such as 8080:80 or 0.0.0.0:8080:80"),
    )
    .default([])
    .describe(
      "Ports of the node that are answered at the host, by TCP: `8080:80` leads from 127.0.0.1:8080 of the host to the " +
        "node's port 80, where a LoadBalancer, a pod's host port or a NodePort answers. With an address before it, at " +
        "that one of the host's: at `0.0.0.0` everybody who reaches the host reaches the cluster. Changing it restarts " +
        "nothing.",
    ),
  manifests: z
    .array(
      absolutePath.regex(
        /\/[a-z0-9]([a-z0-9.-]*[a-z0-9])?\.ya?ml$/,
        "an absolute path of a .yaml file is allowed, its name in lower-case letters, digits, dots and dashes",
      ),
    )
    .default([])
    .describe(
      "Files with Kubernetes objects, which are applied and kept applied; their Deployments, " +
        "DaemonSets and StatefulSets are awaited. What leaves a file, or the list, is deleted.",
    ),
  images: z
    .array(absolutePath)
    .default([])
    .describe(
      "Archives (OCI layout or docker save, a tar archive that may be compressed with gzip or zstd) to " +
        "import before the test pod starts. Images that are already there stay when an archive is taken " +
        "off the list.",
    ),
  pod: z
    .strictObject({
      enabled: z.boolean().default(true).describe("Whether the test pod is part of the stack."),
      namespace: dnsLabel
        .default("default")
        .describe("The test pod's namespace, which must exist. Changing it replaces the pod."),
      image: imageName
        .optional()
        .describe(
          "The test pod's image. Default: the project's own test image, which is built here. Changing it " +
            "replaces the pod.",
        ),
      args: z
        .array(z.string())
        .default([])
        .describe("Arguments for the image's entry point. Changing them replaces the pod."),
    })
    .prefault({}),
});

/** What a user may write: everything but the name is optional. */
export type StackConfigInput = z.input<typeof stackSchema>;

/** A checked configuration: every default is filled in. */
export type StackConfig = ReturnType<typeof parseStackConfig> & {
  /** What a node has that joins a cluster, and no option gives it; see `joiningNodes`. */
  joins?: Mesh;
};

/**
 * Fills in the defaults and checks everything.
 * @throws InputError that lists every problem at once
 */
export function parseStackConfig(input: unknown) {
  const parsed = stackSchema.safeParse(withTexts(input), { reportInput: true });
  if (!parsed.success) refuse(parsed.error.issues.flatMap(toProblems));
  const config = parsed.data!;
  const complete = {
    ...config,
    kubernetes: config.kubernetes ?? newestKubernetes,
    // Every id is one of the catalogue, or the checks below refuse it.
    quirks: config.quirks as "auto" | QuirkId[],
    sandbox: { ...config.sandbox, subnet: config.sandbox.subnet ?? defaultSubnet(config.name) },
    node: {
      ...config.node,
      clusterDns: config.node.clusterDns ?? addressAt(parseNetwork(config.node.serviceCidr)!, 10),
    },
  };
  refuse([...kubernetesProblems(config), ...nodesProblems(complete), ...crossChecks(complete)]);
  return complete;
}

/**
 * What programs in other languages write in their own way: YAML takes a minor version without quotes for a number, and
 * Pulumi's YAML has no null, without which there is no other word for "no limit".
 */
function withTexts(input: unknown): unknown {
  const withMinor = (options: unknown) => {
    const { kubernetes } = (options ?? {}) as { kubernetes?: unknown };
    return typeof kubernetes === "number" ? { ...(options as object), kubernetes: String(kubernetes) } : options;
  };
  const { nodes, sandbox } = (input ?? {}) as { nodes?: unknown; sandbox?: { memory?: unknown } };
  return withMinor({
    ...(input as object),
    ...(Array.isArray(nodes) && { nodes: nodes.map(withMinor) }),
    ...(sandbox?.memory === "none" && { sandbox: { ...sandbox, memory: null } }),
  });
}

function kubernetesProblems({ kubernetes, distribution }: z.output<typeof stackSchema>): Problem[] {
  if (kubernetes === undefined || distribution === "embedded") return [];
  const message = "it is for distribution: embedded; k3s.version says which Kubernetes k3s brings. Leave it out";
  return [{ option: "kubernetes", value: kubernetes, message }];
}

/** The name of the manifest that brings Traefik: `traefik` and `ingress` are what people call their own. */
export const INGRESS_MANIFEST = "ingress-controller";

/** The manifests that addons bring, by the addons' options. */
const addonManifests: Record<keyof Complete["addons"], string> = {
  coredns: "coredns",
  ingress: INGRESS_MANIFEST,
  localStorage: "local-storage",
  metricsServer: "metrics-server",
};

/** The name of a manifest of the user's, by which the server knows it. */
export function manifestName(path: string): string {
  return basename(path).replace(/\.ya?ml$/, "");
}

/** What is answered where, of an entry of `ports`. */
export function publishedPort(text: string): { address: string; port: number; to: number } {
  const [, address = "127.0.0.1", port, to] = PUBLISHED.exec(text)!;
  return { address, port: Number(port), to: Number(to) };
}

/** Whether the sandbox is given a way out: a machine that is a sandbox has one of its own, which pods do not get. */
export function needsEgress({ target, mode, egress }: StackConfig): boolean {
  return target === "managed" && mode === "node" && egress.enabled;
}

/**
 * Four addresses of the pool; the same name always gets the same ones.
 * @param taken networks in whose place the next four are taken
 */
export function defaultSubnet(name: string, taken: readonly string[] = []): string {
  const slots = SUBNET_POOL.size / 4;
  const first = createHash("sha256").update(name).digest().readUInt32BE() % slots;
  for (let slot = first; ; slot = (slot + 1) % slots) {
    const subnet = `${addressAt(SUBNET_POOL, slot * 4)}/30`;
    if (!taken.some((other) => overlap(parseNetwork(other)!, parseNetwork(subnet)!))) return subnet;
  }
}

type Complete = Omit<z.output<typeof stackSchema>, "quirks"> & {
  kubernetes: KubernetesMinor;
  quirks: "auto" | QuirkId[];
  sandbox: { subnet: string };
  node: { clusterDns: string };
};

function crossChecks({
  target,
  ssh,
  mode,
  external,
  pod,
  images,
  quirks,
  sandbox,
  runtime,
  node,
  containerd,
  distribution,
  k3s,
  manifests,
  ports,
  from,
}: Complete): Problem[] {
  const problems: Problem[] = [...quirkProblems(quirks, mode)];
  if (from !== undefined && (target !== "managed" || distribution !== "embedded" || mode === "external")) {
    const message =
      "a cluster begins with a snapshot only with target: managed and distribution: embedded; leave it out";
    problems.push({ option: "from", value: from, message });
  }
  const named = {
    "sandbox.subnet": sandbox.subnet,
    "node.clusterCidr": node.clusterCidr,
    "node.serviceCidr": node.serviceCidr,
  };
  const networks = Object.entries(named).map(([option, text]) => ({ option, ...parseNetwork(text)! }));
  for (const [i, a] of networks.entries()) {
    for (const b of networks.slice(i + 1)) {
      if (overlap(a, b))
        problems.push({
          option: b.option,
          value: b.cidr,
          message: `it overlaps ${a.option} (${a.cidr}); choose networks that share no address`,
        });
    }
  }
  const [subnet, cluster, service] = networks;
  if (subnet!.size < 4 || subnet!.size > 256)
    problems.push({ option: "sandbox.subnet", value: sandbox.subnet, message: "a prefix from /24 to /30 is allowed" });
  if (cluster!.size < 256)
    problems.push({
      option: "node.clusterCidr",
      value: node.clusterCidr,
      message: "a prefix up to /24 is allowed: the node needs 256 addresses",
    });
  if (service!.size < 16 || service!.size > 2 ** 20)
    problems.push({
      option: "node.serviceCidr",
      value: node.serviceCidr,
      message: "a prefix from /12 to /28 is allowed",
    });
  else if (!contains(service!, node.clusterDns))
    problems.push({
      option: "node.clusterDns",
      value: node.clusterDns,
      message: `it must lie in node.serviceCidr (${node.serviceCidr})`,
    });
  for (const [owner, taken] of Object.entries(NODE_PORTS)) {
    if (node.httpsListenPort === taken)
      problems.push({
        option: "node.httpsListenPort",
        value: taken,
        message: `the port is in use by the node's ${owner}; choose another`,
      });
  }
  if (sandbox.memory !== null && bytes(sandbox.memory) < bytes("512Mi")) {
    problems.push({
      option: "sandbox.memory",
      value: sandbox.memory,
      message: "at least 512Mi is allowed: the node alone needs about 350 MiB",
    });
  }
  if ((containerd.containerd === undefined) !== (containerd.shim === undefined)) {
    const [given, missing] =
      containerd.shim === undefined ? (["containerd", "shim"] as const) : (["shim", "containerd"] as const);
    problems.push({
      option: `containerd.${given}`,
      value: containerd[given],
      message: `containerd and its shim belong together: set containerd.${missing} as well, or neither`,
    });
  }
  if (target !== "managed" && sandbox.hostPorts !== "all" && sandbox.hostPorts.length > 0) {
    problems.push({
      option: "sandbox.hostPorts",
      value: sandbox.hostPorts,
      message:
        `the link that they are for is made with target: managed only, and not with target: ${target}; ` +
        "leave it out",
    });
  }
  for (const text of ports) {
    const { address, port, to } = publishedPort(text);
    if (Math.max(port, to) > 65535 || parseNetwork(`${address}/32`) === undefined)
      problems.push({
        option: "ports",
        value: text,
        message: "a port from 1 to 65535, and an IPv4 address, is allowed",
      });
  }
  if (target !== "managed" && ports.length > 0) {
    const message = `a sandbox that is made here has them, and none is made with target: ${target}; leave it out`;
    problems.push({ option: "ports", value: ports, message });
  }
  if (target !== "managed" && sandbox.runsc !== undefined) {
    problems.push({
      option: "sandbox.runsc",
      value: sandbox.runsc,
      message: `a sandbox is made with it, and none is made with target: ${target}; leave it out`,
    });
  }
  if (target === "ssh" && ssh.host === undefined)
    problems.push({ option: "ssh.host", value: undefined, message: "target: ssh needs the host to log in to" });
  if (target !== "ssh" && ssh.host !== undefined)
    problems.push({ option: "ssh.host", value: ssh.host, message: "it is for target: ssh; set that, or leave it out" });
  if (runtime.patches.length > 0 && (runtime.name === "crun" || runtime.path !== undefined)) {
    problems.push({
      option: "runtime.patches",
      value: runtime.patches,
      message: "only a runc that is built here can be patched; leave out runtime.path and runtime.name, or the patches",
    });
  }
  for (const [i, path] of manifests.entries()) {
    const name = manifestName(path);
    const addon = Object.entries(addonManifests).find(([, manifest]) => manifest === name)?.[0];
    const twin =
      addon !== undefined ? `addons.${addon}` : manifests.slice(0, i).find((other) => manifestName(other) === name);
    if (twin !== undefined)
      problems.push({
        option: "manifests",
        value: path,
        message: `its name, ${name}, is that of ${twin} too; rename the file`,
      });
  }
  if (mode === "external") {
    if (external.kubeconfig === undefined)
      problems.push({
        option: "external.kubeconfig",
        value: undefined,
        message: "mode: external needs the kubeconfig of the cluster",
      });
    if (pod.enabled && pod.image === undefined)
      problems.push({
        option: "pod.image",
        value: undefined,
        message: "with mode: external an image is needed that the cluster has or can pull; or set pod.enabled to false",
      });
    for (const [option, value] of Object.entries({ manifests, images })) {
      if (value.length > 0)
        problems.push({ option, value, message: "nothing is installed with mode: external; leave it out" });
    }
  } else if (external.kubeconfig !== undefined) {
    problems.push({
      option: "external.kubeconfig",
      value: external.kubeconfig,
      message: "it is for mode: external; set that, or leave it out",
    });
  }
  const sources = (["mirror", "airgap", "path"] as const).filter((source) => k3s[source] !== undefined);
  for (const source of sources) {
    const message =
      distribution !== "k3s"
        ? "it is for distribution: k3s; set that, or leave it out"
        : sources.length > 1
          ? `one of ${sources.map((name) => `k3s.${name}`).join(" and ")} is allowed: each is where k3s comes from`
          : undefined;
    if (message !== undefined) problems.push({ option: `k3s.${source}`, value: k3s[source], message });
  }
  return problems;
}

/** What is wrong with the further nodes. */
function nodesProblems(config: Complete): Problem[] {
  const { nodes, target, mode } = config;
  if (nodes.length === 0) return [];
  const fits = target === "managed" && mode === "node";
  const message = "further nodes join a server of target: managed and mode: node; leave it out";
  const names = nodes.map(({ name }) => name);
  return [
    ...(fits ? [] : [{ option: "nodes", value: names, message }]),
    ...names
      .filter((name, i) => names.indexOf(name) < i)
      .map((name) => ({ option: "nodes", value: name, message: "two pools have this name; give one another" })),
    ...twiceOnOne(nodes),
    ...nodes.flatMap(elsewhereProblems),
    ...nodes.flatMap((node) => kubeletProblems(node, config)),
    ...nodes.flatMap(({ name, memory, labels }) => [
      ...(memory !== null && bytes(memory) < bytes("256Mi")
        ? [{ option: `nodes.${name}.memory`, value: memory, message: "at least 256Mi is allowed" }]
        : []),
      ...Object.keys(labels)
        .filter((key) => /(^|\.)(kubernetes|k8s)\.io\//.test(key) && !/^(node|kubelet)\.kubernetes\.io\//.test(key))
        .map((key) => ({
          option: `nodes.${name}.labels`,
          value: key,
          message: "no kubelet may give itself a label in Kubernetes' own name; use another, or `kubectl label`",
        })),
    ]),
  ];
}

/** What is wrong with the kubelet that a pool asks for. */
function kubeletProblems({ name, kubernetes, k3s, drain }: Complete["nodes"][number], config: Complete): Problem[] {
  const about = (option: string, value: unknown, message: string) => [
    { option: `nodes.${name}.${option}`, value, message },
  ];
  const newer = (server: string) =>
    `a node is never newer than its server, which is of ${server}; give the server that version first`;
  const server = config.distribution === "k3s" ? config.k3s.version : config.kubernetes;
  if (config.distribution === "embedded") {
    if (k3s !== undefined) return about("k3s", k3s, "it is for distribution: k3s; set that, or leave it out");
    if (kubernetes === undefined || !isNewer(kubernetes, server)) return [];
    return about("kubernetes", kubernetes, newer(server));
  }
  if (kubernetes !== undefined) {
    const message = `it is for distribution: embedded; nodes.${name}.k3s says which k3s it is. Leave it out`;
    return about("kubernetes", kubernetes, message);
  }
  if (drain && (k3s?.path ?? config.k3s.path) !== undefined) {
    return about("drain", drain, "of a k3s that is a program of yours the version is not known; leave it out");
  }
  if (k3s?.version === undefined) return [];
  if (config.k3s.airgap !== undefined && k3s.version !== server) {
    return about("k3s.version", k3s.version, "k3s.airgap has one release, the server's; give them k3s.path");
  }
  if (k3s.path !== undefined) return about("k3s.version", k3s.version, "k3s.path is taken as it is; leave one out");
  if (config.k3s.path !== undefined) {
    const message = "the server's k3s, a program of yours (k3s.path), is theirs too; give them k3s.path";
    return about("k3s.version", k3s.version, message);
  }
  if (isTooOld(minorOf(k3s.version), minorOf(server))) {
    const message = `a node is at most ${KUBELET_SKEW} minor versions older than its server, which is of ${server}`;
    return about("k3s.version", k3s.version, message);
  }
  return isNewer(minorOf(k3s.version), minorOf(server)) ? about("k3s.version", k3s.version, newer(server)) : [];
}

/** Pools that name one machine. */
function twiceOnOne(nodes: Complete["nodes"]): Problem[] {
  const elsewhere = nodes.flatMap(({ name, ssh }) => (ssh ? [{ name, at: `${ssh.host}:${ssh.port}`, ssh }] : []));
  return elsewhere.flatMap(({ name, at, ssh }, i) => {
    const first = elsewhere.slice(0, i).find((other) => other.at === at);
    if (first === undefined) return [];
    const message = `the node of the pool ${first.name} is there, and a machine takes one; give another`;
    return [{ option: `nodes.${name}.ssh.host`, value: ssh.host, message }];
  });
}

/** What a node on another machine is given that it cannot have. */
function elsewhereProblems({ name, ssh, count, memory, cpus }: Complete["nodes"][number]): Problem[] {
  if (ssh === undefined) return [];
  const limits = Object.entries({ memory, cpus }).filter(([, value]) => value !== null);
  return [
    ...(count > 1
      ? [
          {
            option: `nodes.${name}.count`,
            value: count,
            message: `${ssh.host} is one machine, and takes one node; have a pool for each machine`,
          },
        ]
      : []),
    ...limits.map(([option, value]) => ({
      option: `nodes.${name}.${option}`,
      value,
      message: `a sandbox that is made here is limited, and ${ssh.host} is none; leave it out`,
    })),
  ];
}

function quirkProblems(quirks: "auto" | string[], mode: StackConfigInput["mode"]): Problem[] {
  if (quirks === "auto") return [];
  const known: readonly string[] = probedQuirks;
  const problems = quirks
    .filter((id) => !known.includes(id))
    .map((id) => ({
      option: "quirks",
      value: id,
      message: `there is no such quirk; auto is allowed, or a list of ${known.join(", ")}`,
    }));
  const blockers = mode === "node" ? blockersAmong(quirks as QuirkId[]) : [];
  if (blockers.length > 0)
    problems.push({
      option: "quirks",
      value: blockers.join(", "),
      message:
        `a sandbox with these cannot run pods (${blockers.map((id) => quirk(id).needs).join(", ")}); set ` +
        "mode: control-plane, or use another gVisor",
    });
  return problems;
}

/** The bytes that a quantity such as "4Gi" stands for. */
export function bytes(text: string): number {
  return Number.parseInt(text, 10) * 2 ** (text.endsWith("Gi") ? 30 : 20);
}

function toProblems(issue: z.core.$ZodIssue): Problem[] {
  const option = issue.path
    .map((part) => (typeof part === "number" ? `[${part}]` : `.${String(part)}`))
    .join("")
    .replace(/^\./, "");
  switch (issue.code) {
    case "unrecognized_keys": {
      if (typeof issue.path.at(-1) === "number") return [{ option, value: issue.input, message: RULE_FORMS }];
      const allowed = knownKeys(issue.path).join(", ");
      return issue.keys.map((key) => ({
        option: option ? `${option}.${key}` : key,
        message: `there is no such option; allowed here: ${allowed}`,
      }));
    }
    case "invalid_type":
      if (issue.input === undefined) return [{ option, message: "it is missing" }];
      if (option === "registries")
        return [
          { option, value: issue.input, message: "the path of a YAML file, or its content as an object, is allowed" },
        ];
      // what was given may be a password
      if (issue.path.includes("auth")) return [{ option, message: `a value of type ${issue.expected} is allowed` }];
      return [
        {
          option,
          value: issue.input,
          message: issue.message.startsWith("Invalid") ? `a value of type ${issue.expected} is allowed` : issue.message,
        },
      ];
    case "invalid_value":
      return [{ option, value: issue.input, message: `allowed: ${issue.values.map(String).join(", ")}` }];
    case "invalid_key":
      return [{ option, message: issue.issues[0]!.message }];
    case "invalid_union": {
      const forms: Record<string, string> = {
        quirks: "auto, or a list of quirk ids, is allowed",
        "sandbox.hostPorts": "all, or a list of ports from 1 to 65535, is allowed",
      };
      return [{ option, value: issue.input, message: forms[option] ?? RULE_FORMS }];
    }
    default:
      return [{ option, value: issue.input, message: issue.message }];
  }
}

function knownKeys(path: readonly PropertyKey[]): string[] {
  let schema: z.ZodType = stackSchema;
  for (const part of path) {
    const inner = unwrap(schema);
    schema =
      inner instanceof z.ZodRecord
        ? (inner.valueType as z.ZodType)
        : ((inner as z.ZodObject).shape[String(part)] as z.ZodType);
  }
  return Object.keys((unwrap(schema) as z.ZodObject).shape);
}

/** The schema beneath optional, nullable and default wrappers. */
export function unwrap(schema: z.ZodType): z.ZodType {
  let inner = schema;
  while ("innerType" in inner.def) inner = inner.def.innerType as z.ZodType;
  return inner;
}

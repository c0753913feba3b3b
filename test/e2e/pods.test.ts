/** What pods and charts ask of a node: time zones, storage limits, sysctls, host ports, load balancers, and the like. */

import { createHash } from "node:crypto";
import { createSocket } from "node:dgram";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { artifactFolder, goArch, pathInSandbox } from "../../artifacts/artifacts.ts";
import { waitFor } from "../../system/wait.ts";
import {
  changes,
  cli,
  endAll,
  freePort,
  inside,
  kubectl,
  kubectlProcess,
  machineOf,
  open,
  ownHome,
  record,
} from "./harness.ts";

const home = await ownHome();
const name = "pd-pods";
const image = "cases.test/tools:1";
const archive = join(home, "tools.tar");
const audit = join(home, "audit.yaml");
const deny = join(home, "deny.json");
const options = {
  pod: { enabled: false },
  images: [archive],
  node: {
    apiServerArgs: [
      "audit-policy-file=/etc/kubernetes/audit/policy.yaml",
      "audit-log-path=/var/log/gvisor-k3s/audit.log",
    ],
    kubeletArgs: ["container-log-max-size=64Ki"],
    files: { "/etc/kubernetes/audit/policy.yaml": audit, "/var/lib/kubelet/seccomp/team/deny.json": deny },
  },
};

/** An audit policy that notes requests about one kind of objects. */
const policyFor = (resources: string) =>
  JSON.stringify({
    apiVersion: "audit.k8s.io/v1",
    kind: "Policy",
    omitStages: ["RequestReceived"],
    rules: [{ level: "Metadata", resources: [{ resources: [resources] }] }],
  });

/** Seconds for what takes the kubelet some rounds. */
const PATIENCE = 120;

/** An image with busybox's usual programs, and the test program, once more as one that is root's whoever starts it. */
async function toolsImage(): Promise<void> {
  const images = artifactFolder({ name: "images" });
  const applets = "cat date dd grep id ls mkdir mount printf sh sleep sysctl touch umount wc".split(" ");
  await execa(join(images, "mkimage"), [
    `--platform=linux/${goArch()}`,
    `--name=${image}`,
    "--file=/bin/busybox:/bin/busybox:0755",
    ...applets.map((applet) => `--symlink=busybox:/bin/${applet}`),
    `--file=${images}/testpod:/bin/testpod:0755`,
    `--file=${images}/testpod:/bin/as-root:4755`,
    `--file=${artifactFolder({ name: "csi-driver" })}/csi-driver:/bin/csi-driver:0755`,
    "--env=PATH=/bin",
    "--cmd=/bin/sleep",
    "--cmd=infinity",
    "-o",
    archive,
  ]);
}

/** The image with so many layers in all, each of which has a file of its own. */
async function layered(image: string, layers: number): Promise<string> {
  const folder = join(home, `layers-${layers}`);
  mkdirSync(folder);
  await execa("tar", ["-xf", archive, "-C", folder]);
  const blobs = join(folder, "blobs/sha256");
  const put = (content: Buffer) => {
    const hex = createHash("sha256").update(content).digest("hex");
    writeFileSync(join(blobs, hex), content);
    return { digest: `sha256:${hex}`, size: content.length };
  };
  const putJson = (value: object) => put(Buffer.from(JSON.stringify(value)));
  const blob = ({ digest }: { digest: string }) => JSON.parse(readFileSync(join(blobs, digest.slice(7)), "utf8"));
  const index = JSON.parse(readFileSync(join(folder, "index.json"), "utf8"));
  const manifest = blob(index.manifests[0]);
  const config = blob(manifest.config);
  delete config.history;
  for (let layer = 1; layer < layers; layer++) {
    writeFileSync(join(folder, `layer-${layer}`), "");
    const { stdout } = await execa("tar", ["-c", "-C", folder, `layer-${layer}`], { encoding: "buffer" });
    const made = put(Buffer.from(stdout));
    manifest.layers.push({ ...manifest.layers[0], ...made });
    config.rootfs.diff_ids.push(made.digest);
  }
  manifest.config = { ...manifest.config, ...putJson(config) };
  index.manifests[0] = { ...index.manifests[0], ...putJson(manifest) };
  index.manifests[0].annotations = { "io.containerd.image.name": image, "org.opencontainers.image.ref.name": image };
  writeFileSync(join(folder, "index.json"), JSON.stringify(index));
  const made = `${folder}.tar`;
  await execa("tar", ["-cf", made, "-C", folder, "blobs", "index.json", "oci-layout"]);
  return made;
}

interface Container {
  [key: string]: unknown;
}

/** A pod with one container; it ends at once when it is to end, and nothing starts it again. */
const pod = (pod: string, container: Container, spec: object = {}) => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name: pod, labels: { app: pod } },
  spec: {
    restartPolicy: "Never",
    terminationGracePeriodSeconds: 0,
    containers: [{ name: "c", image, imagePullPolicy: "Never", ...container }],
    ...spec,
  },
});

const apply = (...objects: object[]) =>
  kubectlProcess(name, ["apply", "-f", "-"], {
    input: JSON.stringify({ apiVersion: "v1", kind: "List", items: objects }),
  });

const remove = (...what: string[]) =>
  kubectl(name, "delete", "--ignore-not-found", "--force", "--grace-period=0", ...what);

const of = (kind: string, object: string, path: string) => kubectl(name, "get", kind, object, `-o=jsonpath={${path}}`);

async function ready(...pods: string[]): Promise<void> {
  for (const one of pods) await kubectl(name, "wait", `pod/${one}`, "--for=condition=Ready", "--timeout=50s");
}

/** Runs pods to their ends, and returns what each printed. */
async function outputs(...pods: ReturnType<typeof pod>[]): Promise<Record<string, string>> {
  await apply(...pods);
  const printed: Record<string, string> = {};
  for (const { metadata } of pods) {
    const phase = () => of("pod", metadata.name, ".status.phase");
    await waitFor(
      `the pod ${metadata.name} ends`,
      PATIENCE,
      async () => ["Succeeded", "Failed"].includes(await phase()) || undefined,
      () => events(metadata.name),
    );
    printed[metadata.name] = await kubectl(name, "logs", metadata.name);
  }
  await remove(...pods.map(({ metadata }) => `pod/${metadata.name}`));
  return printed;
}

/** What is told at an object, a line for each event. */
const events = (object: string) =>
  kubectl(
    name,
    "get",
    "events",
    `--field-selector=involvedObject.name=${object}`,
    '-o=jsonpath={range .items[*]}{.type} {.reason}: {.message}{"\\n"}{end}',
  );

async function told(object: string, words: RegExp): Promise<void> {
  await waitFor(
    `${object} tells ${words}`,
    PATIENCE,
    async () => words.test(await events(object)) || undefined,
    () => events(object),
  );
}

/** The node's address, which the host reaches. */
const address = () => of("node", name, ".status.addresses[?(@.type=='InternalIP')].address");

// A connection each time: one that is open stays with the pod that it was made to.
const get = (url: string) =>
  fetch(url, { headers: { connection: "close" }, signal: AbortSignal.timeout(5000) }).then(
    (response) => response.text(),
    (error: Error) => String(error.cause ?? error),
  );

async function answers(url: string, words: string): Promise<void> {
  let last = "";
  await waitFor(
    `${url} is answered by ${words}`,
    PATIENCE,
    async () => {
      last = await get(url);
      return last.startsWith(words) || undefined;
    },
    () => last,
  );
}

/** A pod that serves HTTP and tells its own name. */
const web = (pod_: string, container: Container = {}) => pod(pod_, { command: ["testpod"], ...container });

beforeAll(async () => {
  mkdirSync(home, { recursive: true });
  await toolsImage();
  writeFileSync(audit, policyFor("configmaps"));
  const forbidden = { names: ["mkdir", "mkdirat"], action: "SCMP_ACT_ERRNO", errnoRet: 1 };
  writeFileSync(deny, JSON.stringify({ defaultAction: "SCMP_ACT_ALLOW", syscalls: [forbidden] }));
  await (await open(name, options)).up();
});

afterAll(async () => {
  await endAll(home, name);
});

it("CronJobs have time zones", async () => {
  const template = { spec: pod("x", {}).spec };
  await apply({
    apiVersion: "batch/v1",
    kind: "CronJob",
    metadata: { name: "nightly" },
    spec: { schedule: "* * * * *", timeZone: "Europe/Vienna", suspend: true, jobTemplate: { spec: { template } } },
  });
  expect(await of("cronjob", "nightly", ".spec.timeZone")).toBe("Europe/Vienna");
  await expect(
    apply({
      apiVersion: "batch/v1",
      kind: "CronJob",
      metadata: { name: "nowhere" },
      spec: { schedule: "* * * * *", timeZone: "Europe/Nowhere", jobTemplate: { spec: { template } } },
    }),
  ).rejects.toThrow(/unknown time zone Europe\/Nowhere/);
});

describe("the node", () => {
  it("has the labels and the id that charts select nodes by", async () => {
    const labels = JSON.parse(await of("node", name, ".metadata.labels")) as Record<string, string>;
    expect(labels).toMatchObject({
      "kubernetes.io/hostname": name,
      "node-role.kubernetes.io/control-plane": "",
      "node.kubernetes.io/instance-type": "gvisor-k3s",
    });
    expect(await of("node", name, ".spec.providerID")).toBe(`gvisor-k3s://${name}`);
    expect(await kubectl(name, "get", "nodes")).toMatch(/Ready +control-plane /);
  });

  it("has ephemeral storage, and evicts a pod that takes more of it than it may", async () => {
    const write = (path: string) => ["sh", "-c", `dd if=/dev/zero of=${path} bs=1M count=64; exec sleep infinity`];
    const limits = { requests: { "ephemeral-storage": "10Mi" }, limits: { "ephemeral-storage": "16Mi" } };
    const volumes = [{ name: "s", emptyDir: { sizeLimit: "16Mi" } }];
    await apply(
      pod("within", {
        resources: { requests: { "ephemeral-storage": "50Mi" }, limits: { "ephemeral-storage": "1Gi" } },
      }),
      pod("in-volume", { command: write("/s/x"), volumeMounts: [{ name: "s", mountPath: "/s" }] }, { volumes }),
      pod("in-root", { command: write("/x"), resources: limits }),
    );
    await told("in-volume", /Evicted: Usage of EmptyDir volume "s" exceeds the limit "16Mi"/);
    await told("in-root", /Evicted: Pod ephemeral local storage usage exceeds the total limit of containers 16Mi/);
    expect(await of("pod", "in-root", ".status.reason")).toBe("Evicted");
    await ready("within");
    await remove("pod/within", "pod/in-volume", "pod/in-root");
  });
});

describe("probes", () => {
  it("by gRPC tell whether a pod is Ready", async () => {
    const probe = (port: number) => ({ readinessProbe: { grpc: { port }, periodSeconds: 1 } });
    await apply(web("grpc", probe(8080)), web("grpc-none", probe(8081)));
    await ready("grpc");
    await told("grpc-none", /Unhealthy: Readiness probe failed: .*failed to connect|connection refused/);
    await remove("pod/grpc", "pod/grpc-none");
  });

  it("by programs leave no process behind", async () => {
    const count = "echo >> /count; exec true";
    const probe = { exec: { command: ["sh", "-c", count] }, periodSeconds: 1, timeoutSeconds: 10 };
    await apply(pod("probed", { livenessProbe: probe, command: ["sh", "-c", "touch /count; exec sleep infinity"] }));
    await ready("probed");
    const probes = async () => Number.parseInt(await kubectl(name, "exec", "probed", "--", "wc", "-l", "/count"), 10);
    const processes = async () =>
      (await inside(name, "/bin/ls", "/proc")).split("\n").filter((entry) => /^\d+$/.test(entry)).length;
    await waitFor("some probes were made", PATIENCE, async () => (await probes()) >= 5 || undefined);
    const before = Math.min(await processes(), await processes(), await processes());
    await waitFor("60 more were made", 2 * PATIENCE, async () => (await probes()) >= 65 || undefined);
    let now = 0;
    await waitFor(
      "there are no more processes than before",
      30,
      async () => {
        now = await processes();
        return now <= before || undefined;
      },
      () => `${now} in place of ${before}`,
    );
    await remove("pod/probed");
  });
});

it("logs are followed over their rotation, and no line is lost", async () => {
  const rounds = 40;
  const line = "x".repeat(80);
  const script = `r=0; while [ $r -lt ${rounds} ]; do i=0; while [ $i -lt 100 ]; do echo $r $i ${line}; i=$((i+1)); done
    r=$((r+1)); sleep 1; done`;
  await apply(pod("talker", { command: ["sh", "-c", script] }));
  await ready("talker");
  const { stdout } = await kubectlProcess(name, ["logs", "-f", "talker"], { timeout: 200_000 });
  const numbers = String(stdout)
    .split("\n")
    .map((said) => said.split(" ").slice(0, 2).join(" "));
  expect(numbers).toEqual(Array.from({ length: rounds * 100 }, (_, i) => `${Math.floor(i / 100)} ${i % 100}`));
  const uid = await of("pod", "talker", ".metadata.uid");
  const files = await inside(name, "/bin/ls", `/var/log/pods/default_talker_${uid}/c`);
  expect(files.split("\n").length, "files of it").toBeGreaterThan(1);
  await remove("pod/talker");
});

describe("sysctls", () => {
  /** What a pod may set without leave: pkg/kubelet/sysctl/safe_sysctls.go of Kubernetes. */
  const safe = {
    "kernel.shm_rmid_forced": "1",
    "net.ipv4.ip_local_port_range": "10000 20000",
    "net.ipv4.tcp_syncookies": "1",
    "net.ipv4.ping_group_range": "0 100",
    "net.ipv4.ip_unprivileged_port_start": "80",
    "net.ipv4.ip_local_reserved_ports": "30000-30100",
    "net.ipv4.tcp_keepalive_time": "300",
    "net.ipv4.tcp_fin_timeout": "20",
    "net.ipv4.tcp_keepalive_intvl": "20",
    "net.ipv4.tcp_keepalive_probes": "5",
    "net.ipv4.tcp_rmem": "4096 131072 6291456",
    "net.ipv4.tcp_wmem": "4096 16384 4194304",
  };
  const asking = (pod_: string, sysctls: object, container: Container) =>
    pod(pod_, container, {
      securityContext: { sysctls: Object.entries(sysctls).map(([key, value]) => ({ name: key, value })) },
    });

  it("that are safe are read as they were asked for, each and all, by every container of the pod", async () => {
    const values = Object.values(safe).join("\n");
    const all = asking("all", safe, { command: ["sysctl", "-n", ...Object.keys(safe)] });
    all.spec.containers.push({ ...all.spec.containers[0]!, name: "d" });
    const each = Object.entries(safe).map(([key, value], i) =>
      asking(`one-${i}`, { [key]: value }, { command: ["sysctl", "-n", key] }),
    );
    const beside = pod("beside", { command: ["cat", "/proc/sys/net/ipv4/ip_local_port_range"] });
    await apply(all);
    for (const container of ["c", "d"])
      await waitFor(
        "the pod with all of them has printed them",
        PATIENCE,
        async () => (await kubectl(name, "logs", "all", `-c=${container}`).catch(() => "")) === values || undefined,
        () => events("all"),
      );
    await told("all", /Warning SysctlsWithoutEffect: .*kernel\.shm_rmid_forced, .*net\.ipv4\.tcp_wmem/);
    await remove("pod/all");
    const printed = await outputs(...each, beside);
    expect(Object.values(printed).slice(0, -1)).toEqual(Object.values(safe));
    expect(printed.beside, "another pod's, and the node's").not.toMatch(/^10000\s20000/);
  });

  it("that are not safe are refused, as everywhere", async () => {
    await apply(asking("unsafe", { "net.core.somaxconn": "2000" }, {}));
    await waitFor(
      "it is refused",
      PATIENCE,
      async () => (await of("pod", "unsafe", ".status.reason")) === "SysctlForbidden" || undefined,
      () => events("unsafe"),
    );
    await remove("pod/unsafe");
  });
});

it("a pod with a user namespace is told that there are none, and why", async () => {
  await apply(pod("userns", {}, { hostUsers: false }));
  await told("userns", /Warning NoUserNamespaces: .*quirk no-user-namespaces/);
  await remove("pod/userns");
});

it("a program with the setuid bit runs as its owner, unless the pod forbids it", async () => {
  const securityContext = { runAsUser: 1000 };
  const printed = await outputs(
    pod("raised", { command: ["as-root", "id"], securityContext }),
    pod("kept", {
      command: ["as-root", "id"],
      securityContext: { ...securityContext, allowPrivilegeEscalation: false },
    }),
    pod("plain", { command: ["testpod", "id"], securityContext }),
  );
  expect(printed).toEqual({ raised: "1000 0", kept: "1000 1000", plain: "1000 1000" });
});

it("a container that a signal reaches before it is started is started", async () => {
  await apply(pod("waits", { command: ["sleep", "infinity"] }));
  await ready("waits");
  const status = "-o=jsonpath={.status.containerStatuses[0].containerID}";
  const id = (await kubectl(name, "get", "pod", "waits", status)).split("//").at(-1);
  const bundle = `/run/containerd/io.containerd.runtime.v2.task/k8s.io/${id}`;
  const spec = JSON.parse(await inside(name, "/bin/cat", `${bundle}/config.json`));
  spec.root.path = `${bundle}/rootfs`;
  spec.linux.cgroupsPath = "/e2e-second";
  const write = "mkdir /run/e2e-second && exec cat > /run/e2e-second/config.json";
  await machineOf(name).exec(["/bin/sh", "-c", write], { input: JSON.stringify(spec) });
  const command = [pathInSandbox({ name: "runc" }, "runc"), "--root=/run/e2e-second/state"];
  const runc = (...args: string[]) => inside(name, ...command, ...args);
  // What it starts keeps what it was given to print to.
  const quietly = ["/bin/sh", "-c", '"$@" > /dev/null 2> /run/e2e-second/log', "sh"];
  await inside(name, ...quietly, ...command, "create", "--bundle=/run/e2e-second", "second");
  const { pid } = JSON.parse(await runc("state", "second"));
  // It waits in the opening of a FIFO. Not a signal that ends a Go program: the runtime itself sends it, to preempt.
  for (let count = 0; count < 20; count++) await inside(name, "/bin/kill", "-URG", String(pid));
  await runc("start", "second");
  expect(JSON.parse(await runc("state", "second"))).toMatchObject({ status: "running", pid });
  await runc("delete", "--force", "second");
  await remove("pod/waits");
});

describe("mounts", () => {
  const mounting = (propagation: string, readOnly = false) => [
    { name: "m", mountPath: "/m", mountPropagation: propagation, readOnly },
  ];
  const from = (path: string) => ({ volumes: [{ name: "m", hostPath: { path, type: "DirectoryOrCreate" } }] });

  it("of the node reach a pod that has the node's root", async () => {
    const command = ["sh", "-c", "ls /m/var/lib/kubelet && exec sleep infinity"];
    await apply(pod("root", { command, volumeMounts: mounting("HostToContainer", true) }, from("/")));
    await ready("root");
    const tmpfs = "/run/gvisor-k3s/e2e-mounted-later";
    await inside(name, "/bin/mkdir", tmpfs);
    await inside(name, "/bin/mount", "-t", "tmpfs", "none", tmpfs);
    await inside(name, "/bin/touch", `${tmpfs}/seen`);
    await waitFor(
      "the pod sees what was mounted after its start",
      PATIENCE,
      async () => (await kubectl(name, "exec", "root", "--", "ls", `/m${tmpfs}`)) === "seen" || undefined,
    );
    await inside(name, "/bin/umount", "-l", tmpfs);
    expect(await kubectl(name, "exec", "root", "--", "ls", `/m${tmpfs}`)).toBe("");
  });

  it("of the node that such a pod has a copy of keep neither other pods nor images from being taken off", async () => {
    const volumes = [{ name: "m", emptyDir: { medium: "Memory" } }];
    await apply(pod("brief", { volumeMounts: [{ name: "m", mountPath: "/m" }] }, { volumes }));
    await ready("brief");
    const uid = await of("pod", "brief", ".metadata.uid");
    await kubectl(name, "delete", "pod", "brief", "--timeout=50s");
    await waitFor(
      "its volumes are gone",
      PATIENCE,
      async () => !(await inside(name, "/bin/ls", "/var/lib/kubelet/pods")).includes(uid) || undefined,
    );
    const { exitCode, all } = await cli("images", "import", "-c", name, await layered("cases.test/few:1", 3));
    expect(all).toMatch(/is imported/);
    expect(exitCode).toBe(0);
    await remove("pod/root");
  });

  it("of a pod reach the node and other pods where they are to", async () => {
    const folder = from("/var/lib/kubelet/plugins/cases");
    const mount = "mkdir -p /m/in && mount -t tmpfs none /m/in && touch /m/in/seen && exec sleep infinity";
    await apply(
      pod(
        "mounter",
        {
          command: ["sh", "-c", mount],
          securityContext: { privileged: true },
          volumeMounts: mounting("Bidirectional"),
        },
        folder,
      ),
      pod("looker", { volumeMounts: mounting("HostToContainer") }, folder),
      pod("apart", { volumeMounts: mounting("None") }, folder),
    );
    await ready("mounter", "looker", "apart");
    const seen = (who: string) => kubectl(name, "exec", who, "--", "ls", "/m/in");
    await waitFor("the other pod sees it", PATIENCE, async () => (await seen("looker")) === "seen" || undefined);
    expect(await inside(name, "/bin/ls", "/var/lib/kubelet/plugins/cases/in")).toBe("seen");
    await inside(name, "/bin/umount", "-l", "/var/lib/kubelet/plugins/cases/in");
    expect(await seen("looker")).toBe("");
    await remove("pod/mounter", "pod/looker", "pod/apart");
  });
});

describe.each([47, 127])("an image of %i layers", (layers) => {
  it("runs, with what each layer has", async () => {
    const many = `cases.test/layers:${layers}`;
    expect((await cli("images", "import", "-c", name, await layered(many, layers))).all).toMatch(/is imported/);
    const command = ["sh", "-c", "ls -d /layer-* | wc -l"];
    const printed = await outputs(pod(`layers-${layers}`, { image: many, command }));
    expect(printed).toEqual({ [`layers-${layers}`]: String(layers - 1) });
  });
});

it("a CSI driver registers with the kubelet, and its volumes are mounted for pods", async () => {
  const [driver, kubelet] = ["folder.test", "/var/lib/kubelet"];
  await apply(
    {
      apiVersion: "storage.k8s.io/v1",
      kind: "CSIDriver",
      metadata: { name: driver },
      spec: { attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: ["Ephemeral"] },
    },
    pod(
      "driver",
      {
        command: ["csi-driver", driver, name, kubelet],
        securityContext: { privileged: true },
        volumeMounts: [{ name: "kubelet", mountPath: kubelet, mountPropagation: "Bidirectional" }],
      },
      { volumes: [{ name: "kubelet", hostPath: { path: kubelet } }] },
    ),
  );
  await waitFor(
    "the driver is the node's",
    PATIENCE,
    async () => (await of("csinode", name, ".spec.drivers[*].name")) === driver || undefined,
    () => kubectl(name, "logs", "driver"),
  );
  const reader = pod(
    "reader",
    { command: ["cat", "/volume/pod"], volumeMounts: [{ name: "volume", mountPath: "/volume" }] },
    { volumes: [{ name: "volume", csi: { driver } }] },
  );
  expect(await outputs(reader)).toEqual({ reader: "reader" });
  await waitFor(
    "its volume is taken off",
    PATIENCE,
    async () => (await inside(name, "/bin/ls", `${kubelet}/plugins/${driver}/volumes`)) === "" || undefined,
  );
  await remove("pod/driver", `csidriver/${driver}`);
});

describe("a host port", () => {
  const port = (hostPort: number, more: object = {}) => ({ ports: [{ containerPort: 8080, hostPort, ...more }] });

  it("leads to the pod, from the host and from other pods, as long as it is there", async () => {
    await apply(web("hp", port(8085)));
    await ready("hp");
    const url = `http://${await address()}:8085/`;
    await answers(url, "hp ");
    const { asker } = await outputs(pod("asker", { command: ["testpod", "get", url] }));
    expect(asker).toMatch(/^hp /);
    await apply(web("second", port(8085)));
    await told("second", /FailedScheduling: .*didn't have free ports/);
    await remove("pod/hp");
    await answers(url, "second ");
    await remove("pod/second");
    await waitFor("nothing answers", PATIENCE, async () => (await get(url)).includes("ECONNREFUSED") || undefined);
  });

  it("is at the address that the pod names only, and by UDP too", async () => {
    await apply(
      web("local", port(8086, { hostIP: "127.0.0.1" })),
      pod("datagrams", {
        command: ["testpod", "echo", "9000"],
        ports: [{ containerPort: 9000, hostPort: 8087, protocol: "UDP" }],
      }),
    );
    await ready("local", "datagrams");
    const ask = (url: string) =>
      outputs(pod("on-node", { command: ["testpod", "get", url] }, { hostNetwork: true })).then(
        (printed) => printed["on-node"],
      );
    expect(await ask("http://127.0.0.1:8086/")).toMatch(/^local /);
    expect(await get(`http://${await address()}:8086/`)).toContain("ECONNREFUSED");
    const socket = createSocket("udp4");
    let said = "";
    socket.on("message", (message) => {
      said = message.toString();
    });
    const node = await address();
    await waitFor("the datagram comes back", PATIENCE, () => {
      socket.send("hello", 8087, node);
      return said === "hello" || undefined;
    });
    socket.close();
    await remove("pod/local", "pod/datagrams");
  });

  it("that the node itself has is told at the pod", async () => {
    await apply(web("taken", port(6443)));
    await told("taken", /FailedToListen: .*:6443\/TCP cannot be listened on/);
    await remove("pod/taken");
  });
});

describe("a load balancer", () => {
  const balancer = (service: string, selector: string, port: number, more: object = {}) => ({
    apiVersion: "v1",
    kind: "Service",
    metadata: { name: service },
    spec: { type: "LoadBalancer", selector: { app: selector }, ports: [{ port, targetPort: 8080 }], ...more },
  });
  const addressOf = (service: string) => of("service", service, ".status.loadBalancer.ingress[0].ip");
  const given = (service: string) =>
    waitFor(
      `${service} has an address`,
      PATIENCE,
      async () => (await addressOf(service)) || undefined,
      () => events(service),
    );

  it("has the node's address, which it shares with others, and the host reaches it", async () => {
    await apply(web("lb-a"), web("lb-b"), balancer("a", "lb-a", 8091), balancer("b", "lb-b", 8092));
    for (const service of ["a", "b"]) expect(await given(service)).toBe(await address());
    await ready("lb-a", "lb-b");
    await answers(`http://${await address()}:8091/`, "lb-a ");
    await answers(`http://${await address()}:8092/`, "lb-b ");
  });

  it("waits for a port that another has, says so, and gets it when it is free", async () => {
    await apply(balancer("c", "lb-b", 8091));
    await told("c", /Warning PortTaken: the port 8091\/TCP .* is taken by the Service default\/a/);
    expect(await addressOf("c")).toBe("");
    await kubectl(name, "delete", "service", "a");
    expect(await given("c")).toBe(await address());
    await answers(`http://${await address()}:8091/`, "lb-b ");
  });

  it("is reached from the host's own address where the option ports says so, and nothing is restarted", async () => {
    const port = await freePort();
    const published = { ...options, ports: [`${port}:8092`] };
    const before = record(name).pid;
    const { changed } = await changes(async (settings) => (await open(name, published)).up(settings));
    expect(changed).toEqual({ update: ["sandbox-process"] });
    expect(record(name).pid).toBe(before);
    await answers(`http://127.0.0.1:${port}/`, "lb-b ");
    const taken = createServer();
    await new Promise<void>((resolve) => taken.listen(0, "127.0.0.1", resolve));
    const { port: other } = taken.address() as AddressInfo;
    const refused = (await open(name, { ...options, ports: [`${other}:8092`] })).up();
    await expect(refused).rejects.toThrow(new RegExp(`ports: 127.0.0.1:${other} cannot be listened on`));
    taken.close();
    await (await open(name, options)).up();
    expect(await get(`http://127.0.0.1:${port}/`)).toContain("ECONNREFUSED");
  });

  it("takes callers from where it is told to", async () => {
    await apply(balancer("d", "lb-a", 8093, { loadBalancerSourceRanges: ["192.0.2.0/24"] }));
    await given("d");
    const url = `http://${await address()}:8093/`;
    await waitFor("the host is sent away", PATIENCE, async () => /ECONNRESET|closed/.test(await get(url)) || undefined);
    await remove("pod/lb-a", "pod/lb-b", "service/b", "service/c", "service/d");
  });
});

describe("files of the user's", () => {
  const log = "/var/log/gvisor-k3s/audit.log";
  const noted = (kind: string) =>
    inside(name, "/bin/busybox", "grep", "-c", `"resource":"${kind}"`, log).catch(() => "0");
  const notes = (kind: string) =>
    waitFor(`the audit log has ${kind}`, PATIENCE, async () => Number(await noted(kind)) > 0 || undefined);

  it("are what the API server and the kubelet go by", async () => {
    await kubectl(name, "create", "configmap", "audited");
    await notes("configmaps");
    expect(await noted("serviceaccounts")).toBe("0");
    const profile = { type: "Localhost", localhostProfile: "team/deny.json" };
    const printed = await outputs(
      pod("denied", { command: ["sh", "-c", "mkdir /x 2>&1; true"], securityContext: { seccompProfile: profile } }),
    );
    expect(printed.denied).toMatch(/Operation not permitted/);
  });

  it("are written again when they are gone, and restart the server when they change", async () => {
    const stack = await open(name, options);
    await inside(name, "/bin/rm", "/etc/kubernetes/audit/policy.yaml");
    expect((await changes((settings) => stack.up(settings))).changed).toEqual({ update: ["node-files"] });
    writeFileSync(audit, policyFor("serviceaccounts"));
    const { changed, output } = await changes((settings) => stack.up(settings));
    expect(changed.update).toEqual(["node-files", "node-server"]);
    expect(output).not.toContain("audit.k8s.io");
    await kubectl(name, "create", "serviceaccount", "audited");
    await notes("serviceaccounts");
  });

  it("that are asked for no more are taken away", async () => {
    const { files: _, apiServerArgs: __, ...node } = options.node;
    await (await open(name, { ...options, node })).up();
    for (const file of Object.keys(options.node.files)) await expect(inside(name, "/bin/cat", file)).rejects.toThrow();
  });
});

/** What people do with kubectl once a cluster is there, beyond what the other tests do with it. */
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { artifactFolder } from "../../artifacts/artifacts.ts";
import { waitFor } from "../../system/wait.ts";
import { changes, cli, endAll, kubectl, kubectlProcess, open, ownHome, pathsOf, shellImage } from "./harness.ts";

const home = await ownHome();
const name = "e2e-k";
const image = "example.test/shell:1";
const options = {
  images: [join(home, "shell.tar")],
  pod: { enabled: false },
  // The autoscaler looks every quarter of a minute otherwise, as metrics-server does.
  node: { controllerManagerArgs: ["horizontal-pod-autoscaler-sync-period=3s"] },
};

const apply = (object: object) => kubectlProcess(name, ["apply", "-f", "-"], { input: JSON.stringify(object) });
const container = (command: string) => ({
  name: "main",
  image,
  imagePullPolicy: "Never",
  command: ["sh", "-c", command],
});
/** A shell that ends at once when it is to: as process 1 it would ignore the signal. */
const idle = "trap 'exit 0' TERM; sleep infinity & wait";
const pod = (pod: string, spec: object) => ({
  apiVersion: "v1",
  kind: "Pod",
  metadata: { name: pod },
  spec: { terminationGracePeriodSeconds: 5, ...spec },
});
const deployment = (deployment: string, of: object) => ({
  apiVersion: "apps/v1",
  kind: "Deployment",
  metadata: { name: deployment },
  spec: {
    selector: { matchLabels: { app: deployment } },
    template: {
      metadata: { labels: { app: deployment } },
      spec: { terminationGracePeriodSeconds: 5, containers: [of] },
    },
  },
});

beforeAll(async () => {
  await shellImage(image, options.images[0]!);
  await (await open(name, options)).up();
  await apply(pod("shell", { containers: [container(idle)] }));
  await kubectl(name, "wait", "pod/shell", "--for=condition=Ready", "--timeout=60s");
});

afterAll(async () => {
  await endAll(home, name);
});

describe("kubectl", () => {
  it("exec -it is a terminal of the caller's size", async () => {
    const kubectlPath = join(artifactFolder({ name: "server" }), "gvisor-k3s-node");
    // The size comes a moment after the start.
    const sized =
      'test -t 0 && until case "$(stty size 2>&1)" in *"33 111"*) echo as large;; *) false;; esac; do sleep 0.1; done';
    const command =
      `stty rows 33 columns 111; ${kubectlPath} kubectl --kubeconfig ${pathsOf(name).kubeconfig} ` +
      `exec -it shell -- sh -c '${sized}'`;
    const { stdout } = await execa("script", ["--quiet", "--return", "--command", command, "/dev/null"], {
      timeout: 30_000,
    });
    expect(stdout).toContain("as large");
  });

  it("attach follows a process that runs, and gives it input", async () => {
    await apply(
      pod("echo", {
        containers: [{ ...container("while read -r line; do echo heard $line; done"), stdin: true, stdinOnce: true }],
      }),
    );
    await kubectl(name, "wait", "pod/echo", "--for=condition=Ready", "--timeout=60s");
    const { stdout } = await kubectlProcess(name, ["attach", "-i", "echo"], { input: "a word\n" });
    expect(stdout).toContain("heard a word");
  });

  it("logs -f goes on until the container ends, and --previous tells of the one before", async () => {
    await apply(
      pod("counter", {
        restartPolicy: "OnFailure",
        containers: [container("for i in 1 2 3; do echo line $i; sleep 1; done; exit 1")],
      }),
    );
    await waitFor(
      "it has started",
      60,
      async () =>
        (await kubectl(name, "get", "pod", "counter", "-o=jsonpath={.status.containerStatuses[0].started}")) ===
          "true" || undefined,
    );
    expect(await kubectl(name, "logs", "-f", "counter")).toContain("line 3");
    await waitFor(
      "it was started again",
      60,
      async () =>
        Number(
          await kubectl(name, "get", "pod", "counter", "-o=jsonpath={.status.containerStatuses[0].restartCount}"),
        ) > 0 || undefined,
    );
    expect(await kubectl(name, "logs", "--previous", "counter")).toContain("line 3");
    await kubectl(name, "delete", "pod", "counter");
  });

  it("debug puts a container beside one that runs, in its network and with its processes", async () => {
    await kubectl(
      name,
      "debug",
      "shell",
      `--image=${image}`,
      "--image-pull-policy=Never",
      "--target=main",
      "--container=debugger",
      "--",
      "sh",
      "-c",
      "cat /proc/1/cmdline | tr '\\0' ' '",
    );
    const logs = async () =>
      (await kubectlProcess(name, ["logs", "shell", "-c", "debugger"], { reject: false })).stdout as string;
    await waitFor(
      "the debugger has seen the pod's first process",
      60,
      async () => (await logs()).includes("sleep infinity") || undefined,
      logs,
    );
  });

  it("apply --server-side keeps each manager's fields", async () => {
    const map = (data: object) =>
      JSON.stringify({ apiVersion: "v1", kind: "ConfigMap", metadata: { name: "shared" }, data });
    const as = (manager: string, data: object, reject = true) =>
      kubectlProcess(name, ["apply", "--server-side", `--field-manager=${manager}`, "-f", "-"], {
        input: map(data),
        reject,
      });
    await as("one", { a: "1" });
    await as("two", { b: "2" });
    expect(JSON.parse(await kubectl(name, "get", "configmap", "shared", "-o=jsonpath={.data}"))).toEqual({
      a: "1",
      b: "2",
    });
    expect((await as("two", { a: "2" }, false)).stderr).toContain('conflict with "one"');
  });
});

describe("workloads", () => {
  it("a cron job runs its jobs, and a job's sidecar and init container end when they should", async () => {
    const main = container("cat /shared/word; echo done");
    const shared = { volumeMounts: [{ name: "shared", mountPath: "/shared" }] };
    const template = {
      spec: {
        restartPolicy: "Never",
        terminationGracePeriodSeconds: 5,
        volumes: [{ name: "shared", emptyDir: { medium: "Memory" } }],
        initContainers: [
          { ...container("echo prepared > /shared/word"), name: "init", ...shared },
          { ...container(idle), name: "sidecar", restartPolicy: "Always" },
        ],
        containers: [{ ...main, ...shared }],
      },
    };
    await apply({
      apiVersion: "batch/v1",
      kind: "CronJob",
      metadata: { name: "tick" },
      spec: { schedule: "0 0 1 1 *", jobTemplate: { spec: { template } } },
    });
    await kubectl(name, "create", "job", "tock", "--from=cronjob/tick");
    await kubectl(name, "wait", "job/tock", "--for=condition=Complete", "--timeout=60s");
    expect(await kubectl(name, "logs", "job/tock", "-c", "main")).toBe("prepared\ndone");
  });
});

it(
  "another stack has this cluster as an external one: the same outputs and test pod, and nothing " +
    "is installed or taken away",
  async () => {
    const [other, before] = ["e2e-x", await kubectl(name, "get", "all", "--namespace=kube-system", "-o=name")];
    const external = {
      mode: "external" as const,
      external: { kubeconfig: pathsOf(name).kubeconfig },
      pod: { image, args: ["/bin/sleep", "infinity"] },
    };
    const { outputs } = await (await open(other, external)).up();
    expect(outputs.testPod!.value).toMatchObject({ name: "testpod", phase: "Running" });
    expect(outputs.kubeconfigPath!.value).toBe(pathsOf(name).kubeconfig);
    expect(outputs.kubeconfig!.secret).toBe(true);
    expect((await changes(async (run) => await (await open(other, external)).up(run))).changed).toEqual({});
    await expect(
      async () =>
        await (await open(other, { ...external, external: { ...external.external, context: "elsewhere" } })).up(),
    ).rejects.toThrow(/external\.context = "elsewhere": there is no such context in the kubeconfig; there are: e2e-k/);
    const { exitCode, all } = await cli("destroy", other);
    expect(exitCode, all).toBe(0);
    await expect(kubectl(name, "get", "pod", "testpod")).rejects.toThrow(/not found/);
    expect(await kubectl(name, "get", "all", "--namespace=kube-system", "-o=name")).toBe(before);
  },
);

describe("kubectl top", () => {
  it("tells what the node and each container use", async () => {
    const usage = async (...args: string[]) =>
      (await kubectlProcess(name, ["top", ...args, "--no-headers"], { reject: false })).stdout as string;
    await waitFor(
      "metrics-server has looked twice",
      90,
      async () => /^shell +main +\d+m +\d+Mi *$/m.test(await usage("pods", "--containers")) || undefined,
    );
    const [, cpu, , memory] = (await usage("nodes")).split(/ +/);
    expect(Number.parseInt(cpu!, 10), "milli-CPUs").toBeGreaterThan(0);
    expect(Number.parseInt(memory!, 10), "MiB: the node's own processes").toBeGreaterThan(100);
    expect(await usage("pods", "-A", "--sum")).toMatch(/kube-system +coredns-\S+ +\d+m +[1-9]\d*Mi/);
  });

  it("is what an autoscaler goes by", async () => {
    await apply(deployment("busy", { ...container("while :; do :; done"), resources: { requests: { cpu: "10m" } } }));
    await kubectl(name, "autoscale", "deployment/busy", "--cpu=50%", "--min=1", "--max=2");
    const replicas = () => kubectl(name, "get", "deployment/busy", "-o=jsonpath={.spec.replicas}");
    const words = () => kubectl(name, "describe", "hpa", "busy");
    await waitFor("the busy one is given help", 120, async () => (await replicas()) === "2" || undefined, words);
    await kubectl(name, "delete", "hpa,deployment", "busy");
  });
});

it("kubectl drain empties the node, and uncordon has it filled again", async () => {
  await apply(deployment("web", container(idle)));
  await kubectl(name, "rollout", "status", "deployment/web", "--timeout=60s");
  const before = await kubectl(name, "get", "pods", "-l=app=web", "-o=name");
  await kubectl(name, "drain", name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=55s");
  expect(await kubectl(name, "get", "pods", "-A", "--field-selector=spec.nodeName!=", "-o=name")).toBe("");
  await kubectl(name, "uncordon", name);
  for (const [namespace, workload] of [
    ["default", "web"],
    ["kube-system", "coredns"],
    ["kube-system", "metrics-server"],
  ] as const) {
    await kubectl(name, "rollout", "status", `deployment/${workload}`, `--namespace=${namespace}`, "--timeout=55s");
  }
  expect(await kubectl(name, "get", "pods", "-l=app=web", "-o=name")).not.toBe(before);
  await kubectl(name, "delete", "deployment", "web");
});

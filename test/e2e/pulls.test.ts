/** Images from registries: what is pulled, with which credentials, and what a user is told when it fails. */
import { randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, statfsSync, writeFileSync } from "node:fs";
import { createServer, request, type Server } from "node:http";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { goArch } from "../../artifacts/artifacts.ts";
import { linkAddresses } from "../../config/network.ts";
import { defaultSubnet, type StackConfigInput } from "../../config/schema.ts";
import { unmountBelow } from "../../machines/managed.ts";
import { waitFor } from "../../system/wait.ts";
import { changes, cli, kubectl, kubectlProcess, open, ownHome, removeHome, services, stateFiles } from "./harness.ts";
import { account, otherArchitecture, push, selfSigned, startRegistry, stopRegistries } from "./registry.ts";

const home = await ownHome();
const name = "e2e-p";
const { host } = linkAddresses(defaultSubnet(name));
const [plain, secure, down] = [`${host}:5000`, `${host}:5001`, `${host}:5002`];
const folder = join(home, "registry");
const disk = join(home, "sandboxes");
const registriesFile = join(folder, "registries.yaml");
const proxyPort = 5003;
let proxy: Server;
const proxied: string[] = [];

/**
 * A stack with these passwords, that pulls `mirrored.test` from the registry that asks, and `host:5000` without TLS.
 */
function options(password: string, more: Partial<StackConfigInput> = {}): Record<string, unknown> {
  const registries = {
    mirrors: {
      "mirrored.test": { endpoint: [`https://${secure}`] },
      [plain]: { endpoint: [`http://${plain}`] },
      "proxied.test": { endpoint: ["http://registry.invalid:5000"] },
    },
    configs: { [secure]: { auth: { ...account, password }, tls: { ca_file: join(folder, "ca.crt") } } },
  };
  writeFileSync(registriesFile, JSON.stringify(registries), { mode: 0o600 });
  return {
    registries: registriesFile,
    sandbox: { hostPorts: [5000, 5001, 5002, proxyPort] },
    pod: { enabled: false },
    addons: { coredns: { enabled: false }, metricsServer: { enabled: false } },
    ...more,
  };
}

beforeAll(async () => {
  mkdirSync(folder, { recursive: true });
  const tls = await selfSigned(folder, host);
  // A disk of its own, so that a test can fill it.
  mkdirSync(disk);
  await execa("mount", ["-t", "tmpfs", "-o", "size=4G", "gvisor-k3s-e2e", disk]);
  // The host's end of the sandbox's link is where the registries are, and it is there only once the sandbox is.
  const stack = await open(name, options("wrong"));
  await stack.up();
  await startRegistry(folder, plain);
  await startRegistry(folder, secure, tls);
  // A proxy knows the way to a host whose name the sandbox cannot resolve.
  proxy = createServer((incoming, answer) => {
    proxied.push(incoming.url!);
    const { pathname, search } = new URL(incoming.url!);
    incoming.pipe(
      request(
        `http://${plain}${pathname}${search}`,
        { method: incoming.method!, headers: incoming.headers },
        (response) => {
          answer.writeHead(response.statusCode!, response.headers);
          response.pipe(answer);
        },
      ),
    );
  });
  await new Promise<void>((resolve) => proxy.listen(proxyPort, host, resolve));
});

afterAll(async () => {
  await stopRegistries();
  proxy?.close();
  if (process.env.KEEP) return;
  await cli("destroy", name);
  await unmountBelow(disk);
  removeHome(home);
});

async function runs(pod: string, image: string): Promise<void> {
  await kubectl(name, "run", pod, `--image=${image}`, "--restart=Never");
  await kubectl(name, "wait", `pod/${pod}`, "--for=condition=Ready", "--timeout=60s");
}

/** What the kubelet says of an image that it cannot pull, once that is what a pattern describes. */
async function refusal(pod: string, pattern: RegExp): Promise<string> {
  let said = "";
  return await waitFor(
    `${pod}: ${pattern}`,
    60,
    async () => {
      said = await kubectl(
        name,
        "get",
        "events",
        `--field-selector=involvedObject.name=${pod},reason=Failed`,
        "-o=jsonpath={.items[*].message}",
      );
      return pattern.test(said) ? said : undefined;
    },
    () => said,
  );
}

describe("an image is pulled", () => {
  let digest: string;

  it("by its tag, from an index of several architectures", async () => {
    digest = await push(folder, plain, "team/app", "1", [otherArchitecture, goArch()]);
    await runs("by-tag", `${plain}/team/app:1`);
  });

  it("by its digest", async () => {
    await runs("by-digest", `${plain}/team/app@${digest}`);
  });

  it("not where it is for another architecture only, and the reason is told", async () => {
    await push(folder, plain, "team/other", "1", [otherArchitecture]);
    await kubectl(name, "run", "other", `--image=${plain}/team/other:1`, "--restart=Never");
    await refusal("other", /no match for platform in manifest/);
  });

  it("not where there is none of that name, or no registry, and the reason is told", async () => {
    await kubectl(name, "run", "missing", `--image=${plain}/team/app:2`, "--restart=Never");
    await kubectl(name, "run", "nobody", `--image=${down}/team/app:1`, "--restart=Never");
    await refusal("missing", /team\/app:2: not found/);
    await refusal("nobody", /connection refused/);
  });
});

describe("a registry that asks who pulls, behind a mirror with a CA of its own", () => {
  it("refuses a wrong password, and its words are told", async () => {
    await kubectl(name, "run", "private", "--image=mirrored.test/team/app:1", "--restart=Never");
    await refusal("private", /401 Unauthorized|authorization failed/);
  });

  it("takes the right one, which is one restart of containerd, and is shown nowhere", async () => {
    const stack = await open(name, options(account.password));
    const preview = await changes((settings) => stack.preview(settings));
    expect(preview.changed).toEqual({ update: ["containerd-apply"] });
    const started = (await services(name)).containerd!.pid;
    const update = await changes((settings) => stack.up(settings));
    expect((await services(name)).containerd!.pid).not.toBe(started);
    for (const shown of [preview.output, update.output, ...stateFiles(home).map((file) => readFileSync(file, "utf8"))])
      expect(shown).not.toContain(account.password);
    await kubectl(name, "wait", "pod/private", "--for=condition=Ready", "--timeout=120s");
  });

  it("takes a pod's own credentials", async () => {
    const wrong = await open(name, options("wrong"));
    await wrong.up();
    await kubectl(
      name,
      "create",
      "secret",
      "docker-registry",
      "pull",
      "--docker-server=mirrored.test",
      `--docker-username=${account.username}`,
      `--docker-password=${account.password}`,
    );
    const spec = {
      spec: {
        imagePullSecrets: [{ name: "pull" }],
        containers: [{ name: "own", image: "mirrored.test/team/app:1", imagePullPolicy: "Always" }],
      },
    };
    await kubectlProcess(name, [
      "run",
      "own",
      "--image=mirrored.test/team/app:1",
      "--restart=Never",
      `--overrides=${JSON.stringify(spec)}`,
    ]);
    await kubectl(name, "wait", "pod/own", "--for=condition=Ready", "--timeout=60s");
  });
});

describe("a proxy", () => {
  it("is asked for what is not the node's own", async () => {
    const stack = await open(name, options(account.password, { proxy: { http: `http://${host}:${proxyPort}` } }));
    expect((await changes((settings) => stack.up(settings))).changed).toEqual({ update: ["containerd-apply"] });
    await runs("proxied", "proxied.test/team/app:1");
    expect(proxied.some((url) => url.startsWith("http://registry.invalid:5000/v2/team/app/"))).toBe(true);
    proxied.length = 0;
    await push(folder, plain, "team/direct", "1", [goArch()]);
    await runs("direct", `${plain}/team/direct:1`);
    expect(proxied).toEqual([]);
  });
});

it("a disk that fills up during a pull is told, and the pull succeeds once there is room", async () => {
  const resize = (size: string) => execa("mount", ["-o", `remount,size=${size}`, disk]);
  const { bsize, blocks, bfree } = statfsSync(disk);
  const data = join(folder, "data");
  writeFileSync(data, randomBytes(20 * 2 ** 20));
  await push(folder, plain, "large", "1", [goArch()], [`${data}:/data:0644`]);
  await resize(String((blocks - bfree) * bsize + 5 * 2 ** 20));
  await kubectl(name, "run", "large", `--image=${plain}/large:1`, "--restart=Never");
  await refusal("large", /no space left on device/);
  await resize("4G");
  await kubectl(name, "wait", "pod/large", "--for=condition=Ready", "--timeout=55s");
});

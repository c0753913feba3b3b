/** Who is let in, and what nobody may see. */
import { createHash, X509Certificate } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { request } from "node:https";
import { connect } from "node:net";
import { join } from "node:path";
import { execa } from "execa";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parse } from "yaml";
import { goArch } from "../../artifacts/artifacts.ts";
import { changes, cli, endAll, inside, kubectl, open, ownHome, pathsOf, stateFiles } from "./harness.ts";

const home = await ownHome();
const name = "e2e-s";
const options = { addons: { coredns: { enabled: false }, metricsServer: { enabled: false } } };
let address: string;
let admin: { ca: Buffer; cert: Buffer; key: Buffer };

beforeAll(async () => {
  const stack = await open(name, options);
  const { outputs } = await stack.up();
  address = outputs.address!.value;
  const { clusters, users } = parse(readFileSync(pathsOf(name).kubeconfig, "utf8"));
  const decoded = (base64: string) => Buffer.from(base64, "base64");
  admin = {
    ca: decoded(clusters[0].cluster["certificate-authority-data"]),
    cert: decoded(users[0].user["client-certificate-data"]),
    key: decoded(users[0].user["client-key-data"]),
  };
});

afterAll(async () => {
  await endAll(home, name);
});

/** The status of an answer, or the code of the error. */
function ask(port: number, path: string, options: object = {}): Promise<number | string> {
  return new Promise((resolve) => {
    request({ host: address, port, path, rejectUnauthorized: false, ...options }, (response) =>
      resolve(response.resume().statusCode!),
    )
      .on("error", (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message))
      .end();
  });
}

const [API, KUBELET] = [6443, 10250];

describe.each([
  ["the API server", API, "/api/v1/pods"],
  ["the kubelet", KUBELET, "/pods"],
])("%s", (_, port, path) => {
  it("refuses who shows nothing, and who shows a token that it did not give", async () => {
    expect(await ask(port, path)).toBe(401);
    expect(await ask(port, path, { headers: { authorization: "Bearer made-up" } })).toBe(401);
  });

  it("shows a certificate of the cluster's own CA, for its address", async () => {
    expect(await ask(port, path, { rejectUnauthorized: true, ca: admin.ca, cert: admin.cert, key: admin.key })).toBe(
      200,
    );
    expect(await ask(port, path, { rejectUnauthorized: true })).toBe("UNABLE_TO_VERIFY_LEAF_SIGNATURE");
  });

  it("refuses a pod's service account what it was not given", async () => {
    const token = await kubectl(name, "create", "token", "default");
    expect(await ask(port, path, { headers: { authorization: `Bearer ${token}` } })).toBe(403);
  });
});

it("no port answers from outside without asking who it is", async () => {
  const listening = (await inside(name, "/bin/netstat", "-ltn")).matchAll(/^tcp +\d+ +\d+ +(\S+):(\d+) /gm);
  const reachable = [...listening]
    .filter(([, local]) => !local!.startsWith("127.") && !local!.startsWith("10.4"))
    .map(([, , port]) => Number(port));
  // Pods have 8080, each in its own network.
  expect([...new Set(reachable)].filter((port) => port !== 8080).sort()).toEqual([KUBELET, API]);
  const connected = await new Promise((resolve) => {
    connect(10255, address)
      .on("connect", () => resolve("connected"))
      .on("error", (error: NodeJS.ErrnoException) => resolve(error.code));
  });
  expect(connected, "the kubelet's port for anybody").toBe("ECONNREFUSED");
});

it("keys and kubeconfigs can be read by root alone, wherever they lie", () => {
  const { state } = pathsOf(name);
  const secret = /-----BEGIN (EC |RSA )?PRIVATE KEY-----|client-key-data:|"?auth"?\s*[:=]/;
  const open: string[] = [];
  for (const entry of readdirSync(state, { recursive: true, withFileTypes: true })) {
    const file = join(entry.parentPath, entry.name);
    if (!entry.isFile() || statSync(file).size > 1_000_000 || /\/(bin|containerd|log|runsc)\//.test(file)) continue;
    if (secret.test(readFileSync(file, "latin1")) && (statSync(file).mode & 0o077) !== 0) open.push(file);
  }
  expect(open).toEqual([]);
  for (const folder of [home, state]) expect(statSync(folder).mode & 0o777).toBe(0o700);
});

it("the admin's key is in no state file, no log, no preview, and no process's arguments or environment", async () => {
  const key = admin.key.toString().split("\n")[1]!;
  expect(new X509Certificate(admin.cert).subject).toContain("system:masters");
  const shows = (text: string) => text.includes(key) || text.includes(admin.key.toString("base64").slice(0, 60));
  expect(stateFiles(home).filter((file) => shows(readFileSync(file, "utf8")))).toEqual([]);
  const logs = pathsOf(name).logs;
  expect(
    readdirSync(logs, { recursive: true, withFileTypes: true }).filter(
      (entry) => entry.isFile() && shows(readFileSync(join(entry.parentPath, entry.name), "latin1")),
    ),
  ).toEqual([]);
  const stack = await open(name, { ...options, node: { labels: { a: "b" } } });
  expect(shows((await changes((run) => stack.preview(run))).output)).toBe(false);
  const processes = readdirSync("/proc").filter((entry) => /^\d+$/.test(entry) && entry !== String(process.pid));
  const said = (pid: string) =>
    ["cmdline", "environ"].map((file) => {
      try {
        return readFileSync(`/proc/${pid}/${file}`, "latin1");
      } catch {
        return ""; // it has just ended
      }
    });
  expect(processes.filter((pid) => said(pid).some(shows))).toEqual([]);
});

/** An OCI layout whose layer, and which itself, has entries with paths that lead out of it. */
async function hostileArchive(archive: string): Promise<void> {
  const [files, layout] = [join(home, "hostile"), join(home, "hostile-layout")];
  mkdirSync(files);
  mkdirSync(join(layout, "blobs/sha256"), { recursive: true });
  for (const file of ["escaped-layer", "escaped-link", "escaped-outer"]) writeFileSync(join(files, file), "escaped");
  symlinkSync("/", join(files, "link"));
  const layer = join(home, "hostile-layer.tar");
  const up = "../".repeat(12);
  const add = (archive: string, ...args: string[]) =>
    execa("tar", ["--append", `--file=${archive}`, "--absolute-names", `--directory=${files}`, ...args]);
  await add(layer, `--transform=s,^,${up},`, "escaped-layer");
  await add(layer, "link");
  await add(layer, "--transform=s,^,link/,", "escaped-link");
  const blob = (content: string | Buffer, mediaType: string) => {
    const digest = createHash("sha256").update(content).digest("hex");
    writeFileSync(join(layout, "blobs/sha256", digest), content);
    return { mediaType, digest: `sha256:${digest}`, size: Buffer.byteLength(content) };
  };
  const layerBlob = blob(readFileSync(layer), "application/vnd.oci.image.layer.v1.tar");
  const config = blob(
    JSON.stringify({
      architecture: goArch(),
      os: "linux",
      config: {},
      rootfs: { type: "layers", diff_ids: [layerBlob.digest] },
    }),
    "application/vnd.oci.image.config.v1+json",
  );
  const manifest = blob(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: "application/vnd.oci.image.manifest.v1+json",
      config,
      layers: [layerBlob],
    }),
    "application/vnd.oci.image.manifest.v1+json",
  );
  writeFileSync(join(layout, "oci-layout"), JSON.stringify({ imageLayoutVersion: "1.0.0" }));
  writeFileSync(
    join(layout, "index.json"),
    JSON.stringify({
      schemaVersion: 2,
      manifests: [
        {
          ...manifest,
          annotations: { "io.containerd.image.name": "example.test/hostile:1" },
          platform: { architecture: goArch(), os: "linux" },
        },
      ],
    }),
  );
  await execa("tar", ["--create", `--file=${archive}`, `--directory=${layout}`, "oci-layout", "index.json", "blobs"]);
  await add(archive, `--transform=s,^,${up},`, "escaped-outer");
}

it("an archive of images with paths that lead out of it writes nothing outside of its own layer", async () => {
  const archive = join(home, "hostile.tar");
  await hostileArchive(archive);
  const { exitCode, all } = await cli("images", "import", "-c", name, archive);
  const escaped = (await inside(name, "/bin/find", "/", "-xdev", "-name", "escaped-*"))
    .split("\n")
    .filter((path) => path !== "");
  expect(escaped.filter((path) => !/^\/var\/lib\/containerd\/.*\/snapshots\/\d+\/fs\//.test(path))).toEqual([]);
  // It was unpacked as what it can be, or refused: not ignored.
  expect(exitCode !== 0 || escaped.length > 0, all).toBe(true);
  for (const file of ["escaped-layer", "escaped-link", "escaped-outer"])
    expect(existsSync(`/${file}`), file).toBe(false);
});

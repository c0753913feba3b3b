/** A real registry (distribution) for the tests that pull, on an address of the host's. */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { execa, type ResultPromise } from "execa";
import { artifactFolder, goArch } from "../../artifacts/artifacts.ts";
import { waitFor } from "../../system/wait.ts";

/** Who may pull from a registry that asks, and the password's bcrypt hash. */
export const account = { username: "puller", password: "a secret" };
const HTPASSWD = `${account.username}:$2a$04$EmZbQAIsurRaj2sNRR92KuJKFG0Asuk4C0sujKBPJWs9lwdqlrbSS\n`;

const running: ResultPromise[] = [];

/** Ends every registry of {@link startRegistry}. */
export async function stopRegistries(): Promise<void> {
  for (const registry of running.splice(0)) {
    registry.kill();
    await registry.catch(() => undefined);
  }
}

/** Makes a certificate for an address, and for names; `ca` is what a client needs to trust it. */
export async function selfSigned(
  folder: string,
  address: string,
  names: string[] = [],
): Promise<{ ca: string; key: string }> {
  const [ca, key] = ["ca.crt", "server.key"].map((file) => join(folder, file)) as [string, string];
  await execa("openssl", [
    "req",
    "-x509",
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:prime256v1",
    "-nodes",
    "-days",
    "1",
    "-subj",
    `/CN=${address}`,
    "-addext",
    `subjectAltName=${[`IP:${address}`, ...names.map((name) => `DNS:${name}`)].join(",")}`,
    "-keyout",
    key,
    "-out",
    ca,
  ]);
  return { ca, key };
}

/**
 * Starts a registry on what lies in a folder; with a certificate it speaks TLS and asks who pulls. Registries may share
 * a folder.
 */
export async function startRegistry(folder: string, host: string, tls?: { ca: string; key: string }): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const [config, passwords] = [join(folder, `${host}.json`), join(folder, "htpasswd")];
  writeFileSync(passwords, HTPASSWD);
  writeFileSync(
    config,
    JSON.stringify({
      version: 0.1,
      log: { level: "error" },
      storage: { filesystem: { rootdirectory: join(folder, "images") } },
      http: { addr: host, ...(tls ? { tls: { certificate: tls.ca, key: tls.key } } : {}) },
      ...(tls ? { auth: { htpasswd: { realm: "test", path: passwords } } } : {}),
    }),
  );
  const registry = execa(join(artifactFolder({ name: "registry" }), "registry"), ["serve", config], {
    all: true,
    reject: false,
  });
  running.push(registry);
  let ended: string | undefined;
  registry.then(({ all }) => {
    ended = all;
  });
  await waitFor(`the registry answers at ${host}`, 20, () => {
    if (ended !== undefined) throw new Error(`the registry ended: ${ended}`);
    return execa("curl", [
      "--silent",
      "--insecure",
      "--output",
      "/dev/null",
      `${tls ? "https" : "http"}://${host}/v2/`,
    ]).then(
      () => true as const,
      () => undefined,
    );
  });
}

interface Descriptor {
  mediaType: string;
  digest: string;
  size: number;
}

/**
 * Pushes the only image of an archive that mkimage made to a registry without TLS.
 * @param work a folder; the archive is unpacked below it
 * @param tag the image is pushed by its digest alone where there is none
 * @returns its descriptor
 */
export async function pushArchive(
  work: string,
  host: string,
  repository: string,
  archive: string,
  tag?: string,
): Promise<Descriptor> {
  const layout = mkdtempSync(join(work, "layout-"));
  try {
    await execa("tar", ["-xf", archive, "-C", layout]);
    const blob = (digest: string) => readFileSync(join(layout, "blobs", digest.replace(":", "/")));
    const [{ mediaType, digest, size }] = JSON.parse(readFileSync(join(layout, "index.json"), "utf8")).manifests;
    const manifest = JSON.parse(blob(digest).toString());
    for (const { digest } of [manifest.config, ...manifest.layers]) {
      const { headers } = await sent(`http://${host}/v2/${repository}/blobs/uploads/`, "POST");
      const location = new URL(headers.get("location")!, `http://${host}`);
      location.searchParams.set("digest", digest);
      await sent(location, "PUT", blob(digest), "application/octet-stream");
    }
    await sent(`http://${host}/v2/${repository}/manifests/${tag ?? digest}`, "PUT", blob(digest), mediaType);
    return { mediaType, digest, size };
  } finally {
    rmSync(layout, { recursive: true });
  }
}

/** Makes an image of the test program for one architecture and pushes it; returns its descriptor. */
async function pushOne(
  folder: string,
  host: string,
  repository: string,
  architecture: string,
  files: string[],
): Promise<Descriptor & { platform: { os: string; architecture: string } }> {
  const [tools, archive] = [artifactFolder({ name: "images" }), join(folder, `${architecture}.tar`)];
  await execa(join(tools, "mkimage"), [
    "--platform",
    `linux/${architecture}`,
    "--file",
    `${join(tools, "testpod")}:/testpod:0755`,
    ...files.flatMap((file) => ["--file", file]),
    "--entrypoint",
    "/testpod",
    "--name",
    "example.test/app:1",
    "-o",
    archive,
  ]);
  return { ...(await pushArchive(folder, host, repository, archive)), platform: { os: "linux", architecture } };
}

/** Pushes an image of the test program as an index of these architectures; returns the index's digest. */
export async function push(
  folder: string,
  host: string,
  repository: string,
  tag: string,
  architectures: string[],
  files: string[] = [],
): Promise<string> {
  const manifests = [];
  for (const architecture of architectures)
    manifests.push(await pushOne(folder, host, repository, architecture, files));
  const mediaType = "application/vnd.oci.image.index.v1+json";
  const { headers } = await sent(
    `http://${host}/v2/${repository}/manifests/${tag}`,
    "PUT",
    Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType, manifests })),
    mediaType,
  );
  return headers.get("docker-content-digest")!;
}

/** An architecture that this machine does not have. */
export const otherArchitecture = goArch() === "arm64" ? "amd64" : "arm64";

async function sent(url: string | URL, method: string, body?: Buffer, type?: string): Promise<Response> {
  const response = await fetch(url, {
    method,
    ...(body ? { body: new Uint8Array(body), headers: { "content-type": type! } } : {}),
  });
  if (!response.ok) throw new Error(`${method} ${url}: ${response.status} ${await response.text()}`);
  return response;
}

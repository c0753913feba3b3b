/** What a release has ready-made: from a folder, from a server on loopback, and from none. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { createServer, type RequestListener, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { getCACertificates, setDefaultCACertificates } from "node:tls";
import { zstdCompressSync } from "node:zlib";
import { create } from "tar";
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { artifactsFolder } from "../../artifacts/cache.ts";
import { archiveName, obtain, type Release } from "../../artifacts/release.ts";
import { cacheFolder } from "../../system/folders.ts";

const root = join(import.meta.dirname, "../..");
const id = "init-0123456789ab";
const sha256 = (bytes: Buffer | string) => createHash("sha256").update(bytes).digest("hex");
const servers: Server[] = [];
let folder: string;
let content: Buffer;
let release: Release;
let http: string;
let https: string;
/** What the servers answer, and what they were asked for. */
let answer: (response: ServerResponse) => unknown;
let asked: string[];
let said: string[];

const listen = async (server: Server): Promise<number> => {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  servers.push(server);
  return (server.address() as AddressInfo).port;
};

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "gvisor-k3s-release-"));
  const artifact = join(folder, "artifact");
  mkdirSync(join(artifact, "bin"), { recursive: true });
  writeFileSync(join(artifact, "bin/program"), "a program", { mode: 0o755 });
  execFileSync("ln", ["-s", "program", join(artifact, "bin/other")]);
  const tarball = create({ cwd: artifact, sync: true, portable: true }, ["bin/program", "bin/other"]).read() as Buffer;
  content = zstdCompressSync(tarball);
  const listener: RequestListener = (request, response) => {
    asked.push(request.url!);
    answer(response);
  };
  http = `http://127.0.0.1:${await listen(createServer(listener))}`;
  const [key, cert] = [join(folder, "key.pem"), join(folder, "cert.pem")];
  const subject = ["-subj", "/CN=loopback", "-addext", "subjectAltName=IP:127.0.0.1"];
  execFileSync(
    "openssl",
    ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"].concat(
      ["-keyout", key, "-out", cert],
      subject,
    ),
    { stdio: "ignore" },
  );
  const tls = createTlsServer({ key: readFileSync(key), cert: readFileSync(cert) }, listener) as unknown as Server;
  https = `https://127.0.0.1:${await listen(tls)}`;
  setDefaultCACertificates([...getCACertificates("default"), readFileSync(cert, "utf8")]);
});

beforeEach(() => {
  vi.stubEnv("GVISOR_K3S_CACHE", mkdtempSync(join(folder, "cache-")));
  vi.stubEnv("GVISOR_K3S_ARTIFACTS", undefined);
  for (const name of ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"]) vi.stubEnv(name, undefined);
  const archive = {
    package: "gvisor-k3s-linux-test",
    usual: true,
    size: content.length,
    sha256: sha256(content),
    unpacked: 9,
    files: { "bin/program": sha256("a program"), "bin/other": "-> program" },
  };
  release = { version: "1.2.3", platform: "linux-test", sources: "", variants: {}, archives: { [id]: archive } };
  answer = (response) => response.writeHead(200).end(content);
  asked = [];
  said = [];
  return () => vi.unstubAllEnvs();
});

afterAll(() => {
  for (const server of servers) server.close();
  rmSync(folder, { recursive: true });
});

const from = async (place: string) => {
  vi.stubEnv("GVISOR_K3S_ARTIFACTS", place);
  return await obtain(id, release, (line) => said.push(line));
};
const filesIn = (path: string) => (existsSync(path) ? readdirSync(path) : []);

/** Nothing that looks like an artifact, and nothing half-made. */
function nothingMade(): void {
  expect(filesIn(artifactsFolder())).toEqual([]);
  expect(filesIn(join(cacheFolder(), "downloads"))).toEqual([]);
}

function expectWhole(path: string): void {
  expect(path).toBe(join(artifactsFolder(), id));
  expect(readFileSync(join(path, "bin/other"), "utf8")).toBe("a program");
  expect(filesIn(join(cacheFolder(), "downloads"))).toEqual([]);
}

describe("an artifact", () => {
  it("comes from a folder, with its modes whatever the umask is", async () => {
    writeFileSync(join(folder, archiveName(id)), content);
    const before = process.umask(0o077);
    try {
      const made = await from(folder);
      expectWhole(made);
      for (const path of [made, join(made, "bin"), join(made, "bin/program")])
        expect(statSync(path).mode & 0o777).toBe(0o755);
    } finally {
      process.umask(before);
    }
  });

  it("comes from an https address, and is told with sizes", async () => {
    expectWhole(await from(`${https}/some/mirror/`));
    expect(asked).toEqual([`/some/mirror/${archiveName(id)}`]);
    expect(said[0]).toMatch(new RegExp(`^downloading ${id} \\(\\d+\\.\\d MB\\) from ${https}/some/mirror/`));
    expect(said.at(-1)).toMatch(/: (\d+\.\d MB) of \1, \d+ s$/);
  });

  it("is asked for again where the connection was cut, or the server was ill", async () => {
    const answers: (typeof answer)[] = [
      (response) =>
        response
          .writeHead(200, { "content-length": content.length })
          .write(content.subarray(0, 10), () => response.destroy()),
      (response) => response.writeHead(503).end(),
      (response) => response.writeHead(200).end(content),
    ];
    answer = (response) => answers.shift()!(response);
    expectWhole(await from(http));
    expect(asked).toHaveLength(3);
    expect(said.join("\n")).toContain("the connection was cut after 10 of");
  });

  it("is followed to where it was moved, but from TLS to none", async () => {
    const location = `${http}/elsewhere`;
    answer = (response) => {
      answer = (second) => second.writeHead(200).end(content);
      response.writeHead(302, { location }).end();
    };
    expectWhole(await from(http));
    rmSync(join(artifactsFolder(), id), { recursive: true });
    answer = (response) => response.writeHead(302, { location }).end();
    await expect(from(https)).rejects.toThrow(`it was moved to ${location}, without TLS`);
    nothingMade();
  });

  it("comes from the npm package that is installed beside this one, of this version alone", async () => {
    const beside = join(root, "node_modules/gvisor-k3s-linux-test");
    mkdirSync(beside);
    try {
      writeFileSync(join(beside, archiveName(id)), content);
      writeFileSync(join(beside, "package.json"), JSON.stringify({ version: "1.2.2" }));
      await expect(obtain(id, release, () => {})).rejects.toThrow("gvisor-k3s-linux-test 1.2.3: it is not installed");
    } finally {
      rmSync(beside, { recursive: true });
    }
  });
});

describe("what is wrong is told, and nothing is made", () => {
  it("a connection that is cut again and again", async () => {
    answer = (response) => response.writeHead(200).write("x", () => response.destroy());
    await expect(from(https)).rejects.toThrow(/GVISOR_K3S_ARTIFACTS \(https.*\): the connection was cut after 1 of/);
    expect(asked).toHaveLength(3);
    nothingMade();
  });

  it("a file that is shorter, longer, or another one", async () => {
    answer = (response) => response.writeHead(200).end(content.subarray(1));
    await expect(from(http)).rejects.toThrow(`it ended after ${content.length - 1} of ${content.length} bytes`);
    answer = (response) => response.writeHead(200).end(Buffer.concat([content, content]));
    await expect(from(http)).rejects.toThrow(`it is longer than the ${content.length} bytes that it should have`);
    const other = Buffer.from(content);
    other[20]! ^= 1;
    answer = (response) => response.writeHead(200).end(other);
    await expect(from(http)).rejects.toThrow(`its SHA-256 is ${sha256(other)}, and ${sha256(content)} is expected`);
    nothingMade();
  });

  it("an archive whose files are not what the manifest says, be it one, one more or one less", async () => {
    const { files } = release.archives[id]!;
    for (const wrong of [
      { ...files, "bin/program": sha256("x") },
      { ...files, more: "" },
      { "bin/other": "-> program" },
    ]) {
      release.archives[id]!.files = wrong as Record<string, string>;
      await expect(from(http)).rejects.toThrow(/(bin\/program|more) in it is not what the manifest says/);
    }
    nothingMade();
  });

  it("a file that is missing, and a server that does not answer", async () => {
    answer = (response) => response.writeHead(404).end();
    await expect(from(http)).rejects.toThrow("the server says 404 Not Found");
    await expect(from(join(folder, "nowhere"))).rejects.toThrow(
      `GVISOR_K3S_ARTIFACTS (${join(folder, "nowhere", archiveName(id))}): there is no such file`,
    );
    await expect(from("http://127.0.0.1:1")).rejects.toThrow("ECONNREFUSED 127.0.0.1:1");
    nothingMade();
  });

  it("each place that was tried, in order, and what to do", async () => {
    vi.stubEnv("PATH", "/nowhere");
    const refusal = await obtain(id, release, () => {}).catch((error: Error) => error.message);
    expect(refusal).toBe(
      [
        `${id} cannot be had:`,
        "  the npm package gvisor-k3s-linux-test 1.2.3: it is not installed",
        "  GVISOR_K3S_ARTIFACTS: it is not set",
        `  the cache (${artifactsFolder()}): it is not in it`,
        "  a build from source: there is no Go compiler",
        "install gvisor-k3s-linux-test@1.2.3 (npm leaves it out with --omit=optional), or set GVISOR_K3S_ARTIFACTS to a " +
          "folder or an https address with the archives of this release",
      ].join("\n"),
    );
  });

  it("an id that the release does not have: it is never taken for another one", async () => {
    await expect(obtain("init-fedcba987654", release, () => {})).rejects.toThrow(
      `init-fedcba987654 is not in the release 1.2.3 for linux-test, which has ${id}; a checkout of the sources builds it`,
    );
  });

  it("a disk without room for all that is taken, before any of it is there", async () => {
    release.archives.more = { ...release.archives[id]!, unpacked: 1e15 };
    await expect(from(http)).rejects.toThrow(
      /^no space: .*artifacts has \d+\.\d MB free, and what a machine takes needs 1000000064\.0 MB; make room, or set GVISOR_K3S_CACHE/,
    );
    expect(asked).toEqual([]);
    nothingMade();
  });

  it("a cache that cannot be written", async () => {
    vi.stubEnv("GVISOR_K3S_CACHE", join(folder, "key.pem/cache"));
    await expect(from(http)).rejects.toThrow(
      /^the cache .*\/key.pem\/cache cannot be written \(.*\); set GVISOR_K3S_CACHE to a folder that can$/,
    );
  });
});

describe("a manifest of a release", () => {
  const manifestWith = async (more: object) => {
    const file = join(folder, "manifest.json");
    const plain = JSON.parse(readFileSync(join(root, "test/unit/fixtures/manifest.json"), "utf8")) as object;
    writeFileSync(file, JSON.stringify({ ...plain, ...more }));
    vi.stubEnv("GVISOR_K3S_MANIFEST", file);
    vi.resetModules();
    return await import("../../artifacts/artifacts.ts");
  };

  it("has the fewest patches that are ready and have all that are asked for", async () => {
    const all = ["cap-last-cap", "setns-exec", "tmpfs-nr-blocks"];
    const exact = (await manifestWith({})).artifactId;
    const [one, every] = [["setns-exec"], all].map((patches) => exact({ name: "runc", patches }));
    const { artifactId } = await manifestWith({ release: { ...release, variants: { runc: [all, ["setns-exec"]] } } });
    expect(artifactId({ name: "runc", patches: ["setns-exec"] })).toBe(one);
    expect(artifactId({ name: "runc", patches: ["cap-last-cap"] })).toBe(every);
    expect(artifactId({ name: "runc" })).toBe("runc-000000000002");
  });

  it("has stand-ins for plugins only for who asks for them", async () => {
    const standins = { ...release.archives[id]!, package: "gvisor-k3s-standins-linux-test" };
    const archives = { "standins-00000000000b": standins };
    const { takesStandins } = await manifestWith({ release: { ...release, archives } });
    expect(takesStandins()).toBe(false);
    vi.stubEnv("GVISOR_K3S_STANDINS", "1");
    expect(takesStandins()).toBe(true);
    expect((await manifestWith({})).takesStandins()).toBe(true); // a checkout
  });
});

it("the cache of who has no home is a folder of the system's", () => {
  expect(cacheFolder({})).toMatch(/gvisor-k3s$/);
  vi.stubEnv("GVISOR_K3S_CACHE", undefined);
  vi.stubEnv("HOME", "");
  expect(cacheFolder({})).toBe("/var/cache/gvisor-k3s");
});

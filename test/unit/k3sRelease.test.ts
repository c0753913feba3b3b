/** The download of a k3s release, from a server on loopback. */
import { createHash, randomBytes } from "node:crypto";
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
import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from "vitest";
import { artifactsFolder } from "../../artifacts/artifacts.ts";
import { fetchK3s, k3sFolder, releaseFiles } from "../../artifacts/k3sRelease.ts";

const version = "v1.36.4+k3s1";
const { binary, sums } = releaseFiles();
const content = randomBytes(600_000);
const sha256 = (bytes: Buffer | string) => createHash("sha256").update(bytes).digest("hex");
const goodList = `${sha256("images")}  k3s-airgap-images.tar\n${sha256(content)}  ${binary}\n`;

let server: Server;
let mirror: string;
let cache: string;
/**
 * What is served, by the file's name; and how a request for the binary is answered, where that is not as it should be.
 */
let files: Record<string, Buffer | string>;
let answer: ((response: ServerResponse, from: number) => boolean) | undefined;
let requests: { url: string; range: string | undefined }[];

beforeAll(async () => {
  server = createServer((request, response) => {
    const { range } = request.headers;
    requests.push({ url: request.url!, range });
    const file = files[request.url!.split("/").at(-1)!];
    const from = Number(range?.match(/^bytes=(\d+)-/)?.[1] ?? 0);
    if (file === undefined) response.writeHead(404).end();
    else if (request.url!.endsWith(`/${binary}`) && answer?.(response, from)) return;
    else if (from >= file.length) response.writeHead(416).end();
    else
      response
        .writeHead(from > 0 ? 206 : 200, {
          "content-length": file.length - from,
          ...(from > 0 ? { "content-range": `bytes ${from}-${file.length - 1}/${file.length}` } : {}),
        })
        .end(file.slice(from));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  mirror = `http://127.0.0.1:${(server.address() as AddressInfo).port}/releases`;
});

beforeEach(() => {
  cache = mkdtempSync(join(tmpdir(), "gvisor-k3s-release-"));
  vi.stubEnv("GVISOR_K3S_CACHE", cache);
  for (const name of ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]) vi.stubEnv(name, undefined);
  files = { [binary]: content, [sums]: goodList };
  answer = undefined;
  requests = [];
  return () => rmSync(cache, { recursive: true });
});

afterAll(() => {
  vi.unstubAllEnvs();
  server.close();
});

const bring = (release: object = { mirror }) => fetchK3s({ version, ...release }, () => {});
/** Nothing that looks like a release, and nothing half-made. */
const nothingMade = () => expect(existsSync(artifactsFolder()) ? readdirSync(artifactsFolder()) : []).toEqual([]);

describe("a release", () => {
  it("is downloaded by its tag, verified, and there to be run; a second time nothing is asked for", async () => {
    const folder = await bring();
    expect(folder).toBe(k3sFolder({ version }));
    expect(readFileSync(join(folder, "k3s")).equals(content)).toBe(true);
    expect(statSync(join(folder, "k3s")).mode & 0o777).toBe(0o755);
    expect(requests.map(({ url }) => url)).toEqual([
      `/releases/v1.36.4%2Bk3s1/${sums}`,
      `/releases/v1.36.4%2Bk3s1/${binary}`,
    ]);
    expect(readdirSync(join(cache, "downloads"))).toEqual([]);
    await bring();
    expect(requests).toHaveLength(2);
  });

  it("goes on where the connection was cut", async () => {
    answer = (response, from) => {
      if (from > 0) return false;
      response.writeHead(200, { "content-length": content.length });
      response.write(content.subarray(0, 200_000), () => response.destroy());
      return true;
    };
    await bring();
    expect(requests.slice(2).map(({ range }) => range)).toEqual(["bytes=200000-"]);
  });

  it("goes on where an earlier try was killed", async () => {
    mkdirSync(join(cache, "downloads", `k3s-${version}`), { recursive: true });
    writeFileSync(join(cache, "downloads", `k3s-${version}`, binary), content.subarray(0, 1000));
    await bring();
    expect(requests.at(-1)!.range).toBe("bytes=1000-");
  });

  it("that an earlier try had whole is not asked for again", async () => {
    mkdirSync(join(cache, "downloads", `k3s-${version}`), { recursive: true });
    writeFileSync(join(cache, "downloads", `k3s-${version}`, binary), content);
    await bring();
    expect(requests.map(({ url }) => url.split("/").at(-1))).toEqual([sums]);
  });

  it("is whole when two ask for it at once", async () => {
    await Promise.all([bring(), bring()]);
    expect(readFileSync(join(k3sFolder({ version }), "k3s")).equals(content)).toBe(true);
    expect(readdirSync(artifactsFolder())).toHaveLength(1);
  });

  it("is followed to where it was moved", async () => {
    answer = (response) => {
      files.elsewhere = content;
      response.writeHead(302, { location: `${mirror}/elsewhere` }).end();
      return true;
    };
    expect(existsSync(join(await bring(), "k3s"))).toBe(true);
  });

  it("is taken from a folder, verified all the same", async () => {
    const airgap = join(cache, "airgap");
    mkdirSync(airgap);
    for (const [file, bytes] of Object.entries(files)) writeFileSync(join(airgap, file), bytes);
    await bring({ airgap });
    expect(requests).toEqual([]);
    const folder = k3sFolder({ version, airgap });
    expect(folder).not.toBe(k3sFolder({ version }));
    const list = readFileSync(join(airgap, sums), "utf8");
    writeFileSync(join(airgap, sums), list.replace(sha256(content), sha256("another program")));
    expect(k3sFolder({ version, airgap })).not.toBe(folder); // the same tag, and another thing
    writeFileSync(join(airgap, sums), list);
    rmSync(folder, { recursive: true });
    writeFileSync(join(airgap, binary), "another program");
    await expect(bring({ airgap })).rejects.toThrow(
      `${join(airgap, binary)} is not what ${sums} says: its SHA-256 is ${sha256("another program")}, ` +
        `and ${sha256(content)} is expected`,
    );
    rmSync(join(airgap, binary));
    await expect(bring({ airgap })).rejects.toThrow(
      `${airgap} lacks ${binary} or ${sums} of ${version}; the folder of the option k3s.airgap must hold both`,
    );
    nothingMade();
  });
});

describe("what is wrong is told, and nothing is made", () => {
  it("a file that is not what the list says, which is deleted, so that the next try can succeed", async () => {
    // whatever the last byte is
    files[binary] = Buffer.concat([content.subarray(0, -1), Buffer.from([content.at(-1)! ^ 1])]);
    await expect(bring()).rejects.toThrow(
      /is not what sha256sum-\w+\.txt says: its SHA-256 is [0-9a-f]{64}, and [0-9a-f]{64} is expected; it was deleted/,
    );
    nothingMade();
    files[binary] = content;
    await bring();
  });

  it("a file that ends too early, again and again", async () => {
    answer = (response, from) => {
      response.writeHead(from > 0 ? 206 : 200, {
        "content-length": content.length - from,
        ...(from > 0 ? { "content-range": `bytes ${from}-${content.length - 1}/${content.length}` } : {}),
      });
      response.write(content.subarray(from, from + 1000), () => response.destroy());
      return true;
    };
    await expect(bring()).rejects.toThrow(`${mirror}/v1.36.4%2Bk3s1/${binary} cannot be downloaded (curl: (18)`);
    nothingMade();
  });

  it("no such release", async () => {
    files = {};
    await expect(bring()).rejects.toThrow(
      /sha256sum-\w+\.txt cannot be downloaded \(curl: \(22\) .* 404\); there is no such file: see .*releases, and set k3s\.version/,
    );
    nothingMade();
  });

  it("a list without the binary", async () => {
    files[sums] = `${sha256("images")}  k3s-airgap-images.tar\n`;
    await expect(bring()).rejects.toThrow(
      `${sums} has no SHA-256 of ${binary}; give the address of a complete release of ${version}`,
    );
    nothingMade();
  });
});

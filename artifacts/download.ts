/**
 * Downloads by Node.js alone, because a bare machine has no other program for it.
 * @module
 */
import { createHash } from "node:crypto";
import { createWriteStream } from "node:fs";
import { rm } from "node:fs/promises";
import { Agent, get, type IncomingMessage } from "node:http";
import { Agent as TlsAgent, get as tlsGet } from "node:https";
import { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { getCACertificates } from "node:tls";

/** What a file is known by before it is there. */
export interface Known {
  /** Bytes. */
  size: number;
  sha256: string;
}

const ATTEMPTS = 3;
const REDIRECTS = 5;

/** Milliseconds without a byte after which a server is given up, and between two lines that tell how far it is. */
const [SILENCE, PROGRESS] = [30_000, 5_000];

/** A transfer that ended in its midst; it is tried again. */
class Cut extends Error {}

/**
 * Downloads a file, which is then what it is known to be, or not there. Proxies are taken from the environment
 * (HTTPS_PROXY, HTTP_PROXY, NO_PROXY); certificates of the system are trusted beside those of Node.js.
 * @param say takes a line now and then: how much is there, of how much, since when
 * @throws Error with the reason alone: it does not name the address
 */
export async function download(url: string, file: string, known: Known, say: (line: string) => void): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await receive(await open(new URL(url)), file, known, say);
      return;
    } catch (error) {
      await rm(file, { force: true });
      if (!(error instanceof Cut) || attempt === ATTEMPTS) throw error;
      say(`${error.message}; it is tried again`);
    }
  }
}

/** Asks for an address, and follows where it was moved to. */
async function open(url: URL, redirects = 0): Promise<IncomingMessage> {
  const response = await ask(url);
  const { statusCode = 0, statusMessage, headers } = response;
  if (statusCode === 200) return response;
  response.destroy();
  if (statusCode >= 300 && statusCode < 400 && headers.location !== undefined) {
    const to = new URL(headers.location, url);
    if (redirects === REDIRECTS) throw new Error(`it was moved more than ${REDIRECTS} times`);
    if (url.protocol === "https:" && to.protocol !== "https:") throw new Error(`it was moved to ${to}, without TLS`);
    return await open(to, redirects + 1);
  }
  const told = `the server says ${statusCode} ${statusMessage}`;
  throw statusCode >= 500 ? new Cut(told) : new Error(told);
}

function ask(url: URL): Promise<IncomingMessage> {
  const { promise, resolve, reject } = Promise.withResolvers<IncomingMessage>();
  const tls = url.protocol === "https:";
  const ca = tls ? [...getCACertificates("default"), ...getCACertificates("system")] : [];
  const agent = tls ? new TlsAgent({ proxyEnv: process.env, ca }) : new Agent({ proxyEnv: process.env });
  const request = (tls ? tlsGet : get)(url, { agent, timeout: SILENCE }, resolve);
  request.on("timeout", () => request.destroy(new Cut(`the server sent nothing for ${SILENCE / 1000} s`)));
  request.on("error", (error: NodeJS.ErrnoException) =>
    reject(error.code === "ECONNRESET" ? new Cut("the connection was cut") : error),
  );
  return promise;
}

async function receive(
  response: IncomingMessage,
  file: string,
  { size, sha256 }: Known,
  say: (line: string) => void,
): Promise<void> {
  const [hash, began] = [createHash("sha256"), performance.now()];
  let received = 0;
  const tell = () => {
    const seconds = Math.round((performance.now() - began) / 1000);
    say(`${megabytes(received)} of ${megabytes(size)}, ${seconds} s`);
  };
  const count = new Transform({
    transform(chunk: Buffer, _, done) {
      received += chunk.length;
      hash.update(chunk);
      done(received > size ? new Error(`it is longer than the ${size} bytes that it should have`) : null, chunk);
    },
  });
  const progress = setInterval(tell, PROGRESS);
  try {
    await pipeline(response, count, createWriteStream(file, { mode: 0o600 }));
  } catch (error) {
    const cut = ["ECONNRESET", "ERR_STREAM_PREMATURE_CLOSE"].includes((error as NodeJS.ErrnoException).code ?? "");
    throw cut ? new Cut(`the connection was cut after ${received} of ${size} bytes`) : error;
  } finally {
    clearInterval(progress);
  }
  if (received < size) throw new Cut(`it ended after ${received} of ${size} bytes`);
  const found = hash.digest("hex");
  if (found !== sha256) throw new Error(`its SHA-256 is ${found}, and ${sha256} is expected`);
  tell();
}

/** A size for people. */
export const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;

import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { podLogs } from "../../steps/podLogs.ts";

/** An API server that knows logs alone. */
let asked = 0;
let answer: (response: ServerResponse) => void;
const server = createServer((_, response) => {
  asked++;
  response.setHeader("content-type", "text/plain");
  answer(response);
});
const refuse = (response: ServerResponse) => {
  response.writeHead(502, { "content-type": "application/json" });
  response.end('{"kind":"Status","status":"Failure","message":"dial tcp: connection refused"}');
};
const read = (seconds: number) => {
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const kubeconfig = {
    clusters: [{ name: "a", cluster: { server: url, "insecure-skip-tls-verify": true } }],
    users: [{ name: "a", user: {} }],
    contexts: [{ name: "a", context: { cluster: "a", user: "a" } }],
    "current-context": "a",
  };
  const pod = { namespace: "default", name: "a", container: "main", uid: "1" };
  return podLogs(pod, JSON.stringify(kubeconfig), seconds);
};

beforeAll(() => new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve)));
afterAll(() => {
  server.close();
  server.closeAllConnections();
});
beforeEach(() => {
  asked = 0;
});

it("waits for a kubelet that does not answer yet, and for the first line", async () => {
  answer = (response) => {
    if (asked < 3) return refuse(response);
    response.end(asked < 5 ? "" : "a line\n");
  };
  expect(await read(3600)).toBe("a line\n");
  expect(asked).toBe(5);
});

it("tells what the API server says, if it never gives a log", async () => {
  answer = refuse;
  await expect(read(1)).rejects.toThrow("connection refused");
});

it("tells that it does not answer", async () => {
  answer = () => undefined;
  await expect(read(1)).rejects.toThrow("no answer");
});

it("takes a container for silent that prints nothing", async () => {
  answer = (response) => response.end();
  expect(await read(1)).toBe("");
});

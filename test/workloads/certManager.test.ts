/** cert-manager: a CA of one's own, and from it the certificate of an Ingress, which Traefik serves. */
import { X509Certificate } from "node:crypto";
import { request } from "node:https";
import { expect, it } from "vitest";
import { waitFor } from "../../system/wait.ts";
import { manifestsOf, operator, program } from "./programs.ts";
import { PATIENCE, service, TIMEOUT, workload } from "./workload.ts";

const host = "web.workloads.test";
const { kubectl, apply, says } = await workload("wk-cert", async () => {
  const { image, made } = await program("cert-manager");
  return {
    images: [made],
    objects: [
      ...(await manifestsOf("github.com/cert-manager/cert-manager", "deploy/crds")),
      ...operator("cert-manager", image),
    ],
    options: { addons: { ingress: { enabled: true } } },
  };
});

const issuer = (name: string, spec: object) => ({
  apiVersion: "cert-manager.io/v1",
  kind: "Issuer",
  metadata: { name },
  spec,
});

const pem = async (secret: string, key: string) =>
  Buffer.from(
    await kubectl("get", "secret", secret, `-o=jsonpath={.data.${key.replace(".", "\\.")}}`),
    "base64",
  ).toString();

/** What answers at an address by TLS, under the host's name. */
const get = (address: string, ca: string) =>
  new Promise<number>((resolve, reject) => {
    request({ host: address, servername: host, headers: { host }, ca }, (response) => {
      response.resume();
      resolve(response.statusCode!);
    })
      .on("error", reject)
      .end();
  });

it("makes a CA, and certificates of it for who asks and for an Ingress", { timeout: TIMEOUT }, async () => {
  await apply(
    issuer("self", { selfSigned: {} }),
    {
      apiVersion: "cert-manager.io/v1",
      kind: "Certificate",
      metadata: { name: "ca" },
      spec: { isCA: true, commonName: "ca", secretName: "ca", issuerRef: { name: "self" } },
    },
    issuer("ca", { ca: { secretName: "ca" } }),
    service("nobody", 80),
    {
      apiVersion: "networking.k8s.io/v1",
      kind: "Ingress",
      metadata: { name: "web", annotations: { "cert-manager.io/issuer": "ca" } },
      spec: {
        tls: [{ hosts: [host], secretName: "web-tls" }],
        rules: [
          {
            host,
            http: {
              paths: [
                { path: "/", pathType: "Prefix", backend: { service: { name: "nobody", port: { number: 80 } } } },
              ],
            },
          },
        ],
      },
    },
  );
  await says("True", "get", "certificate", "web-tls", '-o=jsonpath={.status.conditions[?(@.type=="Ready")].status}');
  const ca = await pem("ca", "tls.crt");
  const issued = new X509Certificate(await pem("web-tls", "tls.crt"));
  expect(issued.verify(new X509Certificate(ca).publicKey)).toBe(true);
  expect(issued.checkHost(host)).toBe(host);
  const address = await says(/\d/, "get", "ingress", "web", "-o=jsonpath={.status.loadBalancer.ingress[0].ip}");
  // Nobody is behind it; that it is trusted is what counts.
  await waitFor("it is served", PATIENCE, async () => (await get(address, ca).catch(() => 0)) === 503 || undefined);
});

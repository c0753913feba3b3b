/**
 * The admin's kubeconfig. The server writes one in its sandbox, where somebody else who is root may write another: one
 * that names a program to run, a file of the host to read, or another server. So what comes from there is taken for
 * three pieces of PEM and nothing else, and the kubeconfig for the host is written anew around them.
 * @module
 */
import { createPrivateKey, createPublicKey, X509Certificate } from "node:crypto";
import { parseDocument, stringify } from "yaml";
import type { Reached } from "../machines/machine.ts";

/** Who is let in, as base64 of PEM: the server's authority, and the client's certificate with its key. */
export interface Credentials {
  ca: string;
  certificate: string;
  key: string;
}

/**
 * Takes the credentials out of a kubeconfig that nobody vouches for.
 * @throws Error that says which of them is not what it should be
 */
export function credentialsIn(kubeconfig: string): Credentials {
  if (kubeconfig.length > 2 ** 16) throw new Error("the server's kubeconfig was edited by hand: it is too large");
  const document = parseDocument(kubeconfig, { prettyErrors: false });
  const field = (list: string, inner: string, name: string) => {
    const value = document.errors.length === 0 ? document.getIn([list, 0, inner, name]) : undefined;
    if (typeof value !== "string") throw new Error(`the server's kubeconfig has no ${name}; it was edited by hand`);
    return value;
  };
  const ca = field("clusters", "cluster", "certificate-authority-data");
  const certificate = field("users", "user", "client-certificate-data");
  const key = field("users", "user", "client-key-data");
  try {
    new X509Certificate(decoded(ca));
    // The two must belong together, and both must be what they are taken for.
    const own = createPublicKey(createPrivateKey(decoded(key))).export({ type: "spki", format: "pem" });
    const certified = new X509Certificate(decoded(certificate)).publicKey.export({ type: "spki", format: "pem" });
    if (own !== certified) throw new Error("the key is not the certificate's");
  } catch (error) {
    throw new Error(`the server's kubeconfig was edited by hand: ${(error as Error).message}`, { cause: error });
  }
  return { ca, certificate, key };
}

/** PEM as text. */
export const decoded = (base64: string) => Buffer.from(base64, "base64").toString();

/** A kubeconfig for this machine, of one cluster, one user and one context, all called by the cluster's name. */
export function renderKubeconfig(name: string, { ca, certificate, key }: Credentials, reached: Reached): string {
  const { address, port, tlsServerName } = reached;
  const server = {
    server: `https://${address}:${port}`,
    ...(tlsServerName ? { "tls-server-name": tlsServerName } : {}),
  };
  const kubeconfig = {
    apiVersion: "v1",
    kind: "Config",
    clusters: [{ name, cluster: { "certificate-authority-data": ca, ...server } }],
    users: [{ name, user: { "client-certificate-data": certificate, "client-key-data": key } }],
    contexts: [{ name, context: { cluster: name, user: name } }],
    "current-context": name,
  };
  return stringify(kubeconfig, { lineWidth: 0, version: "1.1" }); // as kubectl reads it: "on" would be a truth value
}

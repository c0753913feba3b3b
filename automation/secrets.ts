/**
 * What is secret of a cluster, as far as this machine knows, and where it lies in clear.
 * @module
 */
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parse } from "yaml";
import { passwordsIn } from "../config/proxy.ts";
import type { StackConfig } from "../config/schema.ts";
import { filesBelow } from "../system/files.ts";
import { homeFolder } from "../system/folders.ts";
import { kubeconfigOf } from "./cluster.ts";
import { ownProject } from "./project.ts";

/** Every secret that this machine knows of a cluster. */
export function secretsOf(config: StackConfig): string[] {
  const registries = Object.values(config.registries.configs).flatMap(({ auth }) => [
    auth?.password,
    auth?.auth,
    auth?.identity_token,
  ]);
  const proxies = [config.proxy.http, config.proxy.https].flatMap((proxy) => (proxy ? passwordsIn(proxy) : []));
  const passphrase = join(homeFolder(), "passphrase");
  const own = existsSync(passphrase) ? [readFileSync(passphrase, "utf8").trim()] : [];
  return [...registries, ...proxies, ...own, ...kubeconfigSecrets(kubeconfigOf(config))].filter(
    (secret) => secret !== undefined,
  );
}

function kubeconfigSecrets(file: string): string[] {
  if (!existsSync(file)) return [];
  const { users = [] } = parse(readFileSync(file, "utf8")) as { users?: { user?: Record<string, unknown> }[] };
  const fields = users.flatMap(({ user = {} }) => [user["client-key-data"], user.token, user.password]);
  return fields.filter((field) => typeof field === "string");
}

/** Shorter ones would be found in every text. */
export const isTelling = (secret: string): boolean => secret.length >= 6;

const KEYS = ["RSA ", "EC ", ""].map((kind) => `-----BEGIN ${kind}PRIVATE KEY-----`);

/** What a private key begins with, as it is and as a kubeconfig has it: in base64, less what depends on what follows. */
const keyBeginnings = KEYS.flatMap((begin) => {
  const encoded = Buffer.from(begin).toString("base64");
  return [begin, encoded.slice(0, Math.floor((begin.length * 8) / 6))];
});

/**
 * The files of a stack's state that have a secret in clear: releases up to 0.2 have written some so, and Pulumi keeps
 * the states of earlier runs.
 * @param folder that of Pulumi's states
 * @param known what is secret beside private keys
 */
export function statesInClear(folder: string, stack: string, known: readonly string[]): string[] {
  const of = (kind: string) => join(folder, ".pulumi", kind, ownProject());
  const own = filesBelow(of("stacks")).filter((file) =>
    [`${stack}.json`, `${stack}.json.bak`].includes(file.slice(of("stacks").length + 1)),
  );
  const copies = ["history", "backups"].flatMap((kind) => filesBelow(join(of(kind), stack)));
  // Parameters are JSON in JSON.
  const escaped = (text: string, times: number): string =>
    times === 0 ? text : escaped(JSON.stringify(text).slice(1, -1), times - 1);
  const words = known.filter(isTelling).flatMap((secret) => [0, 1, 2].map((times) => escaped(secret, times)));
  const telling = [...new Set([...words, ...keyBeginnings])];
  return [...own, ...copies].filter((file) => {
    const text = readFileSync(file, "utf8");
    return telling.some((word) => text.includes(word));
  });
}

/** The folder of Pulumi's states; undefined where they are kept elsewhere. */
export function statesFolder(): string | undefined {
  const url = process.env.PULUMI_BACKEND_URL;
  if (!url) return join(homeFolder(), "pulumi");
  return url.startsWith("file://") ? url.slice("file://".length) : undefined;
}

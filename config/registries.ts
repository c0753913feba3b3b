/**
 * Image registries, in the format of k3s's registries.yaml (k3s's docs, "Private Registry Configuration"), rendered for
 * containerd.
 * @module
 */
import { stringify } from "smol-toml";
import { z } from "zod";

const host = z
  .string()
  .regex(
    /^(\*|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:\d+)?)$/,
    "a registry's host, with its port if it has one, is allowed",
  );
const endpoint = z.url({ protocol: /^https?$/, error: "a URL such as https://mirror.example:5000 is allowed" });
const file = z.string().regex(/^\//, "an absolute path is allowed");

/** k3s's registries.yaml. */
export const registriesSchema = z.strictObject({
  mirrors: z
    .record(
      host,
      z.strictObject({
        endpoint: z.array(endpoint).default([]),
        // k3s's own containerd has it, and containerd's releases do not.
        rewrite: z
          .undefined("containerd's releases cannot rewrite names; give the mirror's path in its endpoint instead")
          .optional(),
      }),
    )
    .default({}),
  configs: z
    .record(
      host,
      z.strictObject({
        auth: z
          .strictObject({
            username: z.string().optional(),
            password: z.string().optional(),
            auth: z.string().optional(),
            identity_token: z.string().optional(),
          })
          .optional(),
        tls: z
          .strictObject({
            ca_file: file.optional(),
            cert_file: file.optional(),
            key_file: file.optional(),
            insecure_skip_verify: z.boolean().optional(),
          })
          .optional(),
      }),
    )
    .default({}),
});

/** Registries as they are configured. */
export type Registries = z.output<typeof registriesSchema>;

/** The files on the host that the registries' TLS takes, by the option that names each. */
export function tlsFiles({ configs }: Registries): { option: string; path: string }[] {
  return Object.entries(configs).flatMap(([host, { tls }]) =>
    (["ca_file", "cert_file", "key_file"] as const).flatMap((key) =>
      tls?.[key] ? [{ option: `registries.configs[${host}].tls.${key}`, path: tls[key] }] : [],
    ),
  );
}

/**
 * The files below containerd's folder of registries, by their paths there. They are read at each pull, so that a change
 * takes effect at once.
 * @param read returns the content of a file on the host
 */
export function renderRegistries(
  { mirrors, configs }: Registries,
  read: (path: string) => string,
): Record<string, string> {
  const files: Record<string, string> = {};
  const tlsOf = (name: string) => {
    const { ca_file, cert_file, key_file, insecure_skip_verify } = configs[name]?.tls ?? {};
    const copy = (path: string, as: string) => {
      files[`.tls/${name}/${as}`] = read(path);
      return `../.tls/${name}/${as}`;
    };
    return {
      ...(ca_file ? { ca: copy(ca_file, "ca.crt") } : {}),
      ...(cert_file ? { client: [[copy(cert_file, "client.crt"), key_file ? copy(key_file, "client.key") : ""]] } : {}),
      ...(insecure_skip_verify ? { skip_verify: true } : {}),
    };
  };
  for (const name of new Set([...Object.keys(mirrors), ...Object.keys(configs)])) {
    const endpoints = (mirrors[name]?.endpoint ?? []).map((text) => new URL(text));
    const hosts = Object.fromEntries(
      endpoints.map((url) => {
        const path = url.pathname === "/" ? "" : url.pathname;
        return [
          `${url.origin}${path}`,
          { capabilities: ["pull", "resolve"], ...(path === "" ? {} : { override_path: true }), ...tlsOf(url.host) },
        ];
      }),
    );
    // Without `server` an image's own registry is asked last; its TLS is said at the top.
    const content = { ...tlsOf(name), ...(endpoints.length > 0 ? { host: hosts } : {}) };
    if (Object.keys(content).length > 0) files[`${name === "*" ? "_default" : name}/hosts.toml`] = stringify(content);
  }
  return files;
}

/**
 * The part of containerd's config that has passwords in it; undefined without any. containerd reads it when it starts.
 */
export function renderCredentials({ configs }: Registries): string | undefined {
  const entries = Object.entries(configs).flatMap(([host, { auth }]) => {
    if (!auth) return [];
    const { identity_token: identitytoken, ...rest } = auth;
    return [[host, { auth: { ...rest, ...(identitytoken ? { identitytoken } : {}) } }] as const];
  });
  if (entries.length === 0) return undefined;
  return stringify({
    version: 3,
    plugins: { "io.containerd.cri.v1.images": { registry: { configs: Object.fromEntries(entries) } } },
  });
}

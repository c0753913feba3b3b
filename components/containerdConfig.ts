import { readFileSync } from "node:fs";
import * as pulumi from "@pulumi/pulumi";
import { imageName, pathInSandbox, wanted } from "../artifacts/artifacts.ts";
import { stagedPath } from "../artifacts/stage.ts";
import { renderContainerdConfig } from "../config/containerdToml.ts";
import { hasPassword } from "../config/proxy.ts";
import { containerdKeysFor } from "../config/quirks.ts";
import { renderCredentials, renderRegistries } from "../config/registries.ts";
import type { StackConfig } from "../config/schema.ts";
import { type LateConfig, lift } from "./inputs.ts";
import type { QuirkProbe } from "./quirkProbe.ts";
import type { RuntimeWrapper } from "./runtimeWrapper.ts";
import type { Sandbox } from "./sandbox.ts";

export interface ContainerdConfigArgs extends Pick<LateConfig, "registries" | "proxy"> {
  sandbox: Sandbox;
  probe: QuirkProbe;
  runtime: RuntimeWrapper;
  containerd: StackConfig["containerd"];
  /** What containerd's config file says in place of these options, where some of them are outputs. */
  options?: LateConfig["containerd"];
  /** Networks that need no proxy: the cluster's own. */
  direct: string[];
}

const fileName = { containerd: "containerd", shim: "containerd-shim-runc-v2" } as const;

/**
 * containerd with its shim, and their configuration; a change of it is one restart of containerd, which running pods
 * survive.
 */
export class ContainerdConfig extends pulumi.ComponentResource {
  /** The file as containerd reads it. */
  readonly toml: pulumi.Output<string>;
  /** ctr by its path in the sandbox. */
  readonly ctr = pathInSandbox({ name: "containerd" }, "ctr");

  constructor(name: string, args: ContainerdConfigArgs, options?: pulumi.ComponentResourceOptions) {
    super("gvisor-k3s:index:ContainerdConfig", name, {}, options);
    const { sandbox, probe, runtime, containerd, registries } = args;
    const path = (program: keyof typeof fileName) => {
      const own = containerd[program];
      return own ? stagedPath(own, fileName[program]) : pathInSandbox({ name: "containerd" }, fileName[program]);
    };
    const own = (["containerd", "shim"] as const).flatMap((program) => {
      const source = containerd[program];
      return source ? [{ source, name: fileName[program] }] : [];
    });
    const takes = {
      artifacts: (["containerd", "cni", "init"] as const).map((artifact) => wanted({ name: artifact })),
      own,
    };
    const pause = imageName("pause");
    const cniPlugins = pathInSandbox({ name: "cni" }, "");
    this.toml = pulumi
      .all([runtime.path, probe.found, args.options ?? containerd])
      .apply(([binary, found, options]) =>
        renderContainerdConfig(
          options as StackConfig["containerd"],
          { runtime: binary, cniPlugins, pauseImage: pause },
          containerdKeysFor(found),
        ),
      );
    const credentials = lift(registries, renderCredentials);
    const params = {
      takes,
      containerd: path("containerd"),
      shim: path("shim"),
      ctr: this.ctr,
      init: pathInSandbox({ name: "init" }, "sandbox-init"),
      ...(credentials ? { credentials: pulumi.secret(credentials) } : {}),
      env: lift(args.proxy, (proxy) => proxyEnvironment(proxy, args.direct)),
    };
    sandbox.step(`${name}-apply`, "memory", { step: "containerd", params, content: this.toml }, this, runtime);
    const content = lift(registries, registriesContent);
    sandbox.step(`${name}-registries`, "disk", { step: "registries", params: {}, content }, this, sandbox);
    this.registerOutputs();
  }
}

/** The files of the registries; a secret where a key is among them. */
function registriesContent(registries: StackConfig["registries"]): pulumi.Input<string> {
  const files = renderRegistries(registries, (file) => readFileSync(file, "utf8"));
  const content = JSON.stringify(files, null, 2);
  return Object.keys(files).some((file) => file.endsWith(".key")) ? pulumi.secret(content) : content;
}

/** The variables by which containerd knows a proxy; a secret where an address has a password in it. */
function proxyEnvironment({ http, https, noProxy }: StackConfig["proxy"], direct: string[]): pulumi.Input<string[]> {
  const proxies = { ...(http ? { HTTP_PROXY: http } : {}), ...(https ? { HTTPS_PROXY: https } : {}) };
  if (Object.keys(proxies).length === 0) return [];
  const NO_PROXY = ["localhost", "127.0.0.0/8", ...direct, ...noProxy].join(",");
  const variables = Object.entries({ ...proxies, NO_PROXY }).map(([name, value]) => `${name}=${value}`);
  return Object.values(proxies).some(hasPassword) ? pulumi.secret(variables) : variables;
}

import type { StackConfig } from "../config/schema.ts";
import { embedded } from "./embedded.ts";
import { k3s } from "./k3s.ts";
import type { Client, ClientRef, Distribution, Server, ServerRef } from "./server.ts";

/** Every distribution, by the values of the option of that name. */
const distributions: Record<StackConfig["distribution"], Distribution> = { embedded, k3s };

/** The distribution that the options ask for. */
export const distributionOf = ({ distribution }: Pick<StackConfig, "distribution">): Distribution =>
  distributions[distribution];

/** What is asked of a server's API. */
export const openClient = (ref: ClientRef): Client => openServer({ server: "", ...ref });

/** The server that is found by this. */
export const openServer = (ref: ServerRef): Server => distributions[ref.distribution].open(ref);

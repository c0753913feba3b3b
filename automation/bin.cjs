#!/usr/bin/env node
// The command, for a Node.js of any age: an older one is told so in one line, and does not stumble over the rest.
const { existsSync } = require("node:fs");
const { join } = require("node:path");
const { engines } = require("../package.json");

const needed = Number.parseInt(engines.node.replace(/\D+/, ""), 10);
if (Number.parseInt(process.versions.node, 10) < needed) {
  console.error(`gvisor-k3s needs Node.js ${needed} or newer, and ${process.execPath} is ${process.version}`);
  process.exit(1);
}
const compiled = join(__dirname, "cli.js"); // in the npm package
import(existsSync(compiled) ? compiled : join(__dirname, "cli.ts"));

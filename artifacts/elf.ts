import { closeSync, openSync, readSync } from "node:fs";

/** What the head of a program tells. */
export interface Elf {
  /** Node.js' name of the architecture that it is built for, or the number of one that this project does not know. */
  arch: string;
  /** The loader that a dynamically linked program asks for. */
  loader?: string;
}

const MACHINES: Record<number, string> = { 62: "x64", 183: "arm64" }; // e_machine: EM_X86_64, EM_AARCH64
const PT_INTERP = 3;

/**
 * Reads a program's ELF header (elf(5)) in its form of 64 bits, little-endian; undefined if it has none, as a script.
 */
export function readElf(path: string): Elf | undefined {
  const file = openSync(path, "r");
  try {
    const read = (offset: number, size: number) => {
      const bytes = Buffer.alloc(size);
      readSync(file, bytes, 0, size, offset);
      return bytes;
    };
    const header = read(0, 64);
    if (!header.subarray(0, 6).equals(Buffer.from("\x7fELF\x02\x01", "latin1"))) return undefined;
    const machine = header.readUInt16LE(18);
    const arch = MACHINES[machine] ?? `machine ${machine}`;
    const [table, entrySize, count] = [
      Number(header.readBigUInt64LE(32)),
      header.readUInt16LE(54),
      header.readUInt16LE(56),
    ];
    const segments = Array.from({ length: count }, (_, index) => read(table + index * entrySize, entrySize));
    const interpreter = segments.find((segment) => segment.readUInt32LE(0) === PT_INTERP);
    if (!interpreter) return { arch };
    const name = read(Number(interpreter.readBigUInt64LE(8)), Number(interpreter.readBigUInt64LE(32)));
    return { arch, loader: name.toString("latin1").replace(/\0.*$/, "") };
  } finally {
    closeSync(file);
  }
}

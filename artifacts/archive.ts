/**
 * What is in a tar archive of any size, without reading through it.
 * @module
 */
import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { Header, list, Pax } from "tar";

const BLOCK = 512;

/** Bytes that an entry's attributes may take: a few lines. */
const MOST_ATTRIBUTES = 2 ** 20;

/** What a compressed file begins with: gzip's (RFC 1952) and Zstandard's (RFC 8878) magic numbers. */
const COMPRESSED = [Buffer.from([0x1f, 0x8b]), Buffer.from([0x28, 0xb5, 0x2f, 0xfd])];

/**
 * The paths of an archive's entries. One that is not compressed is skipped through; a compressed one has to be read.
 * @throws Error if it is no tar archive, or one that ends too early
 */
export function entriesOf(file: string): string[] {
  const fd = openSync(file, "r");
  try {
    const begin = Buffer.alloc(4);
    readSync(fd, begin, 0, begin.length, 0);
    if (!COMPRESSED.some((magic) => begin.subarray(0, magic.length).equals(magic))) return skippedThrough(fd);
  } finally {
    closeSync(fd);
  }
  const entries: string[] = [];
  list({ file, sync: true, strict: true, onReadEntry: (entry) => void entries.push(entry.path) });
  return entries;
}

function skippedThrough(fd: number): string[] {
  const { size } = fstatSync(fd);
  if (size === 0) throw new Error("it is empty");
  const paths: string[] = [];
  let attributes: Pax | undefined;
  for (let at = 0; at < size; ) {
    const header = new Header(part(fd, at, BLOCK), 0, attributes);
    if (header.nullBlock && at > 0) break;
    if (!header.cksumValid) throw new Error(`there is no entry at byte ${at}`);
    const [begin, length] = [at + BLOCK, header.size ?? 0];
    at = begin + Math.ceil(length / BLOCK) * BLOCK;
    if (begin + length > size) throw new Error(`it ends within ${header.path}`);
    const isAttributes = header.type === "ExtendedHeader";
    if (isAttributes && length > MOST_ATTRIBUTES) throw new Error(`the attributes at byte ${begin} are too large`);
    // An entry of eight GiB or more has its size there, or in a form of its own that the header knows.
    attributes = isAttributes ? Pax.parse(part(fd, begin, length).toString("utf8")) : undefined;
    if (!isAttributes && header.path !== undefined) paths.push(header.path);
  }
  return paths;
}

/** @throws Error if it ends before */
function part(fd: number, begin: number, length: number): Buffer {
  const buffer = Buffer.alloc(length);
  if (readSync(fd, buffer, 0, length, begin) < length) throw new Error(`it ends at byte ${begin}`);
  return buffer;
}

// HTTPS over both protocols, for bodies that fit nowhere: flood_server.mjs ADDRESS CERT KEY.
//
// GET /N sends N bytes, made as they go; PUT takes a body in. Either way the
// length and the digest are printed, one JSON object per line. Ends with
// stdin.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createSecureServer } from "node:http2";
import { Readable } from "node:stream";

const [address, cert, key] = process.argv.slice(2);
// Of prime length, so that a lost or doubled piece of any round size shows.
const block = Buffer.alloc(65521 * 16);
for (let at = 0, state = 1; at < block.length; at++) {
  state = (Math.imul(state, 1103515245) + 12345) >>> 0;
  block[at] = state >>> 16;
}

function tell(kind, length, digest) {
  const told = JSON.stringify({ kind, length, sha256: digest.digest("hex") });
  console.log(told);
  return told;
}

function* pieces(length, digest) {
  for (let left = length; left > 0; left -= block.length) {
    const piece = left < block.length ? block.subarray(0, left) : block;
    digest.update(piece);
    yield piece;
  }
}

const options = { cert: readFileSync(cert), key: readFileSync(key), allowHTTP1: true };
options.settings = { initialWindowSize: 1 << 20 };
const server = createSecureServer(options, (request, response) => {
  const digest = createHash("sha256");
  if (request.method === "PUT") {
    let length = 0;
    request.on("data", (piece) => {
      length += piece.length;
      digest.update(piece);
    });
    request.on("end", () => response.end(tell("taken", length, digest)));
    return;
  }
  const length = Number(request.url.slice(1));
  response.setHeader("content-length", length);
  const body = Readable.from(pieces(length, digest), { objectMode: true, highWaterMark: 1 });
  body.on("end", () => tell("sent", length, digest));
  body.pipe(response);
});
// Otherwise a stream's window is all that a fast sender may use of the connection.
server.on("session", (session) => session.setLocalWindowSize(1 << 24));
const [host, port] = address.split(":");
server.listen(Number(port), host, () => console.log("ready"));
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));

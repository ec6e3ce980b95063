// Streams of which each piece leaves only when the one before has arrived:
// lockstep_server.mjs ADDRESS CERT KEY COUNT.
//
// GET /events is server-sent events, a POST that ends in `response-stream` an
// AWS event stream; POST /got/N says that the client has piece N. Nothing else
// makes it send piece N+1: whoever holds one back holds up all of them.
import { readFileSync } from "node:fs";
import { createSecureServer } from "node:http2";
import { crc32 } from "node:zlib";

const [address, cert, key, count] = process.argv.slice(2);
const has = new Map();
let arrived = -1;

function got(number) {
  return new Promise((done) => (arrived >= number ? done() : has.set(number, done)));
}

// The encoding of AWS (`:event-type` and the like are strings, type 7).
function message(headers, payload) {
  const fields = Object.entries(headers).map(([name, value]) => {
    const field = Buffer.alloc(1 + name.length + 3 + value.length);
    field[0] = name.length;
    field.write(name, 1);
    field[1 + name.length] = 7;
    field.writeUInt16BE(value.length, 2 + name.length);
    field.write(value, 4 + name.length);
    return field;
  });
  const head = Buffer.concat(fields);
  const whole = Buffer.alloc(12 + head.length + payload.length + 4);
  whole.writeUInt32BE(whole.length, 0);
  whole.writeUInt32BE(head.length, 4);
  whole.writeUInt32BE(crc32(whole.subarray(0, 8)), 8);
  head.copy(whole, 12);
  payload.copy(whole, 12 + head.length);
  whole.writeUInt32BE(crc32(whole.subarray(0, whole.length - 4)), whole.length - 4);
  return whole;
}

function chunk(number) {
  // Binary of every size, in JSON as the service has it.
  const bytes = Buffer.alloc((number * 37) % 5000, number);
  const payload = Buffer.from(JSON.stringify({ bytes: bytes.toString("base64") }));
  const headers = { ":event-type": "chunk", ":content-type": "application/json", ":message-type": "event" };
  return message(headers, payload);
}

const options = { cert: readFileSync(cert), key: readFileSync(key), allowHTTP1: true };
const server = createSecureServer(options, async (request, response) => {
  request.resume();
  if (request.url.startsWith("/got/")) {
    arrived = Number(request.url.slice(5));
    has.get(arrived)?.();
    return response.end();
  }
  const events = request.url === "/events";
  response.setHeader("content-type", events ? "text/event-stream" : "application/vnd.amazon.eventstream");
  arrived = -1;
  has.clear();
  for (let number = 0; number < Number(count); number++) {
    response.write(events ? `id: ${number}\ndata: ${"x".repeat((number * 7) % 300)}\n\n` : chunk(number));
    await got(number);
  }
  response.end();
});
const [host, port] = address.split(":");
server.listen(Number(port), host, () => console.log("ready"));
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));

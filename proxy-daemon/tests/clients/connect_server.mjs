// Extended CONNECT (RFC 8441), where it is offered: connect_server.mjs ADDRESS CERT KEY OFFERED MOST.
//
// Echoes what comes on such a stream, unless it is /other; answers 200 to all
// else.
import { readFileSync } from "node:fs";
import { createSecureServer } from "node:http2";

const [address, cert, key, offered, most] = process.argv.slice(2);
const settings = { enableConnectProtocol: offered === "true", maxConcurrentStreams: Number(most) };
const server = createSecureServer({ cert: readFileSync(cert), key: readFileSync(key), settings });
server.on("stream", (stream, headers) => {
  const name = `${headers[":method"]} ${headers[":protocol"] ?? ""} ${headers[":path"]} ${headers["sec-websocket-protocol"] ?? ""}`;
  console.log(name);
  stream.on("error", (error) => console.log(`${name}: ${error.code} ${stream.rstCode}`));
  stream.on("close", () => console.log(`${name} closed ${stream.rstCode}`));
  stream.respond({ ":status": 200, "sec-websocket-protocol": "chat" });
  if (headers[":path"] === "/other") stream.resume();
  else if (headers[":protocol"]) stream.pipe(stream);
  else stream.end("plain");
});
const [host, port] = address.split(":");
server.listen(Number(port), host, () => console.log("ready"));
process.stdin.resume();
process.stdin.on("end", () => process.exit(0));

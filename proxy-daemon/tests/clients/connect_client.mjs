// A WebSocket's bytes over HTTP/2, if the server offers it: connect_client.mjs HOST.
//
// Prints one JSON object: what the server offers, and what came back.
import { connect } from "node:http2";

const session = connect(`https://${process.argv[2]}`);
const offered = await new Promise((settled) => session.once("remoteSettings", settled));
const found = {
  offered: offered.enableConnectProtocol ?? false,
  most: offered.maxConcurrentStreams,
  plain: await text(session.request({ ":path": "/plain" })),
};

async function text(stream) {
  let body = "";
  for await (const piece of stream.setEncoding("latin1")) body += piece;
  return body;
}

if (found.offered) {
  const stream = session.request(
    { ":method": "CONNECT", ":protocol": "websocket", ":path": "/chat", "sec-websocket-protocol": "chat, other" },
    { endStream: false },
  );
  const head = await new Promise((answered) => stream.once("response", answered));
  found.head = [head[":status"], head["sec-websocket-protocol"]];
  stream.setEncoding("latin1");
  const pieces = stream[Symbol.asyncIterator]();
  found.came = 0;
  // In step: each comes back before the next goes.
  for (let turn = 0; turn < 1000; turn++) {
    const sent = `\x81${turn}`.padEnd(turn % 300, "\xff");
    stream.write(Buffer.from(sent, "latin1"));
    let back = "";
    while (back.length < sent.length) back += (await pieces.next()).value;
    if (back !== sent) throw new Error(`turn ${turn}: ${back}`);
    found.came += back.length;
  }
  // One that is called off, while the connection goes on.
  const other = session.request({ ":method": "CONNECT", ":protocol": "websocket", ":path": "/other" }, { endStream: false });
  await new Promise((answered) => other.once("response", answered));
  other.on("error", () => {});
  other.close(8);
  await new Promise((closed) => other.once("close", closed));
  stream.end();
  found.rest = (await pieces.next()).done;
  found.again = await text(session.request({ ":path": "/again" }));
}
session.close();
console.log(JSON.stringify(found));

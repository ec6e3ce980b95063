// Fetches and posts with one of Node's libraries: get.mjs LIBRARY ORIGIN
import { createHash } from "node:crypto";
import https from "node:https";
import { createRequire } from "node:module";

const [library, origin] = process.argv.slice(2);
const body = Buffer.from("0123456789".repeat(5000));
const tell = (status, bytes) =>
  console.log(status, bytes.length, createHash("sha256").update(bytes).digest("hex"));
// Packages are looked for where NODE_PATH says, which `import` does not.
const load = createRequire(import.meta.url);

if (library === "fetch") {
  for (const options of [{}, { method: "POST", body }]) {
    const answer = await fetch(origin + (options.body ? "/echo" : "/bytes/70000"), options);
    tell(answer.status, Buffer.from(await answer.arrayBuffer()));
  }
} else if (library === "https") {
  const agent = new https.Agent({ keepAlive: true });
  for (const data of [undefined, body]) {
    await new Promise((resolve, reject) => {
      const options = { agent, method: data ? "POST" : "GET" };
      const request = https.request(origin + (data ? "/echo" : "/bytes/70000"), options, (answer) => {
        const parts = [];
        answer.on("data", (part) => parts.push(part));
        answer.on("end", () => resolve(tell(answer.statusCode, Buffer.concat(parts))));
      });
      request.on("error", reject);
      request.end(data);
    });
  }
  agent.destroy();
} else if (library === "axios") {
  const axios = load("axios");
  const options = { responseType: "arraybuffer" };
  let answer = await axios.get(origin + "/bytes/70000", options);
  tell(answer.status, answer.data);
  answer = await axios.post(origin + "/echo", body, options);
  tell(answer.status, answer.data);
} else if (library === "aws-sdk") {
  const { S3Client, PutObjectCommand, GetObjectCommand } = load("@aws-sdk/client-s3");
  const client = new S3Client({
    endpoint: origin,
    region: "eu-west-1",
    forcePathStyle: true,
    credentials: { accessKeyId: "key", secretAccessKey: "secret" },
  });
  await client.send(new PutObjectCommand({ Bucket: "bucket", Key: "up", Body: body }));
  const answer = await client.send(new GetObjectCommand({ Bucket: "bucket", Key: "down" }));
  tell(answer.$metadata.httpStatusCode, Buffer.from(await answer.Body.transformToByteArray()));
  client.destroy();
}

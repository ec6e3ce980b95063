// GET by Node's fetch, unmodified: node fetch.mjs URL. Prints one JSON object.
import { createHash } from 'node:crypto';

const answer = await fetch(process.argv[2]);
const body = Buffer.from(await answer.arrayBuffer());
console.log(
  JSON.stringify({
    status: answer.status,
    length: body.length,
    sha256: createHash('sha256').update(body).digest('hex'),
    text: body.subarray(0, 200).toString('latin1'),
    headers: [...answer.headers],
  }),
);

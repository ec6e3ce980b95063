// One call of a client that retries, and how often it asked:
// truth.mjs FOLDER CLIENT, where FOLDER holds node_modules.
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [folder, client] = process.argv.slice(2);
const from = (path) => import(join(folder, 'node_modules', path)).then((module) => module.default.default ?? module.default);
let sent = 0;
const clients = {
  async axios_retry() {
    const axios = await from('axios/index.js');
    const axiosRetry = await from('axios-retry/dist/esm/index.js');
    axiosRetry(axios, { retries: 4, retryDelay: (count) => 200 * count });
    axios.interceptors.request.use((config) => (sent++, config));
    await axios.get('https://api.example.com/status/200');
  },
  async aws_sdk() {
    const { S3Client, ListBucketsCommand } = createRequire(join(folder, 'package.json'))('@aws-sdk/client-s3');
    const credentials = { accessKeyId: 'AKIDEXAMPLE', secretAccessKey: 'secret' };
    const client = new S3Client({ region: 'eu-west-1', credentials });
    sent = (await client.send(new ListBucketsCommand({}))).$metadata.attempts;
  },
  async got() {
    const got = await from('got/dist/source/index.js');
    await got('https://api.example.com/status/200', {
      retry: { limit: 4, backoffLimit: 500 },
      hooks: { beforeRequest: [() => void sent++] },
    });
  },
};
await clients[client]();
console.log(JSON.stringify({ sent }));

// The AWS SDK for JavaScript answered by presets: node presets.mjs FOLDER PLAN,
// where FOLDER holds node_modules and PLAN is [[preset, service, command, input]].
// Each request names its row's preset in `x-preset`, for a rule to go by.
// Prints per row the error's name, its attempts and status as the SDK has them.
import { createRequire } from 'node:module';
import { join } from 'node:path';

const [folder, plan] = process.argv.slice(2);
const need = createRequire(join(folder, 'package.json'));
const { S3Client, ...s3 } = need('@aws-sdk/client-s3');
const { DynamoDBClient, ...dynamodb } = need('@aws-sdk/client-dynamodb');
const common = {
  region: 'eu-west-1',
  credentials: { accessKeyId: 'AKIDEXAMPLE', secretAccessKey: 'secret' },
};
const services = {
  s3: [() => new S3Client({ ...common, forcePathStyle: true }), s3],
  dynamodb: [() => new DynamoDBClient(common), dynamodb],
};

async function row([preset, service, command, input]) {
  const [make, commands] = services[service];
  // A client of its own: what is left of the retry quota is the client's.
  const client = make();
  client.middlewareStack.add(
    (next) => (step) => {
      step.request.headers['x-preset'] = `_${preset}_`;
      return next(step);
    },
    { step: 'build' },
  );
  const told = { preset, service };
  try {
    const { $metadata } = await client.send(new commands[command](input));
    return { ...told, name: null, attempts: $metadata.attempts, status: $metadata.httpStatusCode };
  } catch (error) {
    const metadata = error.$metadata ?? {};
    return { ...told, name: error.name, attempts: metadata.attempts, status: metadata.httpStatusCode };
  } finally {
    client.destroy();
  }
}

console.log(JSON.stringify(await Promise.all(JSON.parse(plan).map(row))));

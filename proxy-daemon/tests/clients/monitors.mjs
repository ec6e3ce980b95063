// Validates PodMonitors and ServiceMonitors, a JSON array on standard input, against the schemas of their custom
// resources: monitors.mjs FOLDER, where FOLDER has node_modules. Prints a line for each, `ok` or what is wrong.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const folder = `${process.argv[2]}/node_modules/@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1`;
const kinds = await import(pathToFileURL(`${folder}/index.js`));
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  try {
    new kinds[object.kind](object).validate();
    console.log("ok");
  } catch (error) {
    console.log(String(error.message ?? error));
  }
}

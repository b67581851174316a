// Events come as lines on standard input; a verdict for each leaves on descriptor 3.
const fs = require("node:fs");
const readline = require("node:readline");

let count = 0;

async function handle(event) {
  if (event.data.kind !== "file") return {};
  count += 1;
  console.log(`${count}: ${event.subject}`); // a line of Headrace's log, with the event's id
  return {};
}

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const event = JSON.parse(line);
    let verdict;
    try {
      verdict = await handle(event);
    } catch (error) {
      verdict = { error: String(error) };
    }
    fs.writeSync(3, JSON.stringify({ id: event.id, ...verdict }) + "\n");
  }
}

main();

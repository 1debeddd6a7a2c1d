// Enqueue jobs: node producer.mjs QUEUE COUNT. Prints their ids. Settings: OJS_URL, OJS_API_KEY.

import { randomUUID } from 'node:crypto';
import { post } from './ojs.mjs';

/** Enqueue one job and return its id; however often it is tried, there is one job. */
async function enqueue(type, args, options) {
  const { job } = await post('/jobs', { type, args, options }, { headers: { 'Idempotency-Key': randomUUID() } });
  return job.id;
}

const [queue = 'email', count = '10'] = process.argv.slice(2);
for (let number = 0; number < Number(count); number++) {
  const address = `user${number}@example.com`;
  console.log(await enqueue('email.send', [address, 'welcome'], { queue, retry: { max_attempts: 5 } }));
}

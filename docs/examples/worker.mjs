// A worker: node worker.mjs QUEUE… Several jobs at a time, heartbeats, directives, a graceful end.
//
// Settings: OJS_URL, OJS_API_KEY; OJS_CONCURRENCY, how many jobs at a time; OJS_VISIBILITY_MS, how long a job stays
// ours without a heartbeat; OJS_GRACE_S, how long running jobs may go on after SIGTERM before they are given back.

import { hostname } from 'node:os';
import { Away, Refused, post, sleep } from './ojs.mjs';

const CONCURRENCY = Number(process.env.OJS_CONCURRENCY ?? 8);
const VISIBILITY_MS = Number(process.env.OJS_VISIBILITY_MS ?? 30_000);
const GRACE_MS = Number(process.env.OJS_GRACE_S ?? 25) * 1000;

/** Thrown by a handler: no further attempt would help. */
class Permanent extends Error {}

const HANDLERS = {
  // What a handler returns becomes the job's result.
  'email.send': async ({ args: [address, template] }) => {
    if (!address.includes('@')) throw new Permanent(`'${address}' is no e-mail address`);
    console.log(`sent ${template} to ${address}`);
    return { sent: true };
  },
  // Takes args[0] seconds; heartbeats keep the job ours meanwhile.
  'report.make': async ({ args: [seconds] }) => {
    await sleep(seconds * 1000);
    return { pages: 3 };
  },
};

const queues = process.argv.length > 2 ? process.argv.slice(2) : ['email'];
const workerId = `${hostname()}-${process.pid}`;
const running = new Set();
let directive = 'running';
let stopping = false;
let giveUpAt = Infinity;

async function fetchJobs(count) {
  const body = { queues, count, worker_id: workerId, visibility_timeout_ms: VISIBILITY_MS };
  try {
    return (await post('/workers/fetch', body, { waits: () => !stopping })).jobs;
  } catch (error) {
    if (error instanceof Away) return [];
    throw error;
  }
}

/** One job: ack with the result, nack with the error. */
async function run(job) {
  try {
    const handler = HANDLERS[job.type];
    if (!handler) throw new Error(`no handler for ${job.type}`);
    const result = await handler(job);
    await tell('/workers/ack', job.id, { result: result ?? null });
  } catch (error) {
    await tell('/workers/nack', job.id, {
      error: {
        code: 'handler_error',
        type: error.constructor.name,
        message: error.message || 'failed',
        retryable: !(error instanceof Permanent),
      },
    });
  }
  running.delete(job.id);
}

/** End a job at the server, however long that is away. */
async function tell(path, jobId, outcome) {
  try {
    await post(path, { job_id: jobId, worker_id: workerId, ...outcome }, { waits: () => Date.now() < giveUpAt });
  } catch (error) {
    // 409, 404: an earlier try arrived after all, or the job is not ours any more. Away: it comes back by itself.
    console.error(`${jobId}: ${error.message}`);
  }
}

/** Three beats per reservation; the answer says what the operator wants of us. */
async function beat() {
  const body = { worker_id: workerId, active_jobs: [...running], visibility_timeout_ms: VISIBILITY_MS };
  try {
    directive = (await post('/workers/heartbeat', body, { waits: () => false })).state;
  } catch (error) {
    if (!(error instanceof Away || error instanceof Refused)) throw error;
    console.error(`heartbeat: ${error.message}`);
  }
  if (directive === 'terminate') stopping = true;
}

/** Wait for what runs, and give back what takes longer. */
async function finish() {
  giveUpAt = Date.now() + GRACE_MS;
  while (running.size && Date.now() < giveUpAt) await sleep(50);
  giveUpAt = Date.now() + 5000;
  for (const jobId of running) await tell('/workers/nack', jobId, { requeue: true });
  process.exit(0);
}

process.on('SIGTERM', () => (stopping = true));
process.on('SIGINT', () => (stopping = true));
await beat();
setInterval(beat, VISIBILITY_MS / 3);
while (!stopping) {
  const free = CONCURRENCY - running.size;
  const jobs = free && directive === 'running' ? await fetchJobs(free) : [];
  for (const job of jobs) {
    running.add(job.id);
    run(job);
  }
  if (!jobs.length) await sleep(200);
}
await finish();

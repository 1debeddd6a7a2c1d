// Calls to an Open Job Spec server with Node's fetch: patient when it is away, plain when it refuses.

const URL = (process.env.OJS_URL ?? 'http://127.0.0.1:8080') + '/ojs/v1';
const HEADERS = { 'Content-Type': 'application/json', Authorization: `Bearer ${process.env.OJS_API_KEY ?? ''}` };
const TRY_AGAIN = [429, 502, 503, 504];

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** The server has understood and says no (4xx): trying again would not help. */
export class Refused extends Error {
  constructor(status, body) {
    super(`${status} ${body.error.message}`);
    this.status = status;
    this.code = body.error.code;
  }
}

/** The server is away or busy, and there is no more time to wait for it. */
export class Away extends Error {}

/** POST, again and again with growing pauses as long as `waits()` says so. */
export async function post(path, body, { waits = () => true, headers = {} } = {}) {
  for (let pauseMs = 100; ; pauseMs = Math.min(pauseMs * 2, 10_000)) {
    let waitMs = pauseMs;
    let reason;
    try {
      const answer = await fetch(URL + path, {
        method: 'POST',
        headers: { ...HEADERS, ...headers },
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(30_000),
      });
      const parsed = await answer.json();
      if (answer.ok) return parsed;
      if (!TRY_AGAIN.includes(answer.status)) throw new Refused(answer.status, parsed);
      waitMs = Number(answer.headers.get('Retry-After')) * 1000 || pauseMs;
      reason = parsed.error.message;
    } catch (error) {
      if (error instanceof Refused) throw error;
      reason = error.cause ?? error;
    }
    // Not all clients at once, when it comes back.
    for (const end = Date.now() + waitMs * (1 + Math.random() / 2); Date.now() < end; await sleep(50)) {
      if (!waits()) throw new Away(String(reason));
    }
  }
}

package main

// A worker: go run worker.go ojs.go QUEUE… Several jobs at a time, heartbeats, directives, a graceful end.
//
// Settings: OJS_URL, OJS_API_KEY; OJS_CONCURRENCY, how many jobs at a time; OJS_VISIBILITY_MS, how long a job stays
// ours without a heartbeat; OJS_GRACE_S, how long running jobs may go on after SIGTERM before they are given back.

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ErrPermanent is wrapped by a handler's error when no further attempt would help.
var ErrPermanent = errors.New("permanent")

// A handler's result becomes the job's result.
var handlers = map[string]func(Job) (any, error){
	"email.send":  sendEmail,
	"report.make": makeReport,
}

func sendEmail(job Job) (any, error) {
	var address, template string
	if len(job.Args) != 2 || json.Unmarshal(job.Args[0], &address) != nil || json.Unmarshal(job.Args[1], &template) != nil {
		return nil, fmt.Errorf("%w: expected an address and a template", ErrPermanent)
	}
	if !strings.Contains(address, "@") {
		return nil, fmt.Errorf("%w: '%s' is no e-mail address", ErrPermanent, address)
	}
	fmt.Printf("sent %s to %s\n", template, address)
	return object{"sent": true}, nil
}

// makeReport takes args[0] seconds; heartbeats keep the job ours meanwhile.
func makeReport(job Job) (any, error) {
	var seconds float64
	if len(job.Args) != 1 || json.Unmarshal(job.Args[0], &seconds) != nil {
		return nil, fmt.Errorf("%w: expected a number of seconds", ErrPermanent)
	}
	time.Sleep(time.Duration(seconds * float64(time.Second)))
	return object{"pages": 3}, nil
}

type worker struct {
	id          string
	queues      []string
	concurrency int
	visibility  time.Duration
	grace       time.Duration

	mutex    sync.Mutex
	running  map[string]bool
	quiet    atomic.Bool
	stopping atomic.Bool
	giveUpAt atomic.Int64 // in ms; 0: not stopping
}

func (w *worker) held() []string {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	ids := make([]string, 0, len(w.running))
	for id := range w.running {
		ids = append(ids, id)
	}
	return ids
}

func (w *worker) work() {
	for !w.stopping.Load() {
		jobs := []Job{}
		if free := w.concurrency - len(w.held()); free > 0 && !w.quiet.Load() {
			jobs = w.fetch(free)
		}
		for _, job := range jobs {
			w.mutex.Lock()
			w.running[job.ID] = true
			w.mutex.Unlock()
			go w.run(job)
		}
		if len(jobs) == 0 {
			time.Sleep(200 * time.Millisecond)
		}
	}
	w.finish()
}

func (w *worker) fetch(count int) []Job {
	body := object{
		"queues": w.queues, "count": count, "worker_id": w.id, "visibility_timeout_ms": w.visibility.Milliseconds(),
	}
	var answer struct{ Jobs []Job }
	err := post("/workers/fetch", body, &answer, nil, func() bool { return !w.stopping.Load() })
	if err != nil && !errors.Is(err, ErrAway) {
		log.Fatal(err)
	}
	return answer.Jobs
}

// run is one job: ack with the result, nack with the error.
func (w *worker) run(job Job) {
	result, err := handle(job)
	if err == nil {
		w.tell("/workers/ack", job.ID, object{"result": result})
	} else {
		w.tell("/workers/nack", job.ID, object{"error": object{
			"code":      "handler_error",
			"type":      fmt.Sprintf("%T", err),
			"message":   err.Error(),
			"retryable": !errors.Is(err, ErrPermanent),
		}})
	}
	w.mutex.Lock()
	delete(w.running, job.ID)
	w.mutex.Unlock()
}

func handle(job Job) (result any, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("panic: %v", cause)
		}
	}()
	handler, known := handlers[job.Type]
	if !known {
		return nil, fmt.Errorf("no handler for %s", job.Type)
	}
	return handler(job)
}

// tell ends a job at the server, however long that is away.
func (w *worker) tell(path, id string, outcome object) {
	outcome["job_id"], outcome["worker_id"] = id, w.id
	err := post(path, outcome, &object{}, nil, func() bool {
		end := w.giveUpAt.Load()
		return end == 0 || time.Now().UnixMilli() < end
	})
	if err != nil {
		// 409, 404: an earlier try arrived after all, or the job is not ours any more. Away: it comes back by itself.
		log.Printf("%s: %v", id, err)
	}
}

// beat tells that we live, three times per reservation; the answer says what the operator wants of us.
func (w *worker) beat() {
	for ; ; time.Sleep(w.visibility / 3) {
		body := object{
			"worker_id": w.id, "active_jobs": w.held(), "visibility_timeout_ms": w.visibility.Milliseconds(),
		}
		var answer struct{ State string }
		if err := post("/workers/heartbeat", body, &answer, nil, func() bool { return false }); err != nil {
			log.Printf("heartbeat: %v", err)
			continue
		}
		w.quiet.Store(answer.State != "running")
		if answer.State == "terminate" {
			w.stopping.Store(true)
		}
	}
}

// finish waits for what runs, and gives back what takes longer.
func (w *worker) finish() {
	end := time.Now().Add(w.grace)
	w.giveUpAt.Store(end.UnixMilli())
	for len(w.held()) > 0 && time.Now().Before(end) {
		time.Sleep(50 * time.Millisecond)
	}
	w.giveUpAt.Store(time.Now().Add(5 * time.Second).UnixMilli())
	for _, id := range w.held() {
		w.tell("/workers/nack", id, object{"requeue": true})
	}
}

func main() {
	host, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	concurrency, err := strconv.Atoi(setting("OJS_CONCURRENCY", "8"))
	if err != nil {
		log.Fatal(err)
	}
	seconds, err := strconv.ParseFloat(setting("OJS_GRACE_S", "25"), 64)
	if err != nil {
		log.Fatal(err)
	}
	w := &worker{
		id:          fmt.Sprintf("%s-%d", host, os.Getpid()),
		queues:      []string{"email"},
		concurrency: concurrency,
		visibility:  milliseconds("OJS_VISIBILITY_MS", 30_000),
		grace:       time.Duration(seconds * float64(time.Second)),
		running:     map[string]bool{},
	}
	if len(os.Args) > 1 {
		w.queues = os.Args[1:]
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		w.stopping.Store(true)
	}()
	go w.beat()
	w.work()
}

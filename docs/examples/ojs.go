package main

// Calls to an Open Job Spec server with Go's standard library: patient when it is away, plain when it refuses.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"net/http"
	"os"
	"strconv"
	"time"
)

// ErrAway says that the server is away or busy, and that there is no more time to wait for it.
var ErrAway = errors.New("the server is away")

// Refused says that the server has understood and says no (4xx): trying again would not help.
type Refused struct {
	Status  int
	Code    string
	Message string
}

func (r *Refused) Error() string { return fmt.Sprintf("%d %s", r.Status, r.Message) }

// Job is what a worker needs of a job.
type Job struct {
	ID      string            `json:"id"`
	Type    string            `json:"type"`
	Args    []json.RawMessage `json:"args"`
	Attempt int               `json:"attempt"`
}

type object = map[string]any

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func milliseconds(name string, otherwise int) time.Duration {
	number, err := strconv.Atoi(setting(name, strconv.Itoa(otherwise)))
	if err != nil {
		panic(name + " must be a whole number")
	}
	return time.Duration(number) * time.Millisecond
}

var (
	url    = setting("OJS_URL", "http://127.0.0.1:8080") + "/ojs/v1"
	client = &http.Client{Timeout: 30 * time.Second}
)

func always() bool { return true }

// post sends, again and again with growing pauses as long as waits says so, and decodes the answer into answer.
func post(path string, body, answer any, headers object, waits func() bool) error {
	data, err := json.Marshal(body)
	if err != nil {
		return err
	}
	for pause := 100 * time.Millisecond; ; pause *= 2 {
		if pause > 10*time.Second {
			pause = 10 * time.Second
		}
		again, wait, err := try(path, data, answer, headers)
		if !again {
			return err
		}
		if wait == 0 {
			wait = pause
		}
		// Not all clients at once, when it comes back.
		end := time.Now().Add(wait + time.Duration(rand.Int63n(int64(wait)/2)))
		for time.Now().Before(end) {
			if !waits() {
				return fmt.Errorf("%w: %v", ErrAway, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// try sends once: whether to try again, and how long to wait first (0: the server does not say).
func try(path string, data []byte, answer any, headers object) (bool, time.Duration, error) {
	request, err := http.NewRequest(http.MethodPost, url+path, bytes.NewReader(data))
	if err != nil {
		return false, 0, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+os.Getenv("OJS_API_KEY"))
	for name, value := range headers {
		request.Header.Set(name, fmt.Sprint(value))
	}
	response, err := client.Do(request)
	if err != nil {
		return true, 0, err
	}
	defer response.Body.Close()
	if response.StatusCode < 300 {
		if err := json.NewDecoder(response.Body).Decode(answer); err != nil {
			return true, 0, err // the connection broke; what was asked for is safe to ask again
		}
		return false, 0, nil
	}
	var told struct {
		Error struct{ Code, Message string }
	}
	if err := json.NewDecoder(response.Body).Decode(&told); err != nil {
		told.Error.Message = response.Status
	}
	refused := &Refused{response.StatusCode, told.Error.Code, told.Error.Message}
	switch response.StatusCode {
	case 429, 502, 503, 504:
		seconds, _ := strconv.Atoi(response.Header.Get("Retry-After"))
		return true, time.Duration(seconds) * time.Second, refused
	}
	return false, 0, refused
}

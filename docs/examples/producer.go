package main

// Enqueue jobs: go run producer.go ojs.go QUEUE COUNT. Prints their ids. Settings: OJS_URL, OJS_API_KEY.

import (
	"crypto/rand"
	"fmt"
	"log"
	"os"
	"strconv"
)

// enqueue puts one job into its queue and returns its id; however often it is tried, there is one job.
func enqueue(kind string, args []any, options object) (string, error) {
	key := make([]byte, 16)
	if _, err := rand.Read(key); err != nil {
		return "", err
	}
	var answer struct{ Job Job }
	headers := object{"Idempotency-Key": fmt.Sprintf("%x", key)}
	err := post("/jobs", object{"type": kind, "args": args, "options": options}, &answer, headers, always)
	return answer.Job.ID, err
}

func main() {
	queue, count := "email", 10
	if len(os.Args) > 1 {
		queue = os.Args[1]
	}
	if len(os.Args) > 2 {
		var err error
		if count, err = strconv.Atoi(os.Args[2]); err != nil {
			log.Fatal(err)
		}
	}
	for number := 0; number < count; number++ {
		address := fmt.Sprintf("user%d@example.com", number)
		options := object{"queue": queue, "retry": object{"max_attempts": 5}}
		id, err := enqueue("email.send", []any{address, "welcome"}, options)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(id)
	}
}

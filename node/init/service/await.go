package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	"gvisor-k3s/node/init/files"

	"golang.org/x/sys/unix"
)

const (
	// lookEvery is how often the file is looked at.
	lookEvery = 25 * time.Millisecond
	// askEvery is how often process 1 is asked at most: it has services to look after.
	askEvery = 500 * time.Millisecond
	// awaitedLimit is how large the file may be.
	awaitedLimit = 1 << 20
	// lastLogLines is how much of a service's log tells why it is not there.
	lastLogLines = 15
)

// Awaited is what is waited for: that a service runs, that it listens, or what the process that runs has noted.
type Awaited struct {
	// File holds a JSON object whose "pid" is the process that noted it, and whose "problem", if there is one, says why it
	// gets no further. Without a file the service only has to run.
	File string `json:"file"`
	// Key is there once it is reached; without one the process only has to have noted its pid.
	Key string `json:"key"`
	// Socket is a Unix socket that somebody listens on once the service is reached.
	Socket  string `json:"socket"`
	Seconds int    `json:"seconds"` // until it is given up; 1 to 3600
	// Attempts is how often the service may be started again before it is given up; 0 is any number.
	Attempts int `json:"attempts"`
}

// Outcome is how the waiting ended.
type Outcome struct {
	Reached bool   `json:"reached"`
	Why     string `json:"why,omitempty"` // it was not
	State   State  `json:"state"`
	Log     string `json:"log,omitempty"` // its last lines, if it was not reached
}

func (a Awaited) validate() error {
	var problems []error
	if a.File != "" {
		problems = append(problems, files.CheckPath(a.File))
	}
	if a.Socket != "" {
		problems = append(problems, files.CheckPath(a.Socket))
	}
	if a.Key != "" && a.File == "" {
		problems = append(problems, fmt.Errorf("key %q: it needs a file", a.Key))
	}
	if a.Seconds < 1 || a.Seconds > 3600 {
		problems = append(problems, fmt.Errorf("seconds %d: 1 to 3600 is allowed", a.Seconds))
	}
	if a.Attempts < 0 {
		problems = append(problems, fmt.Errorf("attempts %d: 0 or more is allowed", a.Attempts))
	}
	return errors.Join(problems...)
}

// Await waits until a service has come so far. That it has not is no error.
func (c *Client) Await(name string, awaited Awaited) (Outcome, error) {
	if err := awaited.validate(); err != nil {
		return Outcome{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(awaited.Seconds)*time.Second)
	defer cancel()
	looks := time.NewTicker(lookEvery)
	defer looks.Stop()
	w := waiting{client: c, name: name, awaited: awaited}
	for {
		outcome, ended, err := w.look(ctx)
		if err != nil || ended {
			return outcome, err
		}
		select {
		case <-ctx.Done():
			return w.givenUp(), nil
		case <-looks.C:
		}
	}
}

// waiting is what is known while a service is waited for.
type waiting struct {
	client  *Client
	name    string
	awaited Awaited
	asked   time.Time // when process 1 answered last, or had not
	silent  bool      // it had not
	known   bool      // it has answered once
	detail  Detail    // what it said
	before  int       // how often the service had been started again when this began
}

// look finds out whether it is over.
func (w *waiting) look(ctx context.Context) (Outcome, bool, error) {
	if !w.known || time.Since(w.asked) >= askEvery {
		asking := time.Now()
		details, err := w.client.Details(ctx)
		w.asked = time.Now()
		if errors.Is(err, context.DeadlineExceeded) {
			w.silent = w.silent || w.asked.Sub(asking) > askEvery/2 // else it had no time to answer
			return Outcome{}, false, nil
		}
		if err != nil {
			return Outcome{}, false, err
		}
		detail, exists := details[w.name]
		if !exists {
			why := fmt.Sprintf("there is no service %q; there are %q", w.name, slices.Sorted(maps.Keys(details)))
			return Outcome{Why: why}, true, nil
		}
		if !w.known || detail.State.Restarts < w.before { // the count begins anew when it is put or restarted
			w.before = detail.State.Restarts
		}
		w.silent, w.known, w.detail = false, true, detail
	}
	state := w.detail.State
	if w.known && state.PID != 0 {
		reached, problem := w.awaited.noted(state.PID)
		if reached {
			return Outcome{Reached: true, State: state}, true, nil
		}
		if problem != "" {
			return w.notReached(problem), true, nil
		}
	}
	if limit := w.awaited.Attempts; limit > 0 && state.Restarts-w.before >= limit {
		return w.notReached("it keeps ending, the last time with " + state.LastExit), true, nil
	}
	return Outcome{}, false, nil
}

// noted tells whether this process has noted what is waited for, or why it gets no further. It must run still: process
// 1 was asked a while ago.
func (a Awaited) noted(pid int) (reached bool, problem string) {
	if unix.Kill(pid, 0) != nil || !a.listening() {
		return false, ""
	}
	if a.File == "" {
		return true, ""
	}
	content, err := files.Read(a.File, awaitedLimit)
	if err != nil {
		return false, ""
	}
	var found map[string]json.RawMessage
	if json.Unmarshal(content, &found) != nil {
		return false, ""
	}
	var by int
	if json.Unmarshal(found["pid"], &by) != nil || by != pid {
		return false, ""
	}
	if _, reached = found[a.Key]; a.Key == "" || reached {
		return true, ""
	}
	_ = json.Unmarshal(found["problem"], &problem) // without one it is absent
	return false, problem
}

// listening tells whether somebody listens on the socket, if there is to be one.
func (a Awaited) listening() bool {
	if a.Socket == "" {
		return true
	}
	connection, err := net.DialTimeout("unix", a.Socket, askEvery)
	return err == nil && connection.Close() == nil
}

func (w *waiting) givenUp() Outcome {
	why := fmt.Sprintf("not within %d s", w.awaited.Seconds)
	if w.silent {
		why += ": sandbox-init does not answer"
	}
	return w.notReached(why)
}

func (w *waiting) notReached(why string) Outcome {
	outcome := Outcome{Why: why, State: w.detail.State}
	if w.detail.Log != "" {
		written := files.LastLines(w.detail.Log, lastLogLines)
		outcome.Log = files.LastLinesOf(written+"\n"+w.detail.Unwritten, lastLogLines)
	}
	return outcome
}

package service

import (
	"slices"
	"sync"

	"gopkg.in/natefinch/lumberjack.v2"
)

// keptLimit is how much of what a log cannot take is kept.
const keptLimit = 16 << 10

// output is where a program's output goes: a file, and what that cannot take, as on a disk that is full, is kept in
// memory until it can. The end of it is what tells why the program ended.
type output struct {
	log *lumberjack.Logger

	writing sync.Mutex
	mu      sync.Mutex // guards what follows, and is held for no write: who asks is not to wait for a disk
	kept    []byte
}

func newOutput(file string) *output {
	return &output{log: &lumberjack.Logger{Filename: file, MaxSize: 10, MaxBackups: 3}}
}

// Write takes everything.
func (o *output) Write(text []byte) (int, error) {
	o.writing.Lock()
	defer o.writing.Unlock()
	due := slices.Concat([]byte(o.unwritten()), text)
	written, err := o.log.Write(due)
	if due = due[written:]; err == nil {
		due = nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kept = slices.Clone(due[max(0, len(due)-keptLimit):])
	return len(text), nil
}

// unwritten is the end of what the file could not take.
func (o *output) unwritten() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.kept)
}

func (o *output) close() {
	if o.unwritten() != "" { // there may be room by now
		_, _ = o.Write(nil)
	}
	_ = o.log.Close()
}

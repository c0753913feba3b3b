package command

import "bytes"

// Logging says which of a command's outputs are shown while it runs.
type Logging string

// The values of [Logging]. A nil *Logging means LogBoth.
const (
	LogStdout Logging = "stdout"
	LogStderr Logging = "stderr"
	LogBoth   Logging = "stdoutAndStderr"
	LogNone   Logging = "none"
)

var loggingValues = []Logging{LogStdout, LogStderr, LogBoth, LogNone}

func (l *Logging) shows(stream Logging) bool {
	return l == nil || *l == LogBoth || *l == stream
}

// maxLogLine is the length in bytes at which a line is logged in pieces, so that output without newlines neither
// fills memory nor is held back until the command ends.
const maxLogLine = 64 << 10

// lineLogger passes on what is written to it, line by line and without line ends.
type lineLogger struct {
	log     func(line string)
	pending []byte
}

func (l *lineLogger) Write(data []byte) (int, error) {
	l.pending = append(l.pending, data...)
	for {
		end := bytes.IndexByte(l.pending, '\n')
		switch {
		case end >= 0:
			l.log(string(bytes.TrimSuffix(l.pending[:end], []byte("\r"))))
			l.pending = l.pending[end+1:]
		case len(l.pending) >= maxLogLine:
			l.log(string(l.pending[:maxLogLine]))
			l.pending = l.pending[maxLogLine:]
		default:
			return len(data), nil
		}
	}
}

// flush passes on a last line that had no line end.
func (l *lineLogger) flush() {
	if len(l.pending) > 0 {
		l.log(string(l.pending))
		l.pending = nil
	}
}

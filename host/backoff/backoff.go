// Package backoff tells how long to wait until something is started again.
package backoff

import "time"

// Backoff is that of what has ended: its zero value waits a second, and twice as long each time, up to a minute.
type Backoff struct {
	// Most is the longest pause; default: a minute.
	Most time.Duration
	// Stable is how long something lives that has not failed at once; default: five minutes.
	Stable time.Duration
	last   time.Duration
}

const (
	firstPause    = time.Second
	mostByDefault = time.Minute
	stableAfter   = 5 * time.Minute
)

// Next is the pause after something that has lived for so long.
func (b *Backoff) Next(lived time.Duration) time.Duration {
	most, stable := b.Most, b.Stable
	if most == 0 {
		most = mostByDefault
	}
	if stable == 0 {
		stable = stableAfter
	}
	if b.last == 0 || lived >= stable {
		b.last = firstPause
	} else {
		b.last = min(2*b.last, most)
	}
	return b.last
}

package supervise

import "time"

const (
	firstPause = time.Second
	lastPause  = time.Minute
	// What has lived for so long has not failed at once.
	stableAfter = 5 * time.Minute
)

// backoff is how long is waited until something is started again, which doubles while it keeps failing.
type backoff struct{ last time.Duration }

func (b *backoff) next(lived time.Duration) time.Duration {
	if b.last == 0 || lived >= stableAfter {
		b.last = firstPause
	} else {
		b.last = min(2*b.last, lastPause)
	}
	return b.last
}

package main

import (
	"context"
	"time"
)

const (
	// A deployment that is rolled out changes its slices many times a second.
	quiet = 20 * time.Millisecond
	// How soon something is tried again that failed, such as a port that somebody else has.
	retry = time.Second
)

// changes are told of by many, and followed by one.
type changes chan struct{}

func newChanges() changes { return make(changes, 1) }

// wake tells of a change.
func (c changes) wake() {
	select {
	case c <- struct{}{}:
	default: // it is about to be looked at anyway
	}
}

// follow has sync called now, soon after each change, and when it says itself, until the context ends.
func (c changes) follow(ctx context.Context, sync func() (again time.Duration)) {
	soon := true
	for next := time.After(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-c:
			if !soon { // a change does not put off what is done for the one before
				next, soon = time.After(quiet), true
			}
		case <-next:
			next, soon = nil, false
			if again := sync(); again > 0 {
				next = time.After(again)
			}
		}
	}
}

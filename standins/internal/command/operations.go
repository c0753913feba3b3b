package command

import (
	"context"
	"sync"
	"time"
)

// operations are the commands that run now. The zero value is ready to use.
type operations struct {
	mu        sync.Mutex
	cancelled bool
	next      int
	running   map[int]context.CancelFunc
}

// start returns a context for one command, which ends with parent, after timeout seconds (0: never) or on cancel. The
// command's end must be told with done.
func (o *operations) start(parent context.Context, timeout float64) (ctx context.Context, done func()) {
	var stop context.CancelFunc
	if timeout > 0 {
		ctx, stop = context.WithTimeout(parent, time.Duration(timeout*float64(time.Second)))
	} else {
		ctx, stop = context.WithCancel(parent)
	}

	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cancelled {
		stop()
	}
	if o.running == nil {
		o.running = map[int]context.CancelFunc{}
	}
	id := o.next
	o.next++
	o.running[id] = stop
	return ctx, func() {
		stop()
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.running, id)
	}
}

// cancel ends every command's context, also of those that start later: the engine cancels once, at its own end.
func (o *operations) cancel() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.cancelled = true
	for _, stop := range o.running {
		stop()
	}
}

package egress

import (
	"log"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// How many connections and flows there may be, in all and of one address. Each is a socket of the host's, and each flow
// of datagrams a port of the host's.
const (
	tcpTotal     = 16384
	tcpPerSource = 12288
	udpTotal     = 4096
	udpPerSource = 2048
	// Flows that had to make way, and whose sockets are about to be closed.
	udpEnding = 512
)

// limit is how many there may be.
type limit struct{ total, perSource int }

// budget is how much a connection may have buffered in each direction, on each of its two sides, while so many are
// open. In all that is less than dataGoal on the sandbox's side, which is this process's memory. A few connections are
// fast, and thousands do not take all memory, however slow those are who read from them.
func budget(open int) int {
	switch {
	case open <= 256:
		return largestBuffer
	case open <= 2048:
		return 128 << 10
	}
	return 32 << 10
}

const largestBuffer = 512 << 10

// quota counts what is open, in all and of each source.
type quota struct {
	total, perSource int

	mutex sync.Mutex
	open  int
	of    map[netip.Addr]int
}

func newQuota(total, perSource int) *quota {
	return &quota{total: total, perSource: perSource, of: map[netip.Addr]int{}}
}

// take counts one more. It returns how many are open then; 0 if there may be no more.
func (q *quota) take(source netip.Addr) int {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	if q.open >= q.total || q.of[source] >= q.perSource {
		return 0
	}
	q.open++
	q.of[source]++
	return q.open
}

func (q *quota) give(source netip.Addr) {
	q.mutex.Lock()
	defer q.mutex.Unlock()
	q.open--
	if q.of[source]--; q.of[source] == 0 {
		delete(q.of, source) // nothing is kept of who has nothing open
	}
}

// notes are a log that does not fill: of many lines most are counted only.
type notes struct {
	limiter *rate.Limiter

	mutex sync.Mutex
	left  int
}

func newNotes() *notes { return &notes{limiter: rate.NewLimiter(rate.Every(10*time.Second), 20)} }

func (n *notes) add(format string, args ...any) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	if !n.limiter.Allow() {
		n.left++
		return
	}
	if n.left > 0 {
		log.Printf("%d lines were left out, since there were too many", n.left)
		n.left = 0
	}
	log.Printf(format, args...)
}

package filter

import (
	"net/netip"
	"sync"
	"time"

	"gvisor-k3s/node/server/service-proxy/policy"
)

// How long a flow without a packet is known. One of TCP that is known no longer is found again by its next packet.
const (
	tcpIdle    = time.Hour
	halfIdle   = 2 * time.Minute
	closedIdle = 15 * time.Second
	otherIdle  = 3 * time.Minute
	pieceIdle  = 30 * time.Second // RFC 791 has 15 seconds at least
	sweepEvery = 10 * time.Second
	// pickUpFor is how long connections are looked for that were there before the filter.
	pickUpFor = 2 * time.Minute
)

const (
	// maxFlows is what a pod can have begun, lest it take the memory of all others. The node is bounded by what pods and
	// clients ask of it.
	maxFlows = 8192
	// maxPieces are a sender's datagrams of which the rest is awaited.
	maxPieces = 256
	// firstEphemeral is where the ports begin that clients are given (gVisor: pkg/tcpip/ports; Linux begins higher).
	firstEphemeral = 16000
)

// flows knows who began what, so that answers pass. What was allowed once is asked again after each change of the
// rules.
type flows struct {
	allows func(policy.Flow) bool
	// inside tells the addresses of pods and of the node.
	inside func(netip.Addr) bool

	mutex      sync.Mutex
	generation uint64
	known      map[key]*flow
	// begun counts the flows of those who are charged for them.
	begun    map[netip.Addr]int
	pieces   map[fragment]time.Time
	piecesOf map[netip.Addr]int
	began    time.Time
	swept    time.Time
}

type flow struct {
	allowed    bool
	generation uint64
	last       time.Time
	// by is who sent its first packet.
	by netip.Addr
	// ended are the directions that have said all, of TCP.
	ended [2]bool
}

func newFlows(allows func(policy.Flow) bool, inside func(netip.Addr) bool) *flows {
	return &flows{
		allows: allows, inside: inside, known: map[key]*flow{}, begun: map[netip.Addr]int{},
		pieces: map[fragment]time.Time{}, piecesOf: map[netip.Addr]int{},
	}
}

// rulesChanged has every flow asked for again.
func (t *flows) rulesChanged() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.generation++
}

// forgetAllBy forgets what an address has begun, which may be another pod's next.
func (t *flows) forgetAllBy(address netip.Addr) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	for name, flow := range t.known {
		if flow.by == address {
			t.forget(name)
		}
	}
}

// passes decides on a packet.
func (t *flows) passes(p packet, fromPod bool, now time.Time) bool {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	if t.began.IsZero() {
		t.began = now
	}
	t.sweep(now)
	if p.piece {
		_, ok := t.pieces[p.fragment]
		return ok
	}
	if p.about != nil {
		return t.isAnswer(*p.about, p, fromPod)
	}
	passes := t.decide(p, fromPod, now)
	if _, known := t.pieces[p.fragment]; passes && p.later && !known {
		if t.piecesOf[p.fragment.source] >= maxPieces {
			return false
		}
		t.piecesOf[p.fragment.source]++
		t.pieces[p.fragment] = now
	}
	return passes
}

// isAnswer tells whether an error is about a flow that is allowed, and goes to whom has sent what it is about.
func (t *flows) isAnswer(about key, p packet, fromPod bool) bool {
	if about.source.Addr() != p.destination.Addr() || fromPod && about.destination.Addr() != p.source.Addr() {
		return false
	}
	for _, name := range []key{about, about.reversed()} {
		if found := t.known[name]; found != nil {
			return t.stillAllowed(name, found)
		}
	}
	return false
}

func (t *flows) stillAllowed(name key, found *flow) bool {
	if found.generation != t.generation {
		found.allowed, found.generation = t.ask(name), t.generation
	}
	return found.allowed
}

func (t *flows) decide(p packet, fromPod bool, now time.Time) bool {
	name := p.key
	found := t.known[name]
	if found == nil && !(p.protocol == protocolTCP && p.opens()) && t.known[p.reversed()] != nil {
		name = p.reversed()
		found = t.known[name]
	}
	switch {
	case found != nil:
	case p.opens():
		found = &flow{allowed: t.ask(name), generation: t.generation}
	case p.protocol == protocolTCP:
		name, found = t.pickUp(p, now)
	}
	if found == nil || !t.stillAllowed(name, found) {
		return false
	}
	if t.known[name] == nil {
		t.forget(name.reversed()) // the same two ports, the other way round
		found.by = p.source.Addr()
		if fromPod && t.begun[found.by] >= maxFlows {
			return false
		}
		t.begun[found.by]++
		t.known[name] = found
	}
	found.last = now
	switch {
	case p.opens():
		found.ended = [2]bool{}
	case p.flags&tcpRST != 0:
		found.ended = [2]bool{true, true}
	case p.flags&tcpFIN != 0 && name == p.key:
		found.ended[0] = true
	case p.flags&tcpFIN != 0:
		found.ended[1] = true
	}
	return true
}

// pickUp finds out who began a connection that was there before this table, or was idle for long, and whether that is
// allowed. A packet with SYN is none of such a connection. That it was begun by whom this packet goes to is believed
// while the filter is new only, and among pods and the node, as others dial no pod; where the ports do not tell which
// end is the server's, either may be.
func (t *flows) pickUp(p packet, now time.Time) (key, *flow) {
	forth, back := p.key, p.reversed()
	if p.flags&tcpSYN != 0 || p.flags&(tcpACK|tcpRST) == 0 {
		return forth, nil
	}
	order := []key{forth, back}
	switch toServer, fromServer := p.destination.Port() < firstEphemeral, p.source.Port() < firstEphemeral; {
	case now.Sub(t.began) > pickUpFor || !t.inside(p.destination.Addr()) || toServer && !fromServer:
		order = order[:1]
	case fromServer && !toServer:
		order = order[1:]
	}
	for _, name := range order {
		if t.ask(name) {
			return name, &flow{allowed: true, generation: t.generation}
		}
	}
	return forth, nil
}

func (t *flows) ask(name key) bool {
	asked := policy.Flow{
		Source: name.source.Addr(), Destination: name.destination.Addr(), Protocol: protocolOf(name.protocol),
	}
	if asked.Protocol != "" {
		asked.Port = name.destination.Port()
	}
	return t.allows(asked)
}

// sweep forgets what was idle for long.
func (t *flows) sweep(now time.Time) {
	if now.Sub(t.swept) < sweepEvery {
		return
	}
	t.swept = now
	for name, flow := range t.known {
		if now.Sub(flow.last) > flow.idle(name) {
			t.forget(name)
		}
	}
	for piece, since := range t.pieces {
		if now.Sub(since) > pieceIdle {
			delete(t.pieces, piece)
			countDown(t.piecesOf, piece.source)
		}
	}
}

func (t *flows) forget(name key) {
	if found := t.known[name]; found != nil {
		delete(t.known, name)
		countDown(t.begun, found.by)
	}
}

func countDown(counts map[netip.Addr]int, address netip.Addr) {
	if counts[address]--; counts[address] <= 0 {
		delete(counts, address)
	}
}

func (f *flow) idle(name key) time.Duration {
	switch {
	case f.ended[0] && f.ended[1]:
		return closedIdle
	case f.ended[0] || f.ended[1]:
		return halfIdle
	case name.protocol == protocolTCP:
		return tcpIdle
	}
	return otherIdle
}

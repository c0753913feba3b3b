package filter

import (
	"net/netip"
	"sync"
	"time"

	"gvisor-k3s/node/server/service-proxy/policy"
)

// How long a flow without a packet is known. One of TCP that is known no longer is found again by its next packet.
const (
	tcpIdle     = time.Hour
	closingIdle = 2 * time.Minute
	otherIdle   = 3 * time.Minute
	pieceIdle   = 30 * time.Second // RFC 791 has 15 seconds at least
	sweepEvery  = 10 * time.Second
)

const (
	// maxFlows is what one address can have begun, lest it take the memory of all others.
	maxFlows = 8192
	// maxPieces are the datagrams of which the rest is awaited.
	maxPieces = 4096
	// firstEphemeral is where the ports begin that clients are given (gVisor: pkg/tcpip/ports; Linux begins higher).
	firstEphemeral = 16000
)

// flows knows who began what, so that answers pass. What was allowed once is asked again after each change of the
// rules.
type flows struct {
	allows func(policy.Flow) bool

	mutex      sync.Mutex
	generation uint64
	known      map[key]*flow
	begun      map[netip.Addr]int
	pieces     map[fragment]time.Time
	swept      time.Time
}

type flow struct {
	allowed    bool
	closing    bool
	generation uint64
	last       time.Time
}

func newFlows(allows func(policy.Flow) bool) *flows {
	return &flows{
		allows: allows, known: map[key]*flow{}, begun: map[netip.Addr]int{}, pieces: map[fragment]time.Time{},
	}
}

// rulesChanged has every flow asked for again.
func (t *flows) rulesChanged() {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.generation++
}

// passes decides on a packet.
func (t *flows) passes(p packet, now time.Time) bool {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.sweep(now)
	if p.piece {
		_, ok := t.pieces[p.fragment]
		return ok
	}
	passes := t.decide(p, now)
	if passes && p.later {
		if len(t.pieces) >= maxPieces {
			return false
		}
		t.pieces[p.fragment] = now
	}
	return passes
}

func (t *flows) decide(p packet, now time.Time) bool {
	if p.about != nil {
		// An error comes back from where the packet went.
		_, forth := t.known[*p.about]
		_, back := t.known[p.about.reversed()]
		return forth || back
	}
	name := p.key
	found := t.known[name]
	if found == nil && !(p.protocol == protocolTCP && p.opens()) {
		if name = p.reversed(); t.known[name] != nil {
			found = t.known[name]
		} else {
			name = p.key
		}
	}
	switch {
	case found == nil && p.opens():
		found = &flow{allowed: t.ask(name), generation: t.generation}
	case found == nil && p.protocol == protocolTCP:
		name, found = t.pickUp(p)
	case found == nil:
		return false
	case found.generation != t.generation:
		found.allowed, found.generation = t.ask(name), t.generation
	}
	if !found.allowed {
		return false
	}
	if t.known[name] == nil {
		t.forget(name.reversed()) // the same two ports, the other way round
		if t.begun[name.source.Addr()] >= maxFlows {
			return false
		}
		t.begun[name.source.Addr()]++
		t.known[name] = found
	}
	found.last = now
	found.closing = p.flags&(tcpFIN|tcpRST) != 0 || found.closing && !p.opens()
	return true
}

// pickUp finds out who began a connection that was there before this table, or was idle for long. It was allowed then,
// and nothing new can be opened this way. Where the ports do not tell which end is the server's, either may be.
func (t *flows) pickUp(p packet) (key, *flow) {
	forth, back := p.key, p.reversed()
	order := []key{forth, back}
	switch toServer, fromServer := p.destination.Port() < firstEphemeral, p.source.Port() < firstEphemeral; {
	case toServer && !fromServer:
		order = order[:1]
	case fromServer && !toServer:
		order = order[1:]
	}
	for _, name := range order {
		if t.ask(name) {
			return name, &flow{allowed: true, generation: t.generation}
		}
	}
	return forth, &flow{}
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
		}
	}
}

func (t *flows) forget(name key) {
	if t.known[name] == nil {
		return
	}
	delete(t.known, name)
	if t.begun[name.source.Addr()]--; t.begun[name.source.Addr()] <= 0 {
		delete(t.begun, name.source.Addr())
	}
}

func (f *flow) idle(name key) time.Duration {
	switch {
	case f.closing:
		return closingIdle
	case name.protocol == protocolTCP:
		return tcpIdle
	}
	return otherIdle
}

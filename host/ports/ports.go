// Package ports tells which ports the host's own sockets get.
package ports

import (
	"fmt"
	"os"
)

const setting = "/proc/sys/net/ipv4/ip_local_port_range"

// Range is a range of ports, with both ends.
type Range struct{ First, Last uint16 }

// Ephemeral are those that sockets get that do not ask for one, in the network namespace of the calling thread.
func Ephemeral() (Range, error) {
	text, err := os.ReadFile(setting)
	if err != nil {
		return Range{}, err
	}
	var all Range
	if _, err := fmt.Sscan(string(text), &all.First, &all.Last); err != nil || all.Last < all.First {
		return Range{}, fmt.Errorf("%s has %q, and two ports are expected (%v)", setting, text, err)
	}
	return all, nil
}

// UpperHalf is the half of a range that has its last port.
func (r Range) UpperHalf() Range { return Range{r.Last - (r.Last-r.First)/2, r.Last} }

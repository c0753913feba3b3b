// Command gvisor-k3s-host is what runs on the host beside a sandbox.
//
//	gvisor-k3s-host egress …     be the way out of a sandbox (see package egress)
//	gvisor-k3s-host filter …     keep a sandbox from the host's services (see package linkfilter)
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"gvisor-k3s/host/egress"
	"gvisor-k3s/host/linkfilter"
)

var commands = map[string]func(args []string) error{
	"egress": egress.Main,
	"filter": linkfilter.Main,
}

const usage = "usage: gvisor-k3s-host egress … | filter …"

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err := commands[os.Args[1]](os.Args[2:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "gvisor-k3s-host %s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
}

// Command gvisor-k3s-host is what runs on the host beside a sandbox. It trusts nothing that comes out of it.
//
//	gvisor-k3s-host supervise SPEC_FILE      keep a sandbox running as described, with its network and its way out:
//	                                         [--again] with what ran in it, [--restore=FOLDER] with a kept memory
//	gvisor-k3s-host save SPEC_FILE FOLDER    keep what a sandbox has on its disk: [--memory] and in memory, [--end]
//	gvisor-k3s-host unpack ARCHIVE FOLDER    make a folder of a disk that was kept, of --sha256=HASH
//	gvisor-k3s-host thaw SPEC_FILE           have a sandbox go on that a save has stopped, if that is killed
//	gvisor-k3s-host egress …                 be the way out of a sandbox (see package egress)
//	gvisor-k3s-host filter …                 keep a sandbox from the host's services (see package linkfilter)
//	gvisor-k3s-host network down NAMESPACE [MESH]
//	                                         remove a sandbox's network, and its link to other nodes
//	gvisor-k3s-host wire SPEC_FILE           be the link to a node on another machine (see package nodewire)
//	gvisor-k3s-host read ROOT PATH           print a regular file beneath a folder: [--tail BYTES] [--limit BYTES]
//	gvisor-k3s-host list ROOT PATH           print the names of the regular files of a folder beneath a folder
//	gvisor-k3s-host remove PATH              remove a folder with all that a sandbox has put in it
//	gvisor-k3s-host terminal PROGRAM …       run a program on a terminal that is not the user's, but looks like it
//
// It ends with 0 when it is done, with 1 on an error, with 2 for a wrong command line, and with 3 where read or list
// find nothing of that name; terminal ends as its program does.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"gvisor-k3s/host/archive"
	"gvisor-k3s/host/egress"
	"gvisor-k3s/host/files"
	"gvisor-k3s/host/linkfilter"
	"gvisor-k3s/host/network"
	"gvisor-k3s/host/nodewire"
	"gvisor-k3s/host/supervise"
	"gvisor-k3s/host/terminal"
	"gvisor-k3s/host/usage"
)

var commands = map[string]func(args []string) error{
	"supervise": supervise.Main,
	"egress":    egress.Main,
	"filter":    linkfilter.Main,
	"network":   networkCommand,
	"wire":      nodewire.Main,
	"read":      files.Read,
	"list":      files.List,
	"remove":    files.Remove,
	"terminal":  terminal.Main,
	"save":      supervise.Save,
	"thaw":      supervise.Guard,
	"unpack":    archive.UnpackCommand,
}

const synopsis = "usage: gvisor-k3s-host supervise SPEC_FILE | network down NAMESPACE [MESH] | wire SPEC_FILE | " +
	"read ROOT PATH [--tail BYTES] [--limit BYTES] | list ROOT PATH | remove PATH | terminal PROGRAM … | " +
	"save [--memory] [--end] SPEC_FILE FOLDER | unpack --sha256=HASH ARCHIVE FOLDER | egress … | filter …"

// How long the kernel may take to take a link down.
const patience = 20 * time.Second

func networkCommand(args []string) error {
	if len(args) < 2 || len(args) > 3 || args[0] != "down" {
		return usage.Wrong("network %q: `network down NAMESPACE [MESH]` is what there is", args)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := network.Down(ctx, args[1])
	if len(args) == 3 {
		err = errors.Join(err, network.LeaveMesh(ctx, args[2], args[1]))
	}
	return err
}

func main() {
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, synopsis)
		os.Exit(2)
	}
	err := commands[os.Args[1]](os.Args[2:])
	var ended terminal.ExitError
	if errors.As(err, &ended) {
		os.Exit(ended.Code)
	}
	if err == nil {
		return
	}
	if errors.Is(err, flag.ErrHelp) {
		fmt.Println(synopsis)
		return
	}
	fmt.Fprintf(os.Stderr, "gvisor-k3s-host %s: %v\n", os.Args[1], err)
	switch {
	case errors.As(err, &usage.Error{}):
		fmt.Fprintln(os.Stderr, synopsis)
		os.Exit(2)
	case errors.As(err, &files.AbsentError{}):
		os.Exit(3)
	}
	os.Exit(1)
}

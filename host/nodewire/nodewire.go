// Package nodewire is the link between a cluster's nodes on this host and one on another machine: a port of the bridge
// on which they meet, whose frames a program carries by its standard input and output, such as an SSH session to that
// machine. What comes from there is given to the bridge and to nobody else.
package nodewire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"gopkg.in/natefinch/lumberjack.v2"

	"gvisor-k3s/host/backoff"
	"gvisor-k3s/host/network"
	"gvisor-k3s/host/usage"
	"gvisor-k3s/wire"
)

// Spec describes a link.
type Spec struct {
	// Namespace is where the bridge is.
	Namespace string `json:"namespace"`
	// Link is the port's name.
	Link string `json:"link"`
	// Node is the address of the node at the other end.
	Node netip.Addr `json:"node"`
	MTU  int        `json:"mtu"`
	// Command is the program that carries, with its arguments.
	Command []string `json:"command"`
	// Log is the file that tells how the link is.
	Log string `json:"log"`
}

const (
	// Of the log, in MiB. What the other machine says ends up in it.
	logSize = 1
	logsOld = 1
	// mostSaid is what is kept of a program's last words, in bytes.
	mostSaid = 2 << 10
	// How long is waited for a program that was told to end.
	endPatience = 5 * time.Second
	// A link that broke is wanted back soon.
	longestPause = 10 * time.Second
	stableAfter  = time.Minute
	// How long the kernel may take to take a link down.
	downPatience = 20 * time.Second
)

// Attached is what the log says when the other end is there.
const Attached = "attached"

// Main keeps the link of a file, the only argument, until it is told to end.
func Main(args []string) error {
	if len(args) != 1 {
		return usage.Wrong("wire %q: the file of a link is needed", args)
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	spec, err := parse(text)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return spec.keep(ctx)
}

func parse(text []byte) (spec Spec, err error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	err = decoder.Decode(&spec)
	if err == nil && (len(spec.Command) == 0 || spec.Log == "") {
		err = errors.New("command and log: both are needed")
	}
	return spec, err
}

func (s Spec) keep(ctx context.Context) error {
	said := log.New(&lumberjack.Logger{Filename: s.Log, MaxSize: logSize, MaxBackups: logsOld}, "", log.LstdFlags|log.LUTC)
	tap, err := network.JoinByTap(s.Namespace, s.Link, s.Node, s.MTU)
	if err != nil {
		return errors.Join(fmt.Errorf("joining the network %s: %w", s.Namespace, err), s.leave())
	}
	// The kernel ends a child with the thread that has started it, and not with the process.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pause := backoff.Backoff{Most: longestPause, Stable: stableAfter}
	for ctx.Err() == nil {
		begin := time.Now()
		err := s.carry(ctx, tap, func() { said.Print(Attached) })
		if ctx.Err() != nil {
			break
		}
		again := pause.Next(time.Since(begin))
		said.Printf("it has ended, and is tried again in %s: %v", again, err)
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
	return errors.Join(tap.Close(), s.leave())
}

// leave removes the bridge if no other node is there.
func (s Spec) leave() error {
	ctx, cancel := context.WithTimeout(context.Background(), downPatience)
	defer cancel()
	return network.LeaveMesh(ctx, s.Namespace, s.Link)
}

// carry has the program run and carry the frames, and returns why it ended.
func (s Spec) carry(ctx context.Context, tap wire.Device, there func()) error {
	running, end := context.WithCancel(ctx)
	defer end()
	command := exec.CommandContext(running, s.Command[0], s.Command[1:]...)
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.WaitDelay = endPatience
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	words := lastWords{}
	command.Stderr = &words
	in, fromProgram, err := os.Pipe()
	if err != nil {
		return err
	}
	toProgram, out, err := os.Pipe()
	if err != nil {
		return errors.Join(err, in.Close(), fromProgram.Close())
	}
	command.Stdin, command.Stdout = toProgram, fromProgram
	err = command.Start()
	err = errors.Join(err, toProgram.Close(), fromProgram.Close())
	if err != nil {
		return errors.Join(err, in.Close(), out.Close())
	}
	carried := wire.Carry(ctx, tap, wire.Stream{In: in, Out: out}, there)
	end()
	return errors.Join(carried, command.Wait(), words.error())
}

// lastWords are the end of what a program has said.
type lastWords struct{ end []byte }

func (w *lastWords) Write(text []byte) (int, error) {
	w.end = append(w.end, text[max(0, len(text)-mostSaid):]...)
	w.end = w.end[max(0, len(w.end)-mostSaid):]
	return len(text), nil
}

// error is what was said, with no character that a terminal would follow.
func (w *lastWords) error() error {
	text := strings.TrimSpace(string(w.end))
	if text == "" {
		return nil
	}
	return fmt.Errorf("it said %q", text)
}

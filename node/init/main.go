// Command sandbox-init is process 1 of a managed sandbox, and the tool by which the host reads and writes what lies in
// one. Whatever a root in the sandbox has put in the way is met inside it, and is nothing of the host's.
//
//	sandbox-init run                    be process 1: reap orphans, supervise services, stop them on SIGTERM
//	sandbox-init service put            start the service on standard input (a service.Service), or restart it
//	sandbox-init service restart NAME   restart a service and return when the new process runs
//	sandbox-init service stop NAME      stop a service and forget it
//	sandbox-init service status         print the state of every service
//	sandbox-init service await NAME     wait until it has come as far as standard input says (a service.Awaited)
//	sandbox-init files put              write the files on standard input (a list of files.File), whole or not at all
//	sandbox-init files get PATH [--limit BYTES] [--tail BYTES]
//	                                    print a regular file, or its end; exit code 3 if there is none
//	sandbox-init files hash             tell the SHA-256 of the files on standard input (a list of paths)
//	sandbox-init files remove           remove the files and folders on standard input (a list of paths)
//	sandbox-init files list PATH        name the regular files of a folder
//	sandbox-init files changed PATH SECONDS [SHA256]
//	                                    print a regular file as soon as it is another one than that, or none, or as it is
//	                                    when the time is up; exit code 3 if there is none
//	sandbox-init files usage            tell what folders take of the disk (see files.Measure)
//	sandbox-init boot [--forget]        make what is on standard input (a boot.Plan), and forget the last life
//	sandbox-init boot --replay          have the facade and the services of the last life again
//	sandbox-init facade                 apply the facade plan on standard input (see facade.Plan), idempotently
//	sandbox-init probe                  run the probes on standard input (a list of probe.Probe), print their answers
//	sandbox-init can WHAT ARGUMENTS     exit code 0 if the kernel can do that, else 1 and its answer (see probe.Can)
//	sandbox-init flock [--shared] [--nonblock]
//	                                    take the lock of the file at descriptor 3; exit code 4 if somebody else has it
//	sandbox-init hold FILE [--shared]   keep a lock as long as standard input lasts (see lock.Hold)
//	sandbox-init limits SOCKET          have the memory limits of containers hold (see limits.Watcher), and tell
//	                                    containerd, which answers ttrpc at this socket, of each that is killed
//	sandbox-init link serve LINK        be the link to the other nodes of a cluster, as JSON (see meshlink.Link)
//	sandbox-init link attach SOCKET     carry that link's frames by standard input and output
//	sandbox-init machine start          put a node on this machine, which is a sandbox itself (see machine.Start)
//	sandbox-init machine stop           take it off again (see machine.Stop)
//	sandbox-init machine observe        tell how the machine is (see machine.Observe)
//
// Input is JSON on standard input, of which nothing unknown is taken; output is JSON, or a file as it is. An error is
// told on standard error, with exit code 1.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"gvisor-k3s/node/init/boot"
	"gvisor-k3s/node/init/facade"
	"gvisor-k3s/node/init/files"
	"gvisor-k3s/node/init/input"
	"gvisor-k3s/node/init/limits"
	"gvisor-k3s/node/init/lock"
	"gvisor-k3s/node/init/machine"
	"gvisor-k3s/node/init/meshlink"
	"gvisor-k3s/node/init/probe"
	"gvisor-k3s/node/init/service"

	"golang.org/x/sys/unix"
)

var errUsage = errors.New(strings.TrimSpace(`usage: sandbox-init
  run
  service put | restart NAME | stop NAME | status | await NAME
  files put | get PATH [--limit BYTES] [--tail BYTES] | hash | remove | list PATH
  files changed PATH SECONDS [SHA256] | usage
  boot [--forget | --replay]
  facade
  probe
  can WHAT
  flock [--shared] [--nonblock]
  hold FILE [--shared]
  limits SOCKET
  link serve LINK | attach SOCKET
  machine start | stop | observe`))

// Exit codes that mean something else than an error.
const (
	exitAbsent = 3
	exitHeld   = 4
)

// patience is how long a command may take that only reads and writes files. A root in the sandbox can mount a file
// system whose files never answer.
var patience = 2 * time.Minute

func main() {
	err := dispatch(os.Args[1:])
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "sandbox-init:", err)
	var absent absentError
	switch {
	case errors.As(err, &absent):
		os.Exit(exitAbsent)
	case errors.Is(err, lock.ErrHeld):
		os.Exit(exitHeld)
	}
	os.Exit(1)
}

// absentError says that there is no file, where that is an answer.
type absentError struct{ error }

func dispatch(args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	rest := args[1:]
	switch args[0] {
	case "run":
		if len(rest) == 0 {
			return service.Run(service.Socket, service.NotesFile, service.ProcessesFile)
		}
	case "service":
		if len(rest) > 0 {
			return serviceCommand(service.NewClient(service.Socket), rest[0], rest[1:])
		}
	case "files":
		if len(rest) > 0 {
			return filesCommand(rest[0], rest[1:])
		}
	case "boot":
		return bootCommand(rest)
	case "facade":
		if len(rest) == 0 {
			return facadeCommand()
		}
	case "probe":
		if len(rest) == 0 {
			return probe.Run(os.Stdin, os.Stdout)
		}
	case "can":
		return probe.Can(rest)
	case "flock":
		return flockCommand(rest)
	case "hold":
		return holdCommand(rest)
	case "limits":
		if len(rest) == 1 {
			ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
			defer stop()
			limits.New(limits.Containerd(rest[0])).Run(ctx)
			return nil
		}
	case "link":
		if len(rest) == 2 {
			return linkCommand(rest[0], rest[1])
		}
	case "machine":
		if len(rest) == 1 {
			return machineCommand(rest[0])
		}
	}
	return errUsage
}

// serviceCommand asks process 1, and prints the state of all services or how the waiting for one ended.
func serviceCommand(client *service.Client, verb string, args []string) error {
	var answer []byte
	var err error
	switch {
	case verb == "put" && len(args) == 0:
		var description []byte
		if description, err = io.ReadAll(os.Stdin); err == nil {
			answer, err = client.Put(description)
		}
	case verb == "restart" && len(args) == 1:
		answer, err = client.Restart(args[0])
	case verb == "stop" && len(args) == 1:
		answer, err = client.Stop(args[0])
	case verb == "status" && len(args) == 0:
		return printAnswer(client.Status())
	case verb == "await" && len(args) == 1:
		awaited, err := read[service.Awaited]("what is awaited")
		if err != nil {
			return err
		}
		return printAnswer(client.Await(args[0], awaited))
	default:
		return errUsage
	}
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(answer)
	return err
}

func filesCommand(verb string, args []string) error {
	defer bounded("files " + verb)()
	switch {
	case verb == "put" && len(args) == 0:
		list, err := read[[]files.File]("files")
		if err != nil {
			return err
		}
		return files.Put(list)
	case verb == "get" && len(args) > 0:
		return getCommand(args)
	case verb == "hash" && len(args) == 0:
		paths, err := read[[]string]("paths")
		if err != nil {
			return err
		}
		return printAnswer(files.Hash(paths))
	case verb == "remove" && len(args) == 0:
		paths, err := read[[]string]("paths")
		if err != nil {
			return err
		}
		return files.Remove(paths)
	case verb == "list" && len(args) == 1:
		return printAnswer(files.List(args[0]))
	case verb == "changed" && (len(args) == 2 || len(args) == 3):
		return changedCommand(args[0], args[1], append(args[2:], "")[0])
	case verb == "usage" && len(args) == 0:
		measure, err := read[files.Measure]("what is measured")
		if err != nil {
			return err
		}
		return printAnswer(measure.Run())
	}
	return errUsage
}

// changedCommand prints a file that has changed, or that has not in time.
func changedCommand(path, seconds, known string) error {
	most := int(patience / time.Second / 2)
	count, err := strconv.Atoi(seconds)
	if err != nil || count < 0 || count > most {
		return fmt.Errorf("seconds %q: 0 to %d is allowed", seconds, most)
	}
	return printFile(path)(files.Changed(path, known, time.Duration(count)*time.Second))
}

// printFile takes a file, and prints it.
func printFile(path string) func(content []byte, err error) error {
	return func(content []byte, err error) error {
		if files.IsAbsent(err) {
			return absentError{fmt.Errorf("there is no %s (%w)", path, err)}
		}
		if err != nil {
			return err
		}
		_, err = os.Stdout.Write(content)
		return err
	}
}

// getCommand prints a file, or its end.
func getCommand(args []string) error {
	path, options := args[0], map[string]int64{}
	for rest := args[1:]; len(rest) > 0; rest = rest[2:] {
		if len(rest) == 1 || rest[0] != "--limit" && rest[0] != "--tail" {
			return errUsage
		}
		bytes, err := strconv.ParseInt(rest[1], 10, 64)
		if err != nil || bytes < 0 {
			return fmt.Errorf("%s %s: a number of bytes is needed", rest[0], rest[1])
		}
		options[rest[0]] = bytes
	}
	limit, limited := options["--limit"]
	if !limited {
		limit = files.GetLimit
	}
	tail, tailed := options["--tail"]
	if tailed && tail > limit {
		return fmt.Errorf("--tail %d: at most %d bytes are read; give another --limit", tail, limit)
	}
	if tailed {
		return printFile(path)(files.Tail(path, tail))
	}
	return printFile(path)(files.Read(path, limit))
}

func bootCommand(args []string) error {
	client := service.NewClient(service.Socket)
	switch {
	case len(args) == 0, len(args) == 1 && args[0] == "--forget":
		plan, err := read[boot.Plan]("boot plan")
		if err != nil {
			return err
		}
		// Whoever puts everything anew does not want back what the last life had.
		if len(args) == 1 {
			if err := client.Forget(); err != nil {
				return err
			}
		}
		defer bounded("boot")()
		changed, err := plan.Apply()
		if err != nil {
			return err
		}
		return printAnswer(map[string][]string{"changed": append([]string{}, changed...)}, nil)
	case len(args) == 1 && args[0] == "--replay":
		replayed, err := boot.Replay(client, facade.MadeFile)
		if replayed.Problem != "" {
			fmt.Fprintln(os.Stderr, "sandbox-init:", replayed.Problem)
		}
		return errors.Join(err, printAnswer(replayed, nil))
	}
	return errUsage
}

func facadeCommand() error {
	plan, err := read[facade.Plan]("facade plan")
	if err != nil {
		return err
	}
	defer bounded("facade")()
	if err := facade.Apply(plan, facade.MadeFile); err != nil {
		return err
	}
	if err := service.NewClient(service.Socket).NoteFacade(plan); err != nil {
		return fmt.Errorf("the facade is there, and cannot be noted for the next start: %w", err)
	}
	return nil
}

func flockCommand(args []string) error {
	given, err := switches(args, "--shared", "--nonblock")
	if err != nil {
		return err
	}
	return lock.Descriptor(3, given["--shared"], !given["--nonblock"])
}

func holdCommand(args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	given, err := switches(args[1:], "--shared")
	if err != nil {
		return err
	}
	return lock.Hold(args[0], given["--shared"], os.Stdin, os.Stdout)
}

func linkCommand(verb, argument string) error {
	switch verb {
	case "serve":
		var link meshlink.Link
		if err := input.Decode(strings.NewReader(argument), &link); err != nil {
			return fmt.Errorf("link: %w", err)
		}
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
		defer stop()
		return link.Serve(ctx)
	case "attach":
		return meshlink.Attach(argument, os.Stdin, os.Stdout)
	}
	return errUsage
}

func machineCommand(verb string) error {
	switch verb {
	case "start":
		start, err := read[machine.Start]("machine")
		if err != nil {
			return err
		}
		return printAnswer(start.Run())
	case "stop":
		stop, err := read[machine.Stop]("machine")
		if err != nil {
			return err
		}
		return printAnswer(stop.Run())
	case "observe":
		observe, err := read[machine.Observe]("machine")
		if err != nil {
			return err
		}
		defer bounded("machine observe")()
		return printAnswer(observe.Run())
	}
	return errUsage
}

// bounded ends this process if it takes too long to do something, and returns what tells that it is done.
func bounded(command string) (done func()) {
	timer := time.AfterFunc(patience, func() {
		fmt.Fprintf(
			os.Stderr,
			"sandbox-init: %s has not ended within %s: something below the paths does not answer, such as a file "+
				"system that a program serves; unmount it\n",
			command,
			patience,
		)
		os.Exit(1)
	})
	return func() { timer.Stop() }
}

// switches are the arguments that stand for themselves.
func switches(args []string, known ...string) (map[string]bool, error) {
	given := map[string]bool{}
	for _, name := range known {
		given[name] = false
	}
	for _, arg := range args {
		if _, isKnown := given[arg]; !isKnown {
			return nil, errUsage
		}
		given[arg] = true
	}
	return given, nil
}

// read reads the command's input.
func read[T any](what string) (T, error) {
	var value T
	if err := input.Decode(os.Stdin, &value); err != nil {
		return value, fmt.Errorf("standard input, %s: %w", what, err)
	}
	return value, nil
}

// printAnswer prints an answer as JSON, unless there is an error in its place.
func printAnswer[T any](answer T, err error) error {
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(answer)
}

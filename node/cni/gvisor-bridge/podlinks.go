package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
)

// podLink is what the service proxy, which enforces network policies, is told of a pod's link: a file named by the
// port. See node/server/service-proxy/podlinks.go.
type podLink struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Address   net.IP `json:"address"`
	Gateway   net.IP `json:"gateway"`
	MAC       string `json:"mac"`
}

// patience is how long the service proxy may take to put a port in its place, its own start included.
const patience = 60 * time.Second

// lookAgain is how soon it is looked for again.
const lookAgain = 20 * time.Millisecond

// tellPodLink tells of a pod's link, and has its port put on the bridge, or on the filter while there are network
// policies. Until then the pod reaches nobody.
func tellPodLink(conf *pluginConf, port, cniArgs string, result *current.Result) error {
	if conf.Policies == "" {
		return nil
	}
	args := cniArguments(cniArgs)
	err := writeWhole(conf.podLinks(), port, podLink{
		Namespace: args["K8S_POD_NAMESPACE"], Name: args["K8S_POD_NAME"],
		Address: result.IPs[0].Address.IP, Gateway: result.IPs[0].Gateway, MAC: result.Interfaces[2].Mac,
	})
	if err != nil {
		return fmt.Errorf("telling of the pod's link: %w", err)
	}
	if err := place(filepath.Join(conf.Policies, "socket"), port); err != nil {
		return fmt.Errorf("the service proxy, which enforces network policies, does not take the pod: %w", err)
	}
	return nil
}

// place asks for a port to be put in its place, and waits for it.
func place(socket, port string) error {
	until := time.Now().Add(patience)
	conn, err := net.Dial("unix", socket)
	for (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)) && time.Now().Before(until) {
		time.Sleep(lookAgain) // it is starting: nothing tells when it listens
		conn, err = net.Dial("unix", socket)
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(until); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(conn, port); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err == io.EOF {
		err = errors.New("it ended")
	}
	if err == nil && answer != "\n" {
		err = errors.New(strings.TrimSpace(answer))
	}
	return err
}

// podLinks is the folder of those files.
func (c *pluginConf) podLinks() string { return filepath.Join(c.Policies, "links") }

// forgetPodLink is for a pod that is gone; also for one that was never told of.
func forgetPodLink(conf *pluginConf, port string) error {
	if conf.Policies == "" {
		return nil
	}
	return removeIfThere(filepath.Join(conf.podLinks(), port))
}

// gcPodLinks forgets those of ports that are not among the valid ones.
func gcPodLinks(conf *pluginConf, valid map[string]bool) error {
	if conf.Policies == "" {
		return nil
	}
	return removeOthers(conf.podLinks(), valid)
}

// cniArguments are those that the runtime passes in CNI_ARGS.
func cniArguments(text string) map[string]string {
	args := map[string]string{}
	for _, pair := range strings.Split(text, ";") {
		key, value, _ := strings.Cut(pair, "=")
		args[key] = value
	}
	return args
}

// writeWhole writes a file that is read whole or not at all: a name with a dot first is none that is looked at.
func writeWhole(folder, name string, content any) error {
	text, err := json.Marshal(content)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	whole := filepath.Join(folder, "."+name)
	if err := os.WriteFile(whole, text, 0o600); err != nil {
		return err
	}
	return os.Rename(whole, filepath.Join(folder, name))
}

func removeIfThere(file string) error {
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// removeOthers removes a folder's files but the valid ones, and what was to become one of these.
func removeOthers(folder string, valid map[string]bool) error {
	entries, err := os.ReadDir(folder)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var failed []error
	for _, entry := range entries {
		if !valid[strings.TrimPrefix(entry.Name(), ".")] {
			failed = append(failed, removeIfThere(filepath.Join(folder, entry.Name())))
		}
	}
	return join(failed...)
}

// containersOf are the containers of attachments.
func containersOf(valid map[types.GCAttachment]bool) map[string]bool {
	containers := map[string]bool{}
	for attachment := range valid {
		containers[attachment.ContainerID] = true
	}
	return containers
}

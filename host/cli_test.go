package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"gvisor-k3s/host/internal/testnet"
	"gvisor-k3s/host/network"
)

// call runs the program to its end.
func call(args ...string) (code int, output, words string) {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	var out, err bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &err
	cmd.Run()
	return cmd.ProcessState.ExitCode(), out.String(), err.String()
}

func TestCommandLine(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{"file": "0123456789", "other": ""} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "two\nlines"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(root, "out")); err != nil {
		t.Fatal(err)
	}
	gone := filepath.Join(t.TempDir(), "gone")
	if err := os.MkdirAll(filepath.Join(gone, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args                string
		code                int
		output, wantInWords string
	}{
		{"read ROOT file", 0, "0123456789", ""},
		{"read --tail=3 ROOT file", 0, "789", ""},
		{"read ROOT file --tail 3 --limit 100", 0, "789", ""},
		{"read ROOT file --limit 3", 1, "", "more than the limit of 3"},
		{"read ROOT out", 1, "", "escapes"},
		{"read ROOT nothing", 3, "", "no such file"},
		{"read ROOT/nothing file", 1, "", "the folder to look in"},
		{"read ROOT", 2, "", "usage: "},
		{"read ROOT file --more", 2, "", "usage: "},
		{"list ROOT .", 0, "file\nother\n", `"two\nlines" is left out`},
		{"list ROOT nothing", 3, "", "no such file"},
		{"list ROOT file", 1, "", "no folder, but a file"},
		{"remove GONE", 0, "", ""},
		{"remove GONE", 0, "", ""},
		{"remove relative", 2, "", "usage: "},
		{"network down", 2, "", "usage: "},
		{"network up gk-x", 2, "", "usage: "},
		{"network down ../x", 1, "", "letters, digits"},
		{"network down gk-nothing", 0, "", ""},
		{"supervise", 2, "", "usage: "},
		{"supervise ROOT/nothing", 1, "", "the sandbox's spec: open"},
		{"egress", 2, "", "-tap is missing"},
		{"filter", 2, "", "-host is missing"},
		{"terminal", 2, "", "usage: "},
		{"terminal true", 1, "", "standard input and output must be a terminal"},
		{"nonsense", 2, "", "usage: "},
		{"", 2, "", "usage: "},
		{"read --help", 0, synopsis + "\n", ""},
	} {
		code, output, words := call(strings.Fields(strings.NewReplacer("ROOT", root, "GONE", gone).Replace(c.args))...)
		if code != c.code || output != c.output || !strings.Contains(words, c.wantInWords) {
			t.Errorf("%s: got %d, %q, %q", c.args, code, output, words)
		}
	}
	if _, err := os.Stat(gone); err == nil {
		t.Error("what was to be removed is there still")
	}
}

func TestNetworkDown(t *testing.T) {
	if err := network.Up(testnet.Sandbox()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if code, _, words := call("network", "down", testnet.Inside); code != 0 {
			t.Errorf("got %d, %s", code, words)
		}
	}
	if _, err := netlink.LinkByName(testnet.Inside); err == nil {
		t.Error("the link is there still")
	}
	if _, err := os.Stat(network.File(testnet.Inside)); err == nil {
		t.Error("the namespace is there still")
	}
}

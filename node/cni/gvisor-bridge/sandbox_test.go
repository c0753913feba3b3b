package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestInSandbox runs every other test of this package inside gVisor. RUNSC names
// the runsc binary; RUNSC_PLATFORM the platform, systrap where it is not set.
func TestInSandbox(t *testing.T) {
	runsc := os.Getenv("RUNSC")
	if inSandbox || runsc == "" {
		t.Skip("runs where RUNSC names a runsc binary")
	}
	platform := os.Getenv("RUNSC_PLATFORM")
	if platform == "" {
		platform = "systrap"
	}
	binary := filepath.Join(pluginDir, "gvisor-bridge.test")
	if err := goRun("test", "-c", "-o", binary, "."); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(runsc, "--platform="+platform, "--network=none", "--ignore-cgroups", "do", "--",
		binary, "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), pluginDirEnv+"="+pluginDir)
	var out bytes.Buffer // a pipe: runsc writes to a file from its beginning
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	t.Log(strings.ReplaceAll(out.String(), "--- ", "in gVisor: "))
	if err != nil {
		t.Errorf("the tests failed in gVisor: %v", err)
	}
	if !strings.Contains(out.String(), "PASS: TestTraffic") {
		t.Error("TestTraffic did not pass in gVisor")
	}
}
